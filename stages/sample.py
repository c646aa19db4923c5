"""Random numbers -> data/<domain>/fakes/: the w codes of generated images, each fixed by its row id."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from pipeline import sampling
from pipeline.runtime import processes
from pipeline.storage import artefacts
from stages._stage import NetworkSpec, Stage, run


class Job(NamedTuple):
    """One shard of fakes."""

    networks: NetworkSpec
    rows: range
    params: sampling.SampleParams
    meta: dict[str, Any]


def write(job: Job, path: Path) -> None:
    """Sample one shard."""
    generator, params = job.networks.load().generator, job.params
    w = sampling.sample_w(generator, job.rows, params.seed, params.truncation, redrawn=params.redrawn)
    artefacts.write_shard(path, "fakes", {"id": list(job.rows), "w": w}, job.meta)


def main(stage: Stage) -> None:
    """Sample all fakes in this process, which takes less time than starting others."""
    params = stage.params(sampling.SampleParams)
    meta, starts = stage.meta(params, "generator"), range(0, params.count, params.shard)
    rows = [range(start, min(start + params.shard, params.count)) for start in starts]
    with stage.tracked(params), stage.work(params) as work:
        jobs = [Job(stage.networks, chunk, params, meta) for chunk in rows]
        processes.fill(work, "fakes", write, jobs, 1, rows=[len(chunk) for chunk in rows])
        work.publish({"fakes": stage.paths.fakes})


if __name__ == "__main__":
    run(main)
