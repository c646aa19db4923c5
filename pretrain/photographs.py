"""The pictures of a domain of photographs: its source, read once into chunks of the domain's resolution.

Only training rows, in the order in which `prepare` numbers them: validation and test people stay unseen. Some pictures
for validation are kept apart, for what is measured at the end of a training.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from pipeline.runtime import files, processes, resumable
from pipeline.runtime.errors import InputError
from pipeline.storage import dataset, faces, images, params
from pipeline.storage.domains import Domain
from pretrain.pictures import Pictures, floats

CHUNK, CHUNK_BYTES = 2048, 1 << 29  # rows of a chunk, unless they would be larger
UNSEEN, APART = 512, "unseen"  # pictures that are kept apart, and their folder
SOURCE = "source.txt"  # the fingerprint of what the chunks were made from


class Job(NamedTuple):
    """Some photographs of one chunk."""

    read: dataset.Photographs
    resolution: int


def folder(domain: Domain, root: Path) -> Path:
    return Path(root) / "data" / "pretraining" / domain.name / f"pictures-{domain.resolution}"


def write(job: Job, path: Path) -> None:
    """A chunk as .npy, one picture in memory at a time."""
    count = len(job.read.rows)
    with files.replacing(path) as partial, partial.open("wb") as chunk:
        shape = {"descr": "|u1", "fortran_order": False, "shape": (count, job.resolution, job.resolution, 3)}
        np.lib.format.write_array_header_1_0(chunk, shape)
        for position in range(count):
            chunk.write(images.to_uint8(images.decode_png(job.read(position).image)).tobytes())


def make(domain: Domain, root: Path) -> None:
    """Read the source of the domain, if it or what is asked of it has changed; a killed reading goes on.

    Raises InputError where there is none, or where it cannot be used as it is.
    """
    sizes = params.section(dataset.PrepareParams, root, "prepare", domain=domain)
    if sizes.source is None:
        raise InputError(
            f"domain '{domain.name}' has no pictures to learn from: write the path of a folder, .zip or .parquet file "
            f"into domains/{domain.name}.yaml, defaults.prepare.source"
        )
    wanted = len(dataset.row_ids(sizes))
    listing = dataset.photographs(sizes.source, root, wanted)
    aligned = domain.aligned is not None and faces.finder() is not None
    made_from = {**asdict(sizes), "source": str(listing.path), "files": listing.fingerprint, "aligned": aligned}
    del made_from["shard"]
    fingerprint = resumable.fingerprint_of({**made_from, "resolution": domain.resolution})
    target, threads = folder(domain, root), torch.get_num_threads()
    if _text(target / SOURCE) == fingerprint:
        return
    try:
        with resumable.open("pictures", domain.name, {"fingerprint": fingerprint}, root) as unit:
            seen = dataset.looked_at(unit, listing, wanted, aligned)
            read = dataset.chosen(listing, seen, sizes, domain.resolution)
            _tell(domain, dataset.account(listing, seen, read), domain.aligned is not None and not aligned)
            splits = [split for _, split in read.rows]  # training rows come first, then those for validation
            train, val = splits.count("train"), splits.count("val")
            rows = min(CHUNK, max(1, CHUNK_BYTES // (3 * domain.resolution**2)))
            parts = [slice(start, min(start + rows, train)) for start in range(0, train, rows)]
            jobs = [Job(read.part(part), domain.resolution) for part in parts]
            processes.fill(unit, "pictures", write, jobs, processes.count(), ".npy")
            apart = slice(train, train + min(val, UNSEEN)) if val else slice(max(0, train - UNSEEN), train)
            processes.fill(unit, f"pictures/{APART}", write, [Job(read.part(apart), domain.resolution)], 1, ".npy")
            files.write_bytes(unit.path(f"pictures/{SOURCE}"), fingerprint.encode())
            unit.mark(f"pictures/{SOURCE}")
            unit.publish({"pictures": target})
    finally:
        torch.set_num_threads(threads)  # one is for reading; the trainings want all


def _tell(domain: Domain, found: dict[str, Any], unaligned: bool) -> None:
    """What is used and what is not, in a line or two."""
    skipped = [f"{one['name']} ({one['reason']})" for one in found["skipped"]]
    example = f"; skipped {len(skipped):,}, such as {skipped[0]}" if skipped else ""
    print(f"{domain.name}: {found['pictures']:,} pictures, test people and all{example}", flush=True)
    if unaligned:
        print(faces.not_aligned(domain.name), flush=True)


def _text(path: Path) -> str | None:
    return path.read_text() if path.is_file() else None


class Photographs(Pictures):
    """What `make` made, as it was at the start: a training that runs does not see a source change."""

    def __init__(self, domain: Domain, root: Path) -> None:
        self.paths = sorted(folder(domain, root).glob("*.npy"))
        super().refresh()

    def files(self) -> list[Path]:
        return self.paths

    def refresh(self) -> None:
        """Nothing: see above."""


def unseen(domain: Domain, root: Path) -> Tensor:
    """Pictures [N,3,R,R] that no training meets."""
    chunks = sorted((folder(domain, root) / APART).glob("*.npy"))
    return floats(np.concatenate([np.load(path) for path in chunks]))
