"""Training images: renders of the portraits world, or a domain's photographs, in chunks of uint8 on disk.

Only the rows of a batch are in memory. Renders are of portraits that no stage of the workflow uses. Of photographs only
training rows are read, in the order in which `prepare` numbers them; some validation images are kept apart for what is
measured at the end of a training.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from functools import partial
from itertools import takewhile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from pipeline import portraits
from pipeline.runtime import files, processes, resumable
from pipeline.runtime.errors import InputError
from pipeline.storage import dataset, face_alignment, images, params
from pipeline.storage.domains import Domain
from pretrain import labels
from pretrain.labels import Labels

FIRST_ID = 1_000_000  # of rendered training portraits; those of the benchmark have smaller ids
RENDER_CHUNK = 5_000  # rows
LABELS = ".labels.npz"
PHOTO_CHUNK, PHOTO_CHUNK_BYTES = 2048, 1 << 29  # rows of a chunk, unless it would be larger than these bytes
VALIDATION, VALIDATION_FOLDER = 512, "unseen"  # images kept apart from training
SOURCE_FILE = "source.txt"  # fingerprint of the photographs that the chunks were made from
GPU_MEMORY_SHARE = 0.3  # for images: while chunks are added, two copies exist


class ImageChunks:
    """Finished chunks [N,H,W,3] of uint8, indexed as one array. Sizes of chunks may differ."""

    def __init__(self) -> None:
        self.refresh()

    def files(self) -> list[Path]:
        """The chunk files in order."""
        raise NotImplementedError

    def refresh(self) -> None:
        """Look for chunks that another process has finished since."""
        self.chunks = [np.load(path, mmap_mode="r") for path in self.files()]
        self.ends = np.cumsum([len(chunk) for chunk in self.chunks])

    def __len__(self) -> int:
        return int(self.ends[-1]) if self.chunks else 0

    def images(self, rows: Tensor) -> Tensor:
        """Images [B,3,R,R] in [-1,1] of rows [B]."""
        chunks = np.searchsorted(self.ends, rows.numpy(), side="right")
        offsets = (int(row) - int(self.ends[at]) for row, at in zip(rows, chunks))  # from the chunk's end: negative
        return to_float(np.stack([self.chunks[at][offset] for at, offset in zip(chunks, offsets)]))

    def people(self, rows: Tensor) -> Iterator[portraits.Portrait]:
        """The portraits of rows [B]. Raises InputError for photographs."""
        raise InputError("photographs have no known parameters: only rendered portraits can be reproduced or described")


class Renders(ImageChunks):
    """Rendered portraits: the unbroken run of finished chunks from the first.

    root: the project's folder.
    resolution: pixels per side.
    people: number of different persons; None: every row is another one.
    """

    def __init__(self, root: Path, resolution: int, people: int | None = None) -> None:
        self.folder, self.persons = render_folder(root, resolution, people), people
        self._labels: list[Labels] = []  # per chunk
        super().__init__()

    def files(self) -> list[Path]:
        paths = (self.folder / f"{index:05d}.npy" for index in range(100_000))
        return list(takewhile(Path.exists, paths))

    def people(self, rows: Tensor) -> Iterator[portraits.Portrait]:
        return (training_portrait(row, self.persons) for row in rows.tolist())

    def labels(self) -> Labels:
        """Labels of all images. Missing ones are computed, about 0.2 ms each, and kept beside the chunk."""
        for index in range(len(self._labels), len(self.chunks)):
            path = self.folder / f"{index:05d}{LABELS}"
            if not path.exists():
                start = int(self.ends[index]) - len(self.chunks[index])
                labels.save(path, labels.of(list(self.people(torch.arange(start, int(self.ends[index]))))))
            self._labels.append(labels.load(path))
        return labels.concatenate(self._labels)


class Photographs(ImageChunks):
    """A domain's photographs as `make_photographs` left them at the start: a running training sees no later change."""

    def __init__(self, domain: Domain, root: Path) -> None:
        self.paths = sorted(photograph_folder(domain, root).glob("*.npy"))
        super().refresh()

    def files(self) -> list[Path]:
        return self.paths

    def refresh(self) -> None:
        """Do nothing: the files are fixed."""


