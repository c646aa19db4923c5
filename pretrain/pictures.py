"""What trainings read their pictures through: chunks of uint8 on disk, of which only what is needed is in memory."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from pipeline.runtime.errors import InputError

if TYPE_CHECKING:
    from pipeline import portraits


SHARE = 0.3  # of a GPU's memory that pictures may take: while more are fetched, they are there twice


class Pictures:
    """Finished chunks [N,H,W,3], together one array. Sizes of chunks may differ."""

    def __init__(self) -> None:
        self.refresh()

    def files(self) -> list[Path]:
        """The chunks in order."""
        raise NotImplementedError

    def refresh(self) -> None:
        """See chunks that another process has finished since."""
        self.chunks = [np.load(path, mmap_mode="r") for path in self.files()]
        self.ends = np.cumsum([len(chunk) for chunk in self.chunks])

    def __len__(self) -> int:
        return int(self.ends[-1]) if self.chunks else 0

    def images(self, rows: Tensor) -> Tensor:
        """rows [B] -> images [B,3,R,R] in [-1,1]."""
        places = np.searchsorted(self.ends, rows.numpy(), side="right")
        starts = (int(row) - int(self.ends[at]) for row, at in zip(rows, places))  # from the chunk's end: negative
        return floats(np.stack([self.chunks[at][back] for at, back in zip(places, starts)]))

    def people(self, rows: Tensor) -> Iterator[portraits.Portrait]:
        """Who is shown, where a renderer knows."""
        raise InputError("nobody knows what photographs show: only drawn pictures can be copied or described")


class Held:
    """Pictures for training on `device`: on a GPU with room for them in its own memory, elsewhere read as needed.

    A GPU would wait for a processor that gathers pictures from files: one core manages some 10,000 a second.
    """

    def __init__(self, data: Pictures, device: str) -> None:
        self.data, self.device = data, device
        self._here = torch.zeros(0, dtype=torch.uint8)  # [n,H,W,3], the first n
        self.refresh()

    def refresh(self) -> None:
        """See, and fetch, chunks that another process has finished since."""
        self.data.refresh()
        if torch.device(self.device).type != "cuda" or not self.data.chunks:
            return
        size = sum(chunk.nbytes for chunk in self.data.chunks)
        if size > SHARE * torch.cuda.get_device_properties(self.device).total_memory:
            self._here = torch.zeros(0, dtype=torch.uint8)
            return
        there = np.searchsorted(self.data.ends, len(self._here), side="right")  # chunks that are here already
        fresh = [torch.from_numpy(np.array(chunk)).to(self.device) for chunk in self.data.chunks[there:]]
        if fresh:
            self._here = torch.cat([self._here, *fresh] if len(self._here) else fresh)

    def __len__(self) -> int:
        return len(self.data)

    def images(self, rows: Tensor) -> Tensor:
        """rows [B] on the device -> images [B,3,R,R] in [-1,1] there."""
        if len(self._here):
            return self._here[rows].permute(0, 3, 1, 2).float() / 127.5 - 1
        return self.data.images(rows.cpu()).to(self.device)


def floats(pixels: np.ndarray) -> Tensor:
    """uint8 [B,H,W,3] -> images [B,3,H,W] in [-1,1]."""
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1
