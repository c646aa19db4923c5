"""The stage `prepare` on photographs: unusable images are skipped and listed, faces are aligned on demand."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_project
import yaml
from PIL import Image

from pipeline.runtime.errors import InputError
from pipeline.storage import artefacts, dataset, domains, face_alignment, images
from stages import prepare
from stages._stage import Stage

R = tiny_project.R
FACE = np.array([(30.0, 40.0), (50.0, 42.0), (32.0, 64.0), (47.0, 65.0)])
Prepare = Callable[..., Stage]


@pytest.fixture
def prepared(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Prepare:
    """Run the stage on a folder of photographs, in this process."""
    root = tiny_project.copy(tiny, tmp_path / "project")
    monkeypatch.setenv("DELTASPACE_ROOT", str(root))
    monkeypatch.setenv("DELTASPACE_WORKERS", "1")

    def run(source: Path, aligned: str | None = None, **sizes: int) -> Stage:
        params = yaml.safe_load((root / "params.yaml").read_text())
        params["prepare"] |= {"source": str(source), "train": 5, "val": 2, "test": 3, "shard": 4, **sizes}
        (root / "params.yaml").write_text(yaml.safe_dump(params))
        stage = Stage("prepare", root, replace(domains.load("tiny", root), renderer=None, aligned=aligned))  # type: ignore[arg-type]
        prepare.main(stage)
        return stage

    return run


def photographs(folder: Path, count: int = 8) -> Path:
    folder.mkdir()
    for place in range(count):
        pixels = np.random.default_rng(place).integers(0, 256, (90, 80, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{place:02}.png")
    return folder


def account(stage: Stage) -> dict[str, Any]:
    return json.loads(stage.paths.prepared.read_text(encoding="utf-8"))


def test_unusable_images_are_skipped_counted_and_named(
    prepared: Prepare, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = photographs(tmp_path / "photos", 11)
    (folder / "01.png").write_bytes((folder / "01.png").read_bytes()[:5000])
    (folder / "04.png").write_bytes(b"")
    Image.new("RGB", (4, 4)).save(folder / "05.png")
    (folder / "größe.txt").write_text("x")
    stage = prepared(folder)
    table = artefacts.read(stage.paths.images, "images")
    assert table["id"].tolist() == [0, 1, 2, 3, 4, 58_000, 58_001, 58_002]
    found = account(stage)
    assert found["pictures"] == 8 and found["searched_for_faces"] == 0
    assert [row["name"] for row in found["skipped"]] == ["01.png", "04.png", "05.png", "größe.txt"]
    assert all(str(tmp_path) not in row["reason"] for row in found["skipped"])
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("prepare: ")]
    assert line.startswith("prepare: 8 pictures; skipped 4, such as 01.png (it cannot be decoded")
    assert line.endswith("all in data/tiny/prepared.json")


def test_images_beyond_the_requested_number_are_not_read(
    prepared: Prepare, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dataset, "INSPECTED_AT_ONCE", 2)
    folder = photographs(tmp_path / "photos", 14)
    (folder / "03.png").write_bytes(b"")
    (folder / "13.png").write_bytes(b"")  # not reached
    stage = prepared(folder)
    assert account(stage)["not_needed"] == 5  # one of them was inspected
    assert [row["name"] for row in account(stage)["skipped"]] == ["03.png"]


def test_bytes_do_not_depend_on_how_many_are_inspected_at_once(
    prepared: Prepare, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = photographs(tmp_path / "photos")
    contents = []
    for looks in (64, 3):
        monkeypatch.setattr(dataset, "INSPECTED_AT_ONCE", looks)
        stage = prepared(folder)
        made = [*sorted(stage.paths.images.iterdir()), stage.paths.prepared]
        contents.append([(path.name, path.read_bytes()) for path in made])
    assert contents[0] == contents[1] and len(contents[0]) == 3


def test_a_source_without_usable_images_is_one_line_and_writes_nothing(prepared: Prepare, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    for place in range(9):
        (tmp_path / f"photos/{place}.jpg").write_bytes(b"\xff\xd8\xff")
    with pytest.raises(InputError, match=r"only 0 of the 9 pictures in .*photos can be used.*; 0\.jpg: it ") as caught:
        prepared(tmp_path / "photos")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "project/data/tiny/images").exists()


def test_an_aligned_domain_aligns_faces_and_records_it_in_the_header(
    prepared: Prepare, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = photographs(tmp_path / "photos")
    without = {np.asarray(Image.open(folder / name)).tobytes() for name in ("00.png", "06.png")}
    several = {np.asarray(Image.open(folder / "02.png")).tobytes()}

    def find(picture: Image.Image) -> list[np.ndarray]:
        content = np.asarray(picture).tobytes()
        return [] if content in without else [FACE, FACE / 2] if content in several else [FACE]

    monkeypatch.setattr(face_alignment, "detector", lambda: find)
    stage = prepared(folder, "ffhq")
    assert artefacts.metadata(stage.paths.images, "images")["aligned"] == "ffhq"
    found = account(stage)
    assert (found["searched_for_faces"], found["without_a_face"], found["with_several_faces"]) == (8, 2, 1)
    assert "2 of them without a face (cropped to their centre), 1 with several" in capsys.readouterr().err
    table = artefacts.read(stage.paths.images, "images")
    for place in range(8):
        picture = Image.open(folder / f"{place:02}.png").convert("RGB")
        centre = images.squared(picture, R, [])
        wanted = centre if place in (0, 6) else face_alignment.align(picture, face_alignment.quad(FACE), R)
        assert np.array_equal(images.to_uint8(images.decode_png(table["image"][place])), np.asarray(wanted))


def test_without_a_face_detector_an_aligned_domain_crops_centres_and_prints_a_line(
    prepared: Prepare, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = photographs(tmp_path / "photos")
    monkeypatch.setattr(face_alignment, "detector", lambda: None)
    stage = prepared(folder, "ffhq")
    assert capsys.readouterr().err.count("pip install 'deltaspace[faces]'") == 1
    assert artefacts.metadata(stage.paths.images, "images")["aligned"] is None
    plain = [path.read_bytes() for path in sorted(stage.paths.images.iterdir())]
    stage = prepared(folder)
    assert "aligned" not in artefacts.metadata(stage.paths.images, "images")
    assert "deltaspace[faces]" not in capsys.readouterr().err
    assert len(plain) == len(list(stage.paths.images.iterdir()))
