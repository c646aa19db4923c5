"""Fakes and inverted images -> data/<domain>/codes/, the pairs (s, CLIP), and s_stats.safetensors, mean and std of s.

Fakes are rendered and embedded in one pass; their pixels never touch the disk. Real images
take s from their inversion and the CLIP embedding from the image itself.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from pipeline import sampling
from pipeline.runtime import processes
from pipeline.storage import artefacts, weights
from stages._stage import NetworkSpec, Stage, run


class Job(NamedTuple):
    """One shard of codes, from a shard of `fakes`, or from one of `reals` and one of its images."""

    networks: NetworkSpec
    codes: Path
    images: Path | None
    params: sampling.CacheParams
    meta: dict[str, Any]


def write(job: Job, path: Path) -> None:
    """Compute one shard of codes."""
    networks, params = job.networks.load(), job.params
    if job.images is None:
        table = artefacts.read(job.codes, "fakes")
        source, split = "fake", [artefacts.fake_split(row) for row in table["id"].tolist()]
        s, clip = sampling.fake_codes(networks.generator, networks.clip, table["w"], params.batch, params.precision)
    else:
        table = artefacts.read(job.codes, "reals", ["id", "split", "w_plus"])
        source, split = "real", table["split"]
        photos = sampling.decode_images(artefacts.read(job.images, "images", ["image"])["image"])
        w_plus = table["w_plus"].unflatten(1, (networks.generator.num_ws, -1))
        s, clip = sampling.real_codes(networks.generator, networks.clip, w_plus, photos, params.batch)
    columns = {"id": table["id"], "source": [source] * len(s), "split": split, "s": s, "clip": clip}
    artefacts.write_shard(path, "codes", columns, job.meta)


def main(stage: Stage) -> None:
    """Compute the codes of all fakes and reals, then the statistics of the fakes' training rows."""
    params, paths = stage.params(sampling.CacheParams), stage.paths
    meta = stage.meta(params, "generator", "clip", "encoder")
    jobs = [Job(stage.networks, shard, None, params, meta) for shard in artefacts.shards(paths.fakes)]
    pairs = zip(artefacts.shards(paths.reals), artefacts.shards(paths.images), strict=True)
    jobs += [Job(stage.networks, codes, images, params, meta) for codes, images in pairs]
    with stage.tracked(params), stage.work(params) as work:
        rows = [artefacts.count(job.codes, "reals" if job.images else "fakes") for job in jobs]
        processes.fill(work, "codes", write, jobs, stage.processes, rows=rows)
        moments = sampling.Moments()
        for part in artefacts.iterate(
            work.folder / "codes", "codes", ["s"], 4096, {"source": "fake", "split": "train"}
        ):
            moments.add(part["s"])
        weights.save(work.path("s_stats.safetensors"), moments.result(), meta, half=False)
        work.mark("s_stats.safetensors")
        work.publish({"codes": paths.codes, "s_stats.safetensors": paths.s_stats})


if __name__ == "__main__":
    run(main)
