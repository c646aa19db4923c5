"""Labels of rendered portraits: geometry and attribute values, computed once and kept beside the images."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pipeline import portraits

HIDDEN = -100  # `ignore_index` of torch's cross entropy


@dataclass(frozen=True)
class Labels:
    """Labels of N images.

    geometry: identity parameters [N,G] in 0..1 that the face was rendered from.
    attributes: index of each attribute's value [N,A]; HIDDEN where the image cannot show it.
    """

    geometry: Tensor
    attributes: Tensor

    def to(self, device: str) -> Labels:
        """Copy to a device."""
        return Labels(self.geometry.to(device), self.attributes.to(device))

    def of_rows(self, rows: Tensor) -> dict[str, Tensor]:
        """attribute -> index of its value [B] for rows [B]."""
        return dict(zip(portraits.ATTRIBUTES, self.attributes[rows].long().unbind(1), strict=True))


def of(people: Sequence[portraits.Portrait]) -> Labels:
    """Labels of portraits."""
    values = [portraits.attributes(person) for person in people]
    visible = [portraits.visible(person) for person in people]
    indices = [
        [known.index(value[name]) if seen[name] else HIDDEN for name, known in portraits.ATTRIBUTES.items()]
        for value, seen in zip(values, visible, strict=True)
    ]
    geometry = torch.tensor([astuple(person.identity) for person in people])
    return Labels(geometry, torch.tensor(indices, dtype=torch.int8))


def save(path: Path, labels: Labels) -> None:
    """Write a chunk's labels, whole or not at all."""
    partial = path.with_suffix(f".{os.getpid()}.partial")
    with open(partial, "wb") as file:
        np.savez(file, geometry=labels.geometry.numpy(), attributes=labels.attributes.numpy())
    os.replace(partial, path)


def load(path: Path) -> Labels:
    """Read what `save` wrote."""
    with np.load(path) as content:
        return Labels(torch.from_numpy(content["geometry"]), torch.from_numpy(content["attributes"]))


def concatenate(parts: Sequence[Labels]) -> Labels:
    """Labels of several chunks, in order."""
    return Labels(torch.cat([part.geometry for part in parts]), torch.cat([part.attributes for part in parts]))
