"""A domain's renderer, or a folder, zip or Parquet file of photographs -> data/<domain>/images/."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from pipeline import artefacts, collection, workers
from stages._run import Stage, run


class Job(NamedTuple):
    """One shard of pictures."""

    read: collection.Rendered | collection.Photographs
    positions: range
    meta: dict[str, Any]


def write(job: Job, path: Path) -> None:
    rows = [job.read(position)._asdict() for position in job.positions]
    columns = {name: [row[name] for row in rows] for name in collection.Row._fields}
    artefacts.write_shard(path, "images", columns, job.meta)


def main(stage: Stage) -> None:
    params = stage.params(collection.PrepareParams)
    rows = collection.row_ids(params)
    domain = stage.domain
    read = collection.reader(params.source, domain.renderer, stage.root, domain.resolution, rows)
    meta = stage.meta(params)
    starts = range(0, len(rows), params.shard)
    jobs = [Job(read, range(start, min(start + params.shard, len(rows))), meta) for start in starts]
    with stage.tracked(params), stage.work(params) as unit:
        workers.fill(unit, "images", write, jobs, workers.count())
        unit.publish({"images": stage.files.images})


if __name__ == "__main__":
    run(main)
