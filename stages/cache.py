"""Fakes and inverted pictures -> data/<domain>/codes/, the pairs (s, CLIP), and s_stats.safetensors, their spread.

Fakes are rendered and embedded in one pass; their pixels never touch the disk. A real's s is its inversion's, its CLIP
embedding the photograph's own.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from pipeline import sampling
from pipeline.runtime import processes
from pipeline.storage import artefacts, weights
from stages._stage import Networks, Stage, run


class Job(NamedTuple):
    """One shard of codes to make: from a shard of `fakes`, or from one of `reals` and its pictures."""

    networks: Networks
    codes: Path
    pictures: Path | None
    params: sampling.CacheParams
    meta: dict[str, Any]


def write(job: Job, path: Path) -> None:
    rows, s, clip = fake(job) if job.pictures is None else real(job)
    artefacts.write_shard(path, "codes", {**rows, "s": s, "clip": clip}, job.meta)


def fake(job: Job) -> tuple[dict[str, Any], Any, Any]:
    nets = job.networks.load()
    rows = artefacts.read(job.codes, "fakes")
    ids = rows["id"].tolist()
    named = {"id": ids, "source": ["fake"] * len(ids), "split": [artefacts.fake_split(row) for row in ids]}
    return named, *sampling.fake_codes(nets.generator, nets.clip, rows["w"], job.params.batch, job.params.precision)


def real(job: Job) -> tuple[dict[str, Any], Any, Any]:
    nets = job.networks.load()
    rows = artefacts.read(job.codes, "reals", ["id", "split", "w_plus"])
    photos = sampling.decoded(artefacts.read(job.pictures, "images", ["image"])["image"])  # type: ignore[arg-type]
    w_plus = rows["w_plus"].unflatten(1, (nets.generator.num_ws, -1))
    named = {"id": rows["id"], "source": ["real"] * len(photos), "split": rows["split"]}
    return named, *sampling.real_codes(nets.generator, nets.clip, w_plus, photos, job.params.batch)


def main(stage: Stage) -> None:
    params, files = stage.params(sampling.CacheParams), stage.files
    meta = stage.meta(params, "generator", "clip", "encoder")
    fakes = [Job(stage.networks, shard, None, params, meta) for shard in artefacts.shards(files.fakes)]
    pairs = zip(artefacts.shards(files.reals), artefacts.shards(files.images), strict=True)
    reals = [Job(stage.networks, codes, pictures, params, meta) for codes, pictures in pairs]
    with stage.tracked(params), stage.work(params) as unit:
        rows = [artefacts.count(job.codes, "reals" if job.pictures else "fakes") for job in (*fakes, *reals)]
        processes.fill(unit, "codes", write, [*fakes, *reals], stage.processes, rows=rows)
        spread = sampling.Moments()
        of_fakes = {"source": "fake", "split": "train"}
        for part in artefacts.iterate(unit.folder / "codes", "codes", ["s"], 4096, of_fakes):
            spread.add(part["s"])
        weights.save(unit.path("s_stats.safetensors"), spread.result(), meta, half=False)
        unit.mark("s_stats.safetensors")
        unit.publish({"codes": files.codes, "s_stats.safetensors": files.s_stats})


if __name__ == "__main__":
    run(main)
