"""Pictures, encoder -> data/<domain>/reals/: the w+ code of every picture, and how far its rendering is from it.

Test people who will be edited are inverted with refinement; those whose codes are learnt from are not.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from pipeline import artefacts, editing, inversion, sampling, workers
from pipeline import params as params_of
from stages._run import Networks, Stage, run


class Job(NamedTuple):
    """One shard of pictures to invert."""

    networks: Networks
    pictures: Path
    params: inversion.InvertParams
    edited: frozenset[int]
    meta: dict[str, Any]


def write(job: Job, path: Path) -> None:
    nets = job.networks.load()
    rows = artefacts.read(job.pictures, "images", ["id", "split", "image"])
    photos = sampling.decoded(rows["image"])
    w_plus, error = inversion.invert(nets.encoder, nets.generator, photos, job.params.batch)
    edited = [row for row, number in enumerate(rows["id"].tolist()) if number in job.edited]
    if edited and job.params.refine:
        settings = job.params.batch, job.params.refine
        w_plus[edited], error[edited] = inversion.invert(nets.encoder, nets.generator, photos[edited], *settings)
    columns = {"id": rows["id"], "split": rows["split"], "w_plus": w_plus.flatten(1), "error": error}
    artefacts.write_shard(path, "reals", columns, job.meta)


def main(stage: Stage) -> None:
    params = stage.params(inversion.InvertParams)
    scale = params_of.section(editing.EvaluateParams, stage.root, "evaluate", domain=stage.domain).scale
    test = artefacts.read(stage.files.images, "images", ["id"], {"split": "test"})["id"].tolist()
    edited = frozenset(test[: editing.PEOPLE[scale]["latent"]])
    shards = artefacts.shards(stage.files.images)
    meta = stage.meta(params, "generator", "encoder")
    jobs = [Job(stage.networks, shard, params, edited, meta) for shard in shards]
    with stage.tracked(params) as tracked, stage.work({**asdict(params), "scale": scale}) as unit:
        workers.fill(unit, "reals", write, jobs, stage.processes)
        unit.publish({"reals": stage.files.reals})
        errors = artefacts.read(stage.files.reals, "reals", ["error"], {"split": "test"})["error"]
        if len(errors):
            tracked.log(test_error=errors[: len(edited)].mean().item())


if __name__ == "__main__":
    run(main)
