"""`deltaspace draw`: renders in a zip file, which a domain can have as its source."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from deltaspace.cli import app
from pipeline import portraits
from pipeline.storage import image_sources, images


def test_draw_writes_a_zip_of_renders_that_is_an_image_source(tmp_path: Path) -> None:
    out = tmp_path / "people.zip"
    assert app.run(["draw", str(out), "--count", "3", "--size", "32", "--style", "inked", "--first", "7"]) == 0
    listing = image_sources.list_images(out)
    assert [member.inside for member in listing.members] == ["7.png", "8.png", "9.png"]
    pixels, _ = images.read_rgb(image_sources.open_member(out, listing.members[1]), "it")
    expected = portraits.render(portraits.with_style(portraits.sample(8), "inked"), 32)
    np.testing.assert_array_equal(np.asarray(pixels), expected)


def test_draw_is_deterministic(tmp_path: Path) -> None:
    for name in ("one.zip", "two.zip"):
        assert app.run(["draw", str(tmp_path / name), "--count", "2", "--size", "16"]) == 0
    assert (tmp_path / "one.zip").read_bytes() == (tmp_path / "two.zip").read_bytes()


@pytest.mark.parametrize(
    "options", [["a.zip", "--style", "ink"], ["folder"], ["a.zip", "--count", "0"], ["a.zip", "--size", "7"]]
)
def test_draw_refuses_bad_options_in_one_line(
    options: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert app.run(["draw", *options]) == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1
    assert not list(tmp_path.iterdir())
