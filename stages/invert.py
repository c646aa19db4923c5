"""Pictures, encoder -> data/<domain>/reals/: the w+ code of every picture, and how far its rendering is from it.

Test people who will be edited are inverted with refinement, and data/<domain>/details/ holds what their codes lack;
those whose codes are learnt from are not.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from pipeline import inversion, sampling, sources
from pipeline.runtime import processes
from pipeline.storage import artefacts
from pipeline.storage import params as params_of
from stages._stage import Networks, Stage, run


class Job(NamedTuple):
    """One shard of pictures to invert; codes: where its inversions lie, once they are there."""

    networks: Networks
    pictures: Path
    codes: Path
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


def write_details(job: Job, path: Path) -> None:
    nets, chosen = job.networks.load(), {"id": sorted(job.edited)}
    rows = artefacts.read(job.pictures, "images", ["id", "image"], chosen)
    w_plus = artefacts.read(job.codes, "reals", ["w_plus"], chosen)["w_plus"].unflatten(1, (nets.generator.num_ws, -1))
    photos = sampling.decoded(rows["image"])
    detail = inversion.details(nets.encoder, nets.generator, photos, w_plus, job.params)
    artefacts.write_shard(path, "details", {"id": rows["id"], "detail": detail.flatten(1)}, job.meta)


def write_none(meta: dict[str, Any], path: Path) -> None:
    artefacts.write_shard(path, "details", {"id": [], "detail": None}, meta)


def main(stage: Stage) -> None:
    params = stage.params(inversion.InvertParams)
    scale = params_of.section(sources.EvaluateParams, stage.root, "evaluate", domain=stage.domain).scale
    test = artefacts.read(stage.files.images, "images", ["id"], {"split": "test"})["id"].tolist()
    edited = frozenset(test[: sources.PEOPLE[scale]["latent"]])
    shards = artefacts.shards(stage.files.images)
    meta = stage.meta(params, "generator", "encoder")
    with stage.tracked(params) as tracked, stage.work({**asdict(params), "scale": scale}) as unit:
        places = [unit.path(f"reals/{artefacts.shard_name(number)}") for number in range(len(shards))]
        jobs = [Job(stage.networks, *pair, params, edited, meta) for pair in zip(shards, places, strict=True)]
        processes.fill(unit, "reals", write, jobs, stage.processes)
        held = [edited & set(artefacts.read(shard, "images", ["id"])["id"].tolist()) for shard in shards]
        sought = [job._replace(edited=own) for job, own in zip(jobs, held, strict=True) if own and params.seeks_detail]
        if sought:
            processes.fill(unit, "details", write_details, sought, stage.processes)
        else:
            processes.fill(unit, "details", write_none, [meta], 1)
        unit.publish({"reals": stage.files.reals, "details": stage.files.details})
        errors = artefacts.read(stage.files.reals, "reals", ["error"], {"split": "test"})["error"]
        if len(errors):
            tracked.log(test_error=errors[: len(edited)].mean().item())


if __name__ == "__main__":
    run(main)
