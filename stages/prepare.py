"""A domain's renderer, or a folder, zip or Parquet file of photographs -> data/<domain>/images/, prepared.json."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from pipeline.runtime import files, processes, resumable
from pipeline.storage import artefacts, dataset, faces
from pipeline.storage.dataset import Photographs, PrepareParams, Rendered
from stages._stage import Stage, run

LATER = ("generator", "encoder", "clip", "denoiser")


class Job(NamedTuple):
    """One shard of pictures."""

    read: Rendered | Photographs
    meta: dict[str, Any]


def write(job: Job, path: Path) -> None:
    rows = [job.read(position)._asdict() for position in range(len(job.read.rows))]
    columns = {name: [row[name] for row in rows] for name in dataset.Row._fields}
    artefacts.write_shard(path, "images", columns, job.meta)


def tell_missing(stage: Stage) -> None:
    """What later stages need and do not find, before anything long begins; DVC itself only names the file."""
    networks = stage.networks.load()
    for name in LATER:
        if networks.absent(name):
            needed = f"{stage.domain.name} has no {name}, which later stages need: {networks.hint(name)}"
            print(f"prepare: {needed}", file=sys.stderr, flush=True)


def main(stage: Stage) -> None:
    params, domain = stage.params(PrepareParams), stage.domain
    tell_missing(stage)
    if params.source is None and domain.renderer is not None:
        rows = dataset.row_ids(params)
        with stage.tracked(params), stage.work(params) as unit:
            publish(stage, unit, params, Rendered(domain.resolution, tuple(rows)), {"pictures": len(rows)}, {})
        return
    listing = dataset.photographs(params.source, stage.root, len(dataset.row_ids(params)))
    aligned = domain.aligned is not None and faces.finder() is not None
    made_from = {**asdict(params), "aligned": aligned, "source": listing.fingerprint}
    with stage.tracked(params) as tracked, stage.work(made_from) as unit:
        seen = dataset.looked_at(unit, listing, len(dataset.row_ids(params)), aligned)
        read = dataset.chosen(listing, seen, params, domain.resolution)
        found = dataset.account(listing, seen, read)
        print(
            f"prepare: {dataset.told(found, str(stage.files.prepared.relative_to(stage.root)))}",
            file=sys.stderr,
            flush=True,
        )
        if domain.aligned and not aligned:
            print(f"prepare: {faces.not_aligned(domain.name)}", file=sys.stderr, flush=True)
        stage.log(tracked, {name: count for name, count in found.items() if isinstance(count, int)})
        extra = {"aligned": domain.aligned if aligned else None} if domain.aligned else {}
        publish(stage, unit, params, read, found, extra)


def publish(
    stage: Stage,
    unit: resumable.Unit,
    params: PrepareParams,
    read: Rendered | Photographs,
    found: dict[str, Any],
    extra: dict[str, Any],
) -> None:
    meta = {**stage.meta(params), **extra}
    starts = range(0, len(read.rows), params.shard)
    jobs = [Job(read.part(slice(start, start + params.shard)), meta) for start in starts]
    processes.fill(unit, "images", write, jobs, processes.count())
    content = json.dumps(found, ensure_ascii=False, indent=1)
    files.write_bytes(unit.path("prepared"), content.encode())
    unit.publish({"images": stage.files.images, "prepared": stage.files.prepared})


if __name__ == "__main__":
    run(main)