class DeviceImages:
    """Images for a training on `device`: copied into a GPU's memory where there is room, else read as needed.

    A GPU would wait for the processor to gather images from files: one core manages some 10,000 a second.
    """

    def __init__(self, data: ImageChunks, device: str) -> None:
        self.data, self.device = data, device
        self._copied = torch.zeros(0, dtype=torch.uint8)  # [n,H,W,3], the first n rows
        self.refresh()

    def refresh(self) -> None:
        """Look for new chunks, and copy them."""
        self.data.refresh()
        if torch.device(self.device).type != "cuda" or not self.data.chunks:
            return
        size = sum(chunk.nbytes for chunk in self.data.chunks)
        if size > GPU_MEMORY_SHARE * torch.cuda.get_device_properties(self.device).total_memory:
            self._copied = torch.zeros(0, dtype=torch.uint8)
            return
        done = np.searchsorted(self.data.ends, len(self._copied), side="right")  # chunks copied already
        fresh = [torch.from_numpy(np.array(chunk)).to(self.device) for chunk in self.data.chunks[done:]]
        if fresh:
            self._copied = torch.cat([self._copied, *fresh] if len(self._copied) else fresh)

    def __len__(self) -> int:
        return len(self.data)

    def images(self, rows: Tensor) -> Tensor:
        """Images [B,3,R,R] in [-1,1] of rows [B], both on the device."""
        if len(self._copied):
            return self._copied[rows].permute(0, 3, 1, 2).float() / 127.5 - 1
        return self.data.images(rows.cpu()).to(self.device)


def to_float(pixels: np.ndarray) -> Tensor:
    """Images [B,3,H,W] in [-1,1] of pixels uint8 [B,H,W,3]."""
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1


# ---------------------------------------------------------------- renders


def render_folder(root: Path, resolution: int, people: int | None = None) -> Path:
    """Folder of the chunks of renders; `people` as in `Renders`."""
    name = f"renders-{resolution}" if people is None else f"renders-{resolution}-of-{people}"
    return root / "data" / "pretraining" / "portraits" / name


def training_portrait(row: int, people: int | None = None) -> portraits.Portrait:
    """Portrait of training row `row`; with `people`, one of so many persons under new circumstances."""
    if people is None:
        return portraits.sample(FIRST_ID + row)
    return portraits.with_nuisance(portraits.sample(FIRST_ID + row % people), FIRST_ID + row)


