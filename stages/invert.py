"""Pictures, encoder -> data/<domain>/reals/: the w+ code of every picture, and how far its rendering is from it.

Test people, who will be edited, are inverted with refinement; those whose codes are learnt from are not.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from pipeline import artefacts, inversion, sampling, workers
from stages._run import Networks, Stage, run


class Job(NamedTuple):
    """One shard of pictures to invert."""

    networks: Networks
    pictures: Path
    params: inversion.InvertParams
    meta: dict[str, Any]


def write(job: Job, path: Path) -> None:
    nets = job.networks.load()
    rows = artefacts.read(job.pictures, "images", ["id", "split", "image"])
    photos = sampling.decoded(rows["image"])
    w_plus, error = inversion.invert(nets.encoder, nets.generator, photos, job.params.batch)
    edited = [row for row, split in enumerate(rows["split"]) if split == "test"]
    if edited and job.params.refine:
        settings = job.params.batch, job.params.refine
        w_plus[edited], error[edited] = inversion.invert(nets.encoder, nets.generator, photos[edited], *settings)
    columns = {"id": rows["id"], "split": rows["split"], "w_plus": w_plus.flatten(1), "error": error}
    artefacts.write_shard(path, "reals", columns, job.meta)


def main(stage: Stage) -> None:
    params = stage.params(inversion.InvertParams)
    shards = artefacts.shards(stage.files.images)
    meta = stage.meta(params, "generator", "encoder")
    jobs = [Job(stage.networks, shard, params, meta) for shard in shards]
    with stage.tracked(params) as tracked, stage.work(params) as unit:
        workers.fill(unit, "reals", write, jobs, stage.processes)
        unit.publish({"reals": stage.files.reals})
        errors = artefacts.read(stage.files.reals, "reals", ["error"], {"split": "test"})["error"]
        if len(errors):
            tracked.log(test_error=errors.mean().item())


if __name__ == "__main__":
    run(main)
