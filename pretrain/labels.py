"""What a renderer tells of the pictures it draws: numbers and labels, worked out once and kept beside the pictures."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pipeline import portraits

HIDDEN = -100  # cross entropy's own sign for "no label"


@dataclass(frozen=True)
class Facts:
    """Of N pictures: numbers [N,G] in 0..1, what the face was drawn from; values [N,A], per attribute the index of its
    value, HIDDEN where the picture cannot show it."""

    numbers: Tensor
    values: Tensor

    def to(self, device: str) -> Facts:
        return Facts(self.numbers.to(device), self.values.to(device))

    def labels(self, rows: Tensor) -> dict[str, Tensor]:
        """attribute -> index of the value [B] of these pictures."""
        return dict(zip(portraits.ATTRIBUTES, self.values[rows].long().unbind(1), strict=True))


def of(people: Sequence[portraits.Portrait]) -> Facts:
    """The facts of pictures of these people."""
    truths = [portraits.attributes(person) for person in people]
    seen = [portraits.visible(person) for person in people]
    values = [
        [known.index(t[name]) if v[name] else HIDDEN for name, known in portraits.ATTRIBUTES.items()]
        for t, v in zip(truths, seen, strict=True)
    ]
    return Facts(torch.tensor([astuple(person.identity) for person in people]), torch.tensor(values, dtype=torch.int8))


def save(path: Path, facts: Facts) -> None:
    """Write a chunk's facts, whole or not at all."""
    partial = path.with_suffix(f".{os.getpid()}.partial")
    with open(partial, "wb") as file:
        np.savez(file, numbers=facts.numbers.numpy(), values=facts.values.numpy())
    os.replace(partial, path)


def load(path: Path) -> Facts:
    """What `save` wrote."""
    with np.load(path) as content:
        return Facts(torch.from_numpy(content["numbers"]), torch.from_numpy(content["values"]))


def joined(parts: Sequence[Facts]) -> Facts:
    """The facts of all pictures of some chunks, in order."""
    return Facts(torch.cat([part.numbers for part in parts]), torch.cat([part.values for part in parts]))
