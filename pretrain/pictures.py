"""What trainings read their pictures through: chunks of uint8 on disk, of which only what is needed is in memory."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from pipeline.values import InputError

if TYPE_CHECKING:
    from pipeline import portraits


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


def floats(pixels: np.ndarray) -> Tensor:
    """uint8 [B,H,W,3] -> images [B,3,H,W] in [-1,1]."""
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1
