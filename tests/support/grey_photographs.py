"""A domain of photographs: grey images, each of another shade."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny_project
import yaml
from PIL import Image
from torch import Tensor

from pipeline.storage import domains
from pipeline.storage.domains import Domain
from pretrain import datasets

R, D, BATCH, COUNT = tiny_project.R, tiny_project.D, 8, 30
TRAIN, VAL, TEST = 24, 4, 5  # 20 training images, 4 validation, 5 test; one is left over
PLANS: dict[str, dict[str, Any]] = {
    "generator": {
        "model": {
            "size": R,
            "style_dim": D,
            "n_mlp": 2,
            "widths": {4: 8, 8: 7, 16: 6},
            "discriminator": {16: 4, 8: 6, 4: 9},
        },
        "images": 2 * BATCH,
        "images_half_size": BATCH,
        "batch": BATCH,
    },
    "encoder": {
        "model": {"resolution": R, "widths": [6, 8, 12, 16], "rows": 6, "style_dim": D},
        "images": 2 * BATCH,
        "batch": BATCH,
        "progressive": [8, 8],
    },
    "denoiser": {
        "model": {"channels": 8, "mult": [1, 2], "attention": [], "time_dim": 16, "style_dim": 12},
        "images": 2 * BATCH,
        "batch": BATCH,
    },
}


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DELTASPACE_ROOT", str(tmp_path))
    monkeypatch.setenv("DELTASPACE_WORKERS", "1")
    monkeypatch.setattr(datasets, "PHOTO_CHUNK", 7)


def shade(position: int) -> int:
    return 8 * position


def photos(folder: Path, count: int = COUNT) -> Path:
    """Write grey images, each of another shade, of several sizes."""
    folder.mkdir(exist_ok=True)
    for position in range(count):
        Image.new("RGB", (R + position % 3, R + 4), (shade(position),) * 3).save(folder / f"{position:03}.png")
    return folder


def domain_at(root: Path, source: str | None = "photos", **sizes: Any) -> Domain:
    """Write a project with one domain of photographs, and load it."""
    params = {"prepare": {"source": None, "train": None, "val": None, "test": None, "test_start": 100, "shard": 8}}
    (root / "params.yaml").write_text(yaml.safe_dump(params))
    (root / "domains").mkdir(exist_ok=True)
    prepare = {"source": source, "train": TRAIN, "val": VAL, "test": TEST, **sizes}
    content = {"resolution": R, "neutral": "cat", "level_split": [2, 4]}
    content |= {"defaults": {"prepare": prepare, "pretrain": PLANS}}
    (root / "domains/cats.yaml").write_text(yaml.safe_dump(content))
    return domains.load("cats", root)


@pytest.fixture
def domain(tmp_path: Path) -> Domain:
    photos(tmp_path / "photos")
    return domain_at(tmp_path)


def shades(images: Tensor) -> list[int]:
    assert (images == images[:, :1, :1, :1]).all()
    return ((images[:, 0, 0, 0] + 1) * 127.5).round().int().tolist()
