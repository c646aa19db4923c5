"""The pictures that portraits backbones learn from: renders of ids no stage of the DAG ever uses."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from itertools import takewhile
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pipeline import portraits
from pretrain import labels
from pretrain.labels import Facts
from pretrain.pictures import Pictures, floats

FIRST_ID = 1_000_000  # design.md section 4: people of the benchmark have smaller ids
CHUNK = 5_000
FACTS = ".facts.npz"


def folder(root: Path, resolution: int, people: int | None = None) -> Path:
    name = f"renders-{resolution}" if people is None else f"renders-{resolution}-of-{people}"
    return root / "data" / "pretraining" / "portraits" / name


def person(row: int, people: int | None = None) -> portraits.Portrait:
    """Training person `row`; with `people`, there are only so many, each met again in other circumstances."""
    if people is None:
        return portraits.sample(FIRST_ID + row)
    return portraits.with_nuisance(portraits.sample(FIRST_ID + row % people), FIRST_ID + row)


def _make_chunk(index: int, target: Path, resolution: int, people: int | None) -> None:
    path = target / f"{index:05d}.npy"
    rows = range(index * CHUNK, (index + 1) * CHUNK)
    images = np.stack([portraits.render(person(row, people), resolution) for row in rows])
    labels.save(
        path.with_suffix(FACTS), labels.of([person(row, people) for row in rows])
    )  # first: they go with pictures
    partial_path = path.with_suffix(f".{os.getpid()}.partial")  # another training may draw the same
    with open(partial_path, "wb") as file:
        np.save(file, images)
    os.replace(partial_path, path)


def make(root: Path, resolution: int, count: int, processes: int = 1, people: int | None = None) -> None:
    """Render the first `count` training people, rounded up to whole chunks; what is there already stays."""
    target = folder(root, resolution, people)
    target.mkdir(parents=True, exist_ok=True)
    chunks = range(-(-count // CHUNK))
    work = partial(_make_chunk, target=target, resolution=resolution, people=people)
    with ProcessPoolExecutor(processes) as pool:
        list(pool.map(work, [index for index in chunks if not (target / f"{index:05d}.npy").exists()]))


class Renders(Pictures):
    """The unbroken run of finished chunks from the first; `refresh` sees those that another process has finished."""

    def __init__(self, root: Path, resolution: int, people: int | None = None) -> None:
        self.folder, self.of = folder(root, resolution, people), people
        self._told: list[Facts] = []  # per chunk
        super().__init__()

    def files(self) -> list[Path]:
        paths = (self.folder / f"{index:05d}.npy" for index in range(100_000))
        return list(takewhile(Path.exists, paths))

    def people(self, rows: Tensor) -> Iterator[portraits.Portrait]:
        return (person(row, self.of) for row in rows.tolist())

    def facts(self) -> Facts:
        """Of all pictures; those of chunks drawn without them are worked out now, about 0.2 ms each, and kept."""
        for index in range(len(self._told), len(self.chunks)):
            path = self.folder / f"{index:05d}{FACTS}"
            if not path.exists():
                start = int(self.ends[index]) - len(self.chunks[index])
                labels.save(path, labels.of(list(self.people(torch.arange(start, int(self.ends[index]))))))
            self._told.append(labels.load(path))
        return labels.joined(self._told)


def unseen(count: int, resolution: int) -> Tensor:
    """Renders [count,3,R,R] of people that neither a training nor the benchmark meets."""
    people = (portraits.sample(FIRST_ID - 1 - row) for row in range(count))
    images = np.stack([portraits.render(someone, resolution) for someone in people])
    return floats(images)
