"""The command line on photographs of faces: which face is aligned, and what is said where none is."""

from __future__ import annotations

import json
from pathlib import Path

import command_line
import numpy as np
import pytest
import tiny_project
from command_line import TEXT, Deltaspace, Outcome, R, edit, photo
from PIL import Image
from portrait_landmarks import landmarks

from pipeline import portraits
from pipeline.storage import face_alignment

project, deltaspace = command_line.project, command_line.deltaspace  # fixtures


def turned_portrait(row: int, degrees: float, size: int = 160) -> tuple[np.ndarray, np.ndarray]:
    """A portrait, turned about its middle; and its landmarks in pixels."""
    person = portraits.sample(row)
    picture = Image.fromarray(portraits.render(person, size)).rotate(-degrees, Image.Resampling.BICUBIC)
    angle, middle = np.radians(degrees), size / 2
    matrix = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    return np.asarray(picture), (landmarks(person) * size - middle) @ matrix.T + middle - 0.5


@pytest.fixture
def aligned(project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The tiny project, whose domain says that its faces are aligned; two.png and one.png to edit, with a finder."""
    root = tiny_project.copy(project, tmp_path / "project")
    monkeypatch.setenv("DELTASPACE_ROOT", str(root))
    path = root / "domains/tiny.yaml"
    path.write_text(path.read_text().replace("aligned: null", "aligned: ffhq"))
    small, at_small = turned_portrait(5, 10, 80)
    large, at_large = turned_portrait(9, -20)
    two = np.full((200, 300, 3), 127, np.uint8)
    two[60:140, 10:90], two[20:180, 120:280] = small, large
    found = {(300, 200): [at_large + np.array((120, 20)), at_small + np.array((10, 60))], (160, 160): [at_large]}
    Image.fromarray(two).save(tmp_path / "two.png")
    Image.fromarray(large).save(tmp_path / "one.png")
    Image.fromarray(two[:, :100]).save(tmp_path / "none.png")
    monkeypatch.setattr(face_alignment, "detector", lambda: lambda picture: found.get(picture.size, []))
    return tmp_path


def inverted(deltaspace: Deltaspace, *arguments: str) -> tuple[Outcome, np.ndarray]:
    """The outcome, and the picture as it was cut out: the left one of the grid."""
    outcome = deltaspace("invert", *arguments, "--domain", "tiny", "--device", "cpu", "--json", "-o", "out")
    grid = np.asarray(Image.open("out/" + Path(arguments[0]).stem + "-grid.png").convert("RGB"))
    return outcome, grid[8 : 8 + 8 * R : 8, 8 : 8 + 8 * R : 8]


def test_the_largest_face_is_aligned_with_a_warning_and_another_one_on_demand(
    deltaspace: Deltaspace, aligned: Path
) -> None:
    alone, large = inverted(deltaspace, "one.png")
    assert alone.code == 0 and "found" not in alone.err, alone.err
    assert "aligned by its face" in json.loads(alone.out)["pictures"][0]["notes"]
    outcome, largest = inverted(deltaspace, "two.png")
    warning = "two.png: 2 faces found, took the largest, number 2 from the left: --face N takes another"
    assert warning in json.loads(outcome.out)["warnings"] and warning in outcome.err
    assert np.abs(largest.astype(int) - large).mean() < 12
    first, small = inverted(deltaspace, "two.png", "--face", "1")
    second, again = inverted(deltaspace, "two.png", "--face", "2")
    assert "faces found" not in first.err + second.err
    assert np.array_equal(again, largest) and np.abs(small.astype(int) - largest).mean() > 20


def test_a_face_that_is_not_there_and_a_picture_without_one(deltaspace: Deltaspace, aligned: Path) -> None:
    assert "--face 3: 2 faces found in two.png, give 1 to 2" in deltaspace(*edit("two.png", TEXT, "--face", "3")).line
    assert "--face 1: 0 faces found in none.png" in deltaspace(*edit("none.png", TEXT, "--face", "1")).line
    outcome = deltaspace(*edit("none.png", TEXT))
    assert outcome.code == 0 and "none.png: no face found, cropped to its centre and not aligned" in outcome.err
    assert deltaspace(*edit("one.png", TEXT, "--face", "0")).code == 2
    assert "give an image" in deltaspace(*edit("--sample", "1", TEXT, "--face", "1")).line


def test_without_the_extra_one_line_says_that_nothing_was_aligned(
    deltaspace: Deltaspace, aligned: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(face_alignment, "detector", lambda: None)
    outcome = deltaspace(*edit(".", TEXT))
    assert outcome.code == 0 and outcome.err.count("not aligned") == 1, outcome.err
    assert "pip install 'deltaspace[faces]'" in outcome.err
    assert "pip install 'deltaspace[faces]'" in deltaspace(*edit("one.png", TEXT, "--face", "1")).line


def test_a_domain_without_alignment_says_nothing_of_faces(
    deltaspace: Deltaspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(face_alignment, "detector", lambda: pytest.fail("nobody asked for faces"))
    photo(tmp_path / "me.png")
    assert "aligned" not in deltaspace(*edit("me.png", TEXT)).err
    assert "leave --face out" in deltaspace(*edit("me.png", TEXT, "--face", "1")).line
