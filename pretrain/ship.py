"""Copies mapper, relevance and s_stats to data/pretrained/, so that `deltaspace edit` works before any run."""

from __future__ import annotations

import shutil
from pathlib import Path

from pipeline.networks import SHIPPED, Networks
from pipeline.runtime import files
from pipeline.runtime.errors import InputError
from pipeline.storage.artefacts import DomainPaths
from pretrain.common import Training


def promote(job: Training) -> None:
    """Copy the workflow's files to the domain's weights. Raises InputError when one is missing."""
    paths, networks = DomainPaths(job.domain, job.root), Networks(job.domain, job.root)
    for name in SHIPPED:
        output: Path = getattr(paths, name)
        if not output.exists():
            raise InputError(f"{output} is missing: run `dvc repro` first")
        with files.replacing(networks.shipped(name)) as partial:
            shutil.copyfile(output, partial)
