from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from deltaspace.outputs import MAX_SLUG, OutputFolder, slug, stem_of
from pipeline.runtime.errors import InputError
from pipeline.storage.images import save_grid


@given(st.text())
def test_a_slug_of_any_text_is_a_short_part_of_a_file_name(text: str) -> None:
    name = slug(text)
    assert name and len(name.encode("utf-8", "surrogateescape")) <= MAX_SLUG
    assert not set(name) & set("/\\\0 .\n")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Face with Red Hair!", "face-with-red-hair"),
        ("visage aux cheveux roux é", "visage-aux-cheveux-roux-é"),
        ("وجه بشعر أحمر", "وجه-بشعر-أحمر"),
        ("मुस्कुराता चेहरा", "मुस्कुराता-चेहरा"),
        ("../../etc/passwd", "etc-passwd"),
        ("👋", "prompt"),
    ],
)
def test_a_slug_keeps_letters_of_every_script(text: str, expected: str) -> None:
    assert slug(text) == expected


def test_no_two_results_share_a_file_nor_replace_an_input(tmp_path: Path) -> None:
    reading = tmp_path / "a-red.png"
    folder = OutputFolder(tmp_path, [reading])
    names = [folder.result(*parts).name for parts in [("a", "red"), ("A", "Red"), ("a", "red")]]
    assert names == ["a-red-2.png", "A-Red.png", "a-red-3.png"]


def test_a_png_as_output_is_for_one_result_only(tmp_path: Path) -> None:
    folder = OutputFolder(tmp_path / "x.png", single=True)
    assert folder.result("a", "red") == tmp_path / "x.png"
    assert folder.grid("a") == tmp_path / "x-grid.png"
    with pytest.raises(InputError, match="one file, but several"):
        OutputFolder(tmp_path / "x.png")


@pytest.mark.parametrize("below", ["", "inner", "inner/deeper"])
def test_a_file_where_the_folder_should_be_is_refused(tmp_path: Path, below: str) -> None:
    file = tmp_path / "results"
    file.write_text("mine")
    with pytest.raises(InputError, match="is a file, not a folder"):
        OutputFolder(file / below)
    assert file.read_text() == "mine"


def test_the_image_itself_is_never_the_output(tmp_path: Path) -> None:
    photo = tmp_path / "x.png"
    photo.write_bytes(b"photo")
    with pytest.raises(InputError, match="is the image itself"):
        OutputFolder(photo, [photo], single=True)


def test_a_grid_enlarges_small_images_and_keeps_their_order(tmp_path: Path) -> None:
    black, white = -torch.ones(3, 16, 16), torch.ones(3, 16, 16)
    save_grid(tmp_path / "grid.png", [[black, white], [white, black]])
    picture = Image.open(tmp_path / "grid.png")
    assert picture.width == picture.height >= 256
    corners = [picture.getpixel((x, y))[0] for y in (64, picture.height - 64) for x in (64, picture.width - 64)]
    assert corners == [0, 255, 255, 0]


def test_a_long_name_is_cut_between_characters() -> None:
    assert stem_of(Path("é" * 200 + ".png")) == "é" * 50
