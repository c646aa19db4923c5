"""A folder of photographs: training images, unseen images, and how they are read."""

from __future__ import annotations

import shutil
from pathlib import Path

import grey_photographs
import numpy as np
import pytest
import tiny_project
import torch
from grey_photographs import TRAIN, VAL, R, domain_at, photos, shade, shades
from PIL import Image

from deltaspace.cli import app
from pipeline.storage.domains import Domain
from pretrain import datasets
from pretrain.common import Training
from pretrain.datasets import ImageChunks, Photographs

here, domain = grey_photographs.here, grey_photographs.domain  # fixtures, `here` of every test


def read(domain: Domain, root: Path) -> ImageChunks:
    """Training images of the domain's generator."""
    return Training(domain, root, "generator").training_images(0)


def unseen(domain: Domain, root: Path, *count: int) -> torch.Tensor:
    """Images kept apart from training."""
    return Training(domain, root, "encoder").unseen_images(*count)


def test_training_images_are_the_training_rows_in_the_order_of_file_names(domain: Domain, tmp_path: Path) -> None:
    data = read(domain, tmp_path)
    assert len(data) == TRAIN - VAL and len(data.chunks) == 3  # of seven each, the last one smaller
    rows = torch.tensor([0, 6, 7, 19, 13, 14, 0])
    assert shades(data.images(rows)) == [shade(row) for row in rows.tolist()]
    assert data.images(rows).shape == (7, 3, R, R)
    assert shades(unseen(domain, tmp_path)) == [shade(row) for row in range(TRAIN - VAL, TRAIN)]


def test_training_rows_are_those_of_the_prepare_stage(domain: Domain, tmp_path: Path) -> None:
    from pipeline.storage import dataset, params

    sizes = params.section(dataset.PrepareParams, tmp_path, "prepare", domain=domain)
    listing = dataset.source_listing(sizes.source, tmp_path, 1)
    (tmp_path / "photos/002.png").write_bytes(b"no picture")
    seen = [dataset.inspect(listing.path, member, False) for member in listing.members]
    prepared = dataset.select_usable(listing, seen, sizes, R)
    train = [position for position, (_, split) in enumerate(prepared.rows) if split == "train"]
    data = read(domain, tmp_path)
    assert len(data) == len(train)
    for row in (0, 1, 2, 3, 19):
        from pipeline.storage import images

        assert torch.equal(data.images(torch.tensor([row]))[0], images.decode_png(prepared(train[row]).image))


def test_chunks_are_memory_mapped(domain: Domain, tmp_path: Path) -> None:
    data = read(domain, tmp_path)
    assert all(isinstance(chunk, np.memmap) and chunk.dtype == np.uint8 for chunk in data.chunks)


def test_photographs_are_read_once(domain: Domain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read(domain, tmp_path)
    monkeypatch.setattr(datasets.dataset, "inspect_photographs", None)
    assert len(read(domain, tmp_path)) == TRAIN - VAL


def test_a_changed_folder_is_read_again_without_affecting_a_running_training(domain: Domain, tmp_path: Path) -> None:
    before = read(domain, tmp_path)
    Image.new("RGB", (R, R), (255, 255, 255)).save(tmp_path / "photos/000.png")
    after = read(domain, tmp_path)
    before.refresh()
    assert shades(before.images(torch.tensor([0, 1]))) == [shade(0), shade(1)]
    assert shades(after.images(torch.tensor([0, 1]))) == [255, shade(1)]


def test_another_number_of_validation_images_is_read_again(domain: Domain, tmp_path: Path) -> None:
    read(domain, tmp_path)
    fewer = read(domain_at(tmp_path, val=10), tmp_path)
    assert len(fewer) == TRAIN - 10
    assert shades(unseen(domain_at(tmp_path, val=10), tmp_path, 3)) == [
        shade(14),
        shade(15),
        shade(16),
    ]


def test_without_validation_rows_the_last_training_images_are_the_unseen_ones(tmp_path: Path) -> None:
    photos(tmp_path / "photos")
    domain = domain_at(tmp_path, val=0)
    assert len(unseen(domain, tmp_path)) == TRAIN == len(Photographs(domain, tmp_path))


def test_unreadable_photographs_are_skipped_and_named(
    domain: Domain, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "photos/003.png").write_bytes(b"no picture")
    data = read(domain, tmp_path)
    assert shade(3) not in shades(data.images(torch.arange(len(data))))
    assert "skipped 1, such as 003.png" in capsys.readouterr().out


@pytest.mark.parametrize("part", ["generator", "encoder", "denoiser"])
def test_a_missing_source_is_one_line_that_names_the_setting(
    part: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    domain_at(tmp_path, source=None)
    shutil.copytree(tiny_project.make(tmp_path / "made") / "data/pretrained/tiny", tmp_path / "data/pretrained/cats")
    assert app.run(["pretrain", "cats", part]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "into domains/cats.yaml, defaults.prepare.source" in line
    assert not (tmp_path / "data/pretraining").exists()


def test_interrupted_reading_resumes(domain: Domain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written, write = [], datasets._write_chunk

    def stopped(job: datasets._Part, path: Path) -> None:
        if len(written) == 2:
            raise KeyboardInterrupt
        written.append(path)
        write(job, path)

    monkeypatch.setattr(datasets, "_write_chunk", stopped)
    with pytest.raises(KeyboardInterrupt):
        read(domain, tmp_path)
    assert not datasets.photograph_folder(domain, tmp_path).exists()
    written.clear()
    monkeypatch.setattr(datasets, "_write_chunk", lambda job, path: (written.append(path), write(job, path)))
    assert len(read(domain, tmp_path)) == TRAIN - VAL
    assert len(written) == 2  # the third chunk, and the unseen images


def test_reading_restores_the_number_of_threads(domain: Domain, tmp_path: Path) -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        read(domain, tmp_path)
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)
