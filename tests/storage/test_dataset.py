"""Rows of the dataset: rendered ones, usable photographs, and the account of skipped ones."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from pipeline import portraits
from pipeline.runtime.errors import InputError
from pipeline.storage import dataset, face_alignment, image_sources, images


def sizes(train: int = 6, val: int = 2, test: int = 3, start: int = 58_000) -> dataset.PrepareParams:
    return dataset.PrepareParams(None, train, val, test, start, 4)


@given(st.integers(1, 50), st.integers(0, 49), st.integers(0, 30))
def test_validation_is_the_end_of_train_and_test_ids_start_at_the_papers_border(
    train: int, val: int, test: int
) -> None:
    if val >= train:
        with pytest.raises(ValueError, match="none to train on"):
            sizes(train, val, test)
        return
    rows = dataset.row_ids(sizes(train, val, test))
    splits = [split for _, split in rows]
    assert splits == ["train"] * (train - val) + ["val"] * val + ["test"] * test
    ids = [row for row, _ in rows]
    assert ids == sorted(set(ids))
    assert all((row >= 58_000) == (split == "test") for row, split in rows)


def test_train_and_test_ids_cannot_overlap() -> None:
    with pytest.raises(ValueError, match="test_start"):
        sizes(train=11, start=10)


def test_a_rendered_row_is_the_portrait_of_its_id_with_its_parameters() -> None:
    rows = dataset.row_ids(sizes())
    row = dataset.Rendered(16, tuple(rows))(7)
    assert (row.id, row.split) == (58_001, "test")
    person = portraits.from_dict(json.loads(row.params or ""))
    assert person == portraits.sample(58_001)
    assert (images.to_uint8(images.decode_png(row.image)) == portraits.render(person, 16)).all()


def photo(path: Path, shade: int) -> Path:
    Image.fromarray(np.full((14, 11, 3), shade, np.uint8)).save(path)
    return path


def looked_at(root: Path, params: dataset.PrepareParams) -> tuple[image_sources.Listing, list[dataset.Inspection]]:
    listing = dataset.source_listing(".", root, len(dataset.row_ids(params)))
    return listing, [dataset.inspect(root, member, False) for member in listing.members]


def test_too_few_images_and_a_missing_source_are_one_line_with_advice(tmp_path: Path) -> None:
    photo(tmp_path / "one.png", 1)
    with pytest.raises(InputError, match=r"holds 1 pictures, 2 are asked for: lower prepare\.train"):
        dataset.source_listing(".", tmp_path, 2)
    with pytest.raises(InputError, match=r"prepare\.source"):
        dataset.source_listing(None, tmp_path, 2)


def test_an_unusable_image_is_replaced_by_another(tmp_path: Path) -> None:
    for place in range(12):
        photo(tmp_path / f"{place:02}.png", 20 * place)
    (tmp_path / "03.png").write_bytes(b"\x89PNG broken")
    listing, seen = looked_at(tmp_path, sizes())
    used = pickle.loads(
        pickle.dumps(dataset.select_usable(listing, seen, sizes(), 8))
    )  # as it goes to worker processes
    rows = [used(place) for place in range(len(used.rows))]
    assert [(row.id, row.split) for row in rows] == dataset.row_ids(sizes())
    shades = [int(images.to_uint8(images.decode_png(row.image)).mean()) for row in rows]
    assert shades == [0, 20, 40, 80, 100, 120, 140, 160, 180]
    part = used.part(slice(2, 4))
    assert [part(place).id for place in range(len(part.rows))] == [2, 3]
    account = dataset.summary(listing, seen, used)
    assert account["pictures"] == 9 and account["not_needed"] == 2
    assert [row["name"] for row in account["skipped"]] == ["03.png"]
    line = dataset.summary_line(account, "x.json")
    assert line.startswith("9 pictures; skipped 1, such as 03.png (it ") and line.endswith("all in x.json")


def test_without_a_replacement_there_is_one_training_image_fewer(tmp_path: Path) -> None:
    for place in range(9):
        photo(tmp_path / f"{place}.png", 20 * place)
    (tmp_path / "8.png").write_bytes(b"")
    listing, seen = looked_at(tmp_path, sizes())
    used = dataset.select_usable(listing, seen, sizes(), 8)
    assert list(used.rows) == dataset.row_ids(sizes(train=5))
    for name in ("0.png", "1.png", "2.png"):
        (tmp_path / name).write_bytes(b"no picture")
    listing, seen = looked_at(tmp_path, sizes())
    with pytest.raises(InputError, match=r"only 5 of the 9 pictures in .* can be used, too few .*; 0.png: it is not a"):
        dataset.select_usable(listing, seen, sizes(), 8)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "I;16", "F"])
def test_pictures_of_every_mode_are_used(tmp_path: Path, mode: str) -> None:
    grey = Image.fromarray(np.full((20, 30), 255, np.uint8))
    pictures = {"I;16": Image.fromarray(np.full((20, 30), 65535, np.uint16)), "CMYK": grey.convert("RGB").convert(mode)}
    picture = pictures.get(mode) or grey.convert(mode)
    picture.save(tmp_path / ("a.tiff" if mode in ("CMYK", "F") else "a.png"))
    (member,) = image_sources.list_images(tmp_path).members
    assert dataset.inspect(tmp_path, member, False) == dataset.Inspection()
    used = dataset.Photographs(tmp_path, 8, ((0, "train"),), (member,), (dataset.Inspection(),))
    assert (images.to_uint8(images.decode_png(used(0).image)) == 255).all()


def test_an_inspection_has_the_reason_or_the_corners_of_the_face(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    landmarks = np.array([(4.0, 4.0), (8.0, 4.0), (4.5, 8.0), (7.5, 8.0)])
    finders = {"one.png": [landmarks], "none.png": [], "two.png": [landmarks, landmarks + 1]}
    for name in finders:
        photo(tmp_path / name, 100)
    (tmp_path / "bad.png").write_bytes(b"\x89PNG")
    seen = {}
    for member in image_sources.list_images(tmp_path).members:
        monkeypatch.setattr(face_alignment, "detector", lambda name=member.file: lambda picture: finders[name])
        seen[member.file] = dataset.inspect(tmp_path, member, True)
    assert {name: look.faces for name, look in seen.items()} == {
        "one.png": 1,
        "none.png": 0,
        "two.png": 2,
        "bad.png": None,
    }
    assert seen["one.png"].corners == face_alignment.quad(landmarks).tolist() and seen["none.png"].corners is None
    assert str(seen["bad.png"].reason).startswith("it ") and str(tmp_path) not in str(seen["bad.png"].reason)