def make_renders(root: Path, resolution: int, count: int, processes: int = 1, people: int | None = None) -> None:
    """Render the first `count` rows, rounded up to whole chunks; finished chunks stay."""
    target = render_folder(root, resolution, people)
    target.mkdir(parents=True, exist_ok=True)
    chunks = range(-(-count // RENDER_CHUNK))
    job = partial(_render_chunk, target=target, resolution=resolution, people=people)
    with ProcessPoolExecutor(processes) as pool:
        list(pool.map(job, [index for index in chunks if not (target / f"{index:05d}.npy").exists()]))


def _render_chunk(index: int, target: Path, resolution: int, people: int | None) -> None:
    path = target / f"{index:05d}.npy"
    chunk = [training_portrait(row, people) for row in range(index * RENDER_CHUNK, (index + 1) * RENDER_CHUNK)]
    pixels = np.stack([portraits.render(person, resolution) for person in chunk])
    labels.save(path.with_suffix(LABELS), labels.of(chunk))  # first: a chunk of images counts as finished
    partial_path = path.with_suffix(f".{os.getpid()}.partial")  # another training may render the same
    with open(partial_path, "wb") as file:
        np.save(file, pixels)
    os.replace(partial_path, path)


def unseen_renders(count: int, resolution: int) -> Tensor:
    """Renders [count,3,R,R] of `unseen_portraits`."""
    return to_float(np.stack([portraits.render(person, resolution) for person in unseen_portraits(count)]))


def unseen_portraits(count: int) -> list[portraits.Portrait]:
    """Portraits that neither a training nor the benchmark uses."""
    return [portraits.sample(FIRST_ID - 1 - row) for row in range(count)]


# ---------------------------------------------------------------- photographs


class _Part(NamedTuple):
    """Some photographs of one chunk."""

    photographs: dataset.Photographs
    resolution: int


def photograph_folder(domain: Domain, root: Path) -> Path:
    """Folder of the chunks of a domain's photographs."""
    return Path(root) / "data" / "pretraining" / domain.name / f"pictures-{domain.resolution}"


def make_photographs(domain: Domain, root: Path) -> None:
    """Read the domain's source into chunks, if the source or its settings changed; an interrupted run goes on.

    Raises InputError where there is no source, or where it cannot be used.
    """
    sizes = params.section(dataset.PrepareParams, root, "prepare", domain=domain)
    if sizes.source is None:
        raise InputError(
            f"domain '{domain.name}' has no images to learn from: write the path of a folder, .zip or .parquet file "
            f"into domains/{domain.name}.yaml, defaults.prepare.source"
        )
    wanted = len(dataset.row_ids(sizes))
    listing = dataset.source_listing(sizes.source, root, wanted)
    aligned = domain.aligned is not None and face_alignment.detector() is not None
    made_from = {**asdict(sizes), "source": str(listing.path), "files": listing.fingerprint, "aligned": aligned}
    del made_from["shard"]
    fingerprint = resumable.fingerprint_of({**made_from, "resolution": domain.resolution})
    target, threads = photograph_folder(domain, root), torch.get_num_threads()
    if (target / SOURCE_FILE).is_file() and (target / SOURCE_FILE).read_text() == fingerprint:
        return
    try:
        with resumable.open("pictures", domain.name, {"fingerprint": fingerprint}, root) as work:
            examined = dataset.inspect_photographs(work, listing, wanted, aligned)
            chosen = dataset.select_usable(listing, examined, sizes, domain.resolution)
            _print_account(
                domain, dataset.summary(listing, examined, chosen), domain.aligned is not None and not aligned
            )
            splits = [split for _, split in chosen.rows]  # training rows come first, then validation
            train, val = splits.count("train"), splits.count("val")
            rows = min(PHOTO_CHUNK, max(1, PHOTO_CHUNK_BYTES // (3 * domain.resolution**2)))
            parts = [slice(start, min(start + rows, train)) for start in range(0, train, rows)]
            jobs = [_Part(chosen.part(part), domain.resolution) for part in parts]
            processes.fill(work, "pictures", _write_chunk, jobs, processes.count(), ".npy")
            apart = slice(train, train + min(val, VALIDATION)) if val else slice(max(0, train - VALIDATION), train)
            job = _Part(chosen.part(apart), domain.resolution)
            processes.fill(work, f"pictures/{VALIDATION_FOLDER}", _write_chunk, [job], 1, ".npy")
            files.write_bytes(work.path(f"pictures/{SOURCE_FILE}"), fingerprint.encode())
            work.mark(f"pictures/{SOURCE_FILE}")
            work.publish({"pictures": target})
    finally:
        torch.set_num_threads(threads)  # reading uses one; trainings want all


def _write_chunk(job: _Part, path: Path) -> None:
    """A chunk as .npy, with one image in memory at a time."""
    count = len(job.photographs.rows)
    with files.replacing(path) as partial_path, partial_path.open("wb") as chunk:
        shape = {"descr": "|u1", "fortran_order": False, "shape": (count, job.resolution, job.resolution, 3)}
        np.lib.format.write_array_header_1_0(chunk, shape)
        for position in range(count):
            chunk.write(images.to_uint8(images.decode_png(job.photographs(position).image)).tobytes())


def _print_account(domain: Domain, account: dict[str, Any], unaligned: bool) -> None:
    """Print what is used and what is skipped, in a line or two."""
    skipped = [f"{one['name']} ({one['reason']})" for one in account["skipped"]]
    example = f"; skipped {len(skipped):,}, such as {skipped[0]}" if skipped else ""
    print(f"{domain.name}: {account['pictures']:,} images, test images included{example}", flush=True)
    if unaligned:
        print(face_alignment.missing_detector(domain.name), flush=True)


def unseen_photographs(domain: Domain, root: Path) -> Tensor:
    """Photographs [N,3,R,R] that no training uses."""
    chunks = sorted((photograph_folder(domain, root) / VALIDATION_FOLDER).glob("*.npy"))
    return to_float(np.concatenate([np.load(path) for path in chunks]))
