"""Ships what `dvc repro` made (mapper, relevance, spread of s), so that `deltaspace edit` works before any repro."""

from __future__ import annotations

import shutil
from pathlib import Path

from pipeline.networks import SHIPPED, Backbones
from pipeline.runtime import files
from pipeline.runtime.errors import InputError
from pipeline.storage.artefacts import Layout
from pipeline.storage.domains import Domain


def train(
    domain: Domain,
    root: Path,
    minutes: float | None = None,
    images: int | None = None,
    resume: bool = True,
    device: str = "cpu",
) -> None:
    """Nothing is trained here: these are outputs of the workflow."""


def promote(domain: Domain, root: Path) -> None:
    """Copy the workflow's files to the domain's weights; InputError when the workflow has not made them."""
    layout, shipped = Layout(domain, root), Backbones(domain, root)
    for name in SHIPPED:
        made: Path = getattr(layout, name)
        if not made.exists():
            raise InputError(f"{made} is missing: run `dvc repro` first")
        with files.replacing(shipped.shipped(name)) as partial:
            shutil.copyfile(made, partial)
