"""Random numbers -> data/<domain>/fakes/: the w codes of generated people, each fixed by its row id."""

from __future__ import annotations

from pipeline import sampling
from pipeline.runtime import progress
from pipeline.storage import artefacts
from stages._stage import Stage, run


def main(stage: Stage) -> None:
    params = stage.params(sampling.SampleParams)
    generator, meta = stage.networks.load().generator, stage.meta(params, "generator")
    starts = range(0, params.count, params.shard)
    with stage.tracked(params), stage.work(params) as unit:
        for index, start in enumerate(progress.track(starts, params.count, "fakes", step=params.shard)):
            rows = range(start, min(start + params.shard, params.count))
            w = sampling.sample_w(generator, rows, params.seed, params.truncation, redrawn=params.redrawn)
            name = f"fakes/{artefacts.shard_name(index)}"
            artefacts.write_shard(unit.path(name), "fakes", {"id": list(rows), "w": w}, meta)
            unit.mark(name)
        unit.publish({"fakes": stage.files.fakes})


if __name__ == "__main__":
    run(main)
