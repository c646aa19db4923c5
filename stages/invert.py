"""Images, encoder -> data/<domain>/reals/: the w+ code of every image, and the error of its reconstruction.

Test images that will be edited are inverted with refinement, and data/<domain>/details/ has the residuals that their
codes lack; images whose codes are trained on are not refined.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from pipeline import inversion, sampling, sources
from pipeline.runtime import processes
from pipeline.storage import artefacts
from stages._stage import NetworkSpec, Stage, run


class Job(NamedTuple):
    """One shard of images to invert.

    codes: its shard of `reals`, which `write` computes and `write_details` reads. edited: row ids that are refined.
    """

    networks: NetworkSpec
    images: Path
    codes: Path
    params: inversion.InvertParams
    edited: frozenset[int]
    meta: dict[str, Any]


def write(job: Job, path: Path) -> None:
    """Invert one shard."""
    networks, params = job.networks.load(), job.params
    rows = artefacts.read(job.images, "images", ["id", "split", "image"])
    photos = sampling.decode_images(rows["image"])
    w_plus, error = inversion.invert(networks.encoder, networks.generator, photos, params.batch)
    edited = [row for row, number in enumerate(rows["id"].tolist()) if number in job.edited]
    if edited and params.refine:
        w_plus[edited], error[edited] = inversion.invert(
            networks.encoder, networks.generator, photos[edited], params.batch, params.refine
        )
    columns = {"id": rows["id"], "split": rows["split"], "w_plus": w_plus.flatten(1), "error": error}
    artefacts.write_shard(path, "reals", columns, job.meta)


def write_details(job: Job, path: Path) -> None:
    """Fit the residuals of the edited images of one shard."""
    networks, chosen = job.networks.load(), {"id": sorted(job.edited)}
    rows = artefacts.read(job.images, "images", ["id", "image"], chosen)
    w_plus = artefacts.read(job.codes, "reals", ["w_plus"], chosen)["w_plus"]
    w_plus, photos = w_plus.unflatten(1, (networks.generator.num_ws, -1)), sampling.decode_images(rows["image"])
    detail = inversion.details(networks.encoder, networks.generator, photos, w_plus, job.params)
    artefacts.write_shard(path, "details", {"id": rows["id"], "detail": detail.flatten(1)}, job.meta)


def write_none(meta: dict[str, Any], path: Path) -> None:
    """Write a table without residuals."""
    artefacts.write_shard(path, "details", {"id": [], "detail": None}, meta)


def main(stage: Stage) -> None:
    """Invert all images, then fit the residuals of the test images to edit, whose number `evaluate.scale` sets."""
    params, paths = stage.params(inversion.InvertParams), stage.paths
    scale = stage.params(sources.EvaluateParams, "evaluate").scale
    test = artefacts.read(paths.images, "images", ["id"], {"split": "test"})["id"].tolist()
    edited = frozenset(test[: sources.TEST_IMAGES[scale]["latent"]])
    shards, meta = artefacts.shards(paths.images), stage.meta(params, "generator", "encoder")
    with stage.tracked(params) as tracked, stage.work({**asdict(params), "scale": scale}) as work:
        codes = [work.path(f"reals/{artefacts.shard_name(number)}") for number in range(len(shards))]
        jobs = [Job(stage.networks, *pair, params, edited, meta) for pair in zip(shards, codes, strict=True)]
        processes.fill(work, "reals", write, jobs, stage.processes)
        ids = [edited & set(artefacts.read(shard, "images", ["id"])["id"].tolist()) for shard in shards]
        jobs = [job._replace(edited=chosen) for job, chosen in zip(jobs, ids, strict=True) if chosen]
        if jobs and params.seeks_detail:
            processes.fill(work, "details", write_details, jobs, stage.processes)
        else:
            processes.fill(work, "details", write_none, [meta], 1)
        work.publish({"reals": paths.reals, "details": paths.details})
        errors = artefacts.read(paths.reals, "reals", ["error"], {"split": "test"})["error"]
        if len(errors):
            tracked.log(test_error=errors[: len(edited)].mean().item())


if __name__ == "__main__":
    run(main)
