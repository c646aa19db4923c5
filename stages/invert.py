"""Pictures, encoder -> data/<domain>/reals/: the w+ code of every picture, and how far its rendering is from it."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from pipeline import artefacts, sampling, workers
from stages._run import Networks, Stage, run


class Job(NamedTuple):
    """One shard of pictures to invert."""

    networks: Networks
    pictures: Path
    batch: int
    meta: dict[str, Any]


def write(job: Job, path: Path) -> None:
    nets = job.networks.load()
    rows = artefacts.read(job.pictures, "images", ["id", "split", "image"])
    photos = sampling.decoded(rows["image"])
    w_plus, error = sampling.invert_images(nets.encoder, nets.generator, photos, job.batch)
    columns = {"id": rows["id"], "split": rows["split"], "w_plus": w_plus.flatten(1), "error": error}
    artefacts.write_shard(path, "reals", columns, job.meta)


def main(stage: Stage) -> None:
    params = stage.params(sampling.BatchParams)
    shards = artefacts.shards(stage.files.images)
    meta = stage.meta(params, "generator", "encoder")
    jobs = [Job(stage.networks, shard, params.batch, meta) for shard in shards]
    with stage.tracked(params) as tracked, stage.work(params) as unit:
        workers.fill(unit, "reals", write, jobs, stage.processes)
        unit.publish({"reals": stage.files.reals})
        errors = artefacts.read(stage.files.reals, "reals", ["error"], {"split": "test"})["error"]
        if len(errors):
            tracked.log(test_error=errors.mean().item())


if __name__ == "__main__":
    run(main)
