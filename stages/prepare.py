"""A domain's renderer, or a folder, zip or Parquet file of photographs -> data/<domain>/images/, prepared.json."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from pipeline.runtime import files, processes, resumable
from pipeline.storage import artefacts, dataset, domains, face_alignment
from pipeline.storage.dataset import Photographs, PrepareParams, Rendered
from stages._stage import Stage, run

NEEDED_LATER = ("generator", "encoder", "clip", "denoiser")


class Job(NamedTuple):
    """One shard of images."""

    images: Rendered | Photographs
    meta: dict[str, Any]


def write(job: Job, path: Path) -> None:
    """Render or read one shard."""
    rows = [job.images(position)._asdict() for position in range(len(job.images.rows))]
    columns = {name: [row[name] for row in rows] for name in dataset.Row._fields}
    artefacts.write_shard(path, "images", columns, job.meta)


def say(text: str) -> None:
    """Print a line on stderr, which DVC shows at once."""
    print(f"prepare: {text}", file=sys.stderr, flush=True)


def main(stage: Stage) -> None:
    """Prepare the images, from the renderer or from photographs.

    Networks that later stages lack are named before anything long begins, with the command that makes each; DVC itself
    would only name the file.
    """
    params, domain, networks = stage.params(PrepareParams), stage.domain, stage.networks.load()
    for name in NEEDED_LATER:
        if networks.absent(name):
            say(f"{domain.name} has no {name}, which later stages need: {domains.how_to_get(domain, name)}")
    if params.source is None and domain.renderer is not None:
        rendered = Rendered(domain.resolution, tuple(dataset.row_ids(params)))
        with stage.tracked(params), stage.work(params) as work:
            publish(stage, work, params, rendered, {"pictures": len(rendered.rows)}, {})
    else:
        from_photographs(stage, params)


def from_photographs(stage: Stage, params: PrepareParams) -> None:
    """Prepare the images from `params.source`."""
    domain, count = stage.domain, len(dataset.row_ids(params))
    listing = dataset.source_listing(params.source, stage.root, count)
    aligned = domain.aligned is not None and face_alignment.detector() is not None
    fingerprint = {**asdict(params), "aligned": aligned, "source": listing.fingerprint}
    with stage.tracked(params) as tracked, stage.work(fingerprint) as work:
        seen = dataset.inspect_photographs(work, listing, count, aligned)
        photographs = dataset.select_usable(listing, seen, params, domain.resolution)
        account = dataset.summary(listing, seen, photographs)
        say(dataset.summary_line(account, str(stage.paths.prepared.relative_to(stage.root))))
        if domain.aligned and not aligned:
            say(face_alignment.missing_detector(domain.name))
        stage.log(tracked, {name: count for name, count in account.items() if isinstance(count, int)})
        extra = {"aligned": domain.aligned if aligned else None} if domain.aligned else {}
        publish(stage, work, params, photographs, account, extra)


def publish(
    stage: Stage,
    work: resumable.Work,
    params: PrepareParams,
    images: Rendered | Photographs,
    account: dict[str, Any],
    extra: dict[str, Any],
) -> None:
    """Write all shards and prepared.json, then publish both.

    work: keeps finished shards of an interrupted run.
    images: rows to render or to read.
    account: content of prepared.json.
    extra: further entries of the shards' header.
    """
    meta, starts = {**stage.meta(params), **extra}, range(0, len(images.rows), params.shard)
    jobs = [Job(images.part(slice(start, start + params.shard)), meta) for start in starts]
    processes.fill(work, "images", write, jobs, processes.count())
    files.write_bytes(work.path("prepared"), json.dumps(account, ensure_ascii=False, indent=1).encode())
    work.publish({"images": stage.paths.images, "prepared": stage.paths.prepared})


if __name__ == "__main__":
    run(main)
