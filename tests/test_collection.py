"""Where pictures come from: row ids and splits, the renderer, folders, zip and Parquet files, and what is refused."""

from __future__ import annotations

import io
import json
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from pipeline import collection, images, portraits
from pipeline.values import InputError


def sizes(train: int = 6, val: int = 2, test: int = 3, start: int = 58_000) -> collection.PrepareParams:
    return collection.PrepareParams(None, train, val, test, start, 4)


def encoded(shade: int) -> bytes:
    content = io.BytesIO()
    Image.fromarray(np.full((14, 11, 3), shade, np.uint8)).save(content, "PNG")
    return content.getvalue()


def shades(path: Path, root: Path) -> list[int]:
    """The shade of every picture that is read from `path`, in order."""
    rows = [(row, "train") for row in range(3)]
    read = collection.reader(str(path), None, root, 8, rows)
    read = pickle.loads(pickle.dumps(read))  # as it goes to worker processes
    return [int(images.to_uint8(images.decode_png(read(position).image)).mean()) for position in range(3)]


@given(st.integers(1, 50), st.integers(0, 49), st.integers(0, 30))
def test_validation_is_the_end_of_train_and_test_ids_start_at_the_papers_border(
    train: int, val: int, test: int
) -> None:
    if val >= train:
        with pytest.raises(ValueError, match="none to train on"):
            sizes(train, val, test)
        return
    rows = collection.row_ids(sizes(train, val, test))
    splits = [split for _, split in rows]
    assert splits == ["train"] * (train - val) + ["val"] * val + ["test"] * test
    ids = [row for row, _ in rows]
    assert ids == sorted(set(ids))
    assert all((row >= 58_000) == (split == "test") for row, split in rows)


def test_train_and_test_ids_cannot_overlap() -> None:
    with pytest.raises(ValueError, match="test_start"):
        sizes(train=11, start=10)


def test_a_rendered_row_is_the_portrait_of_its_id_and_knows_its_parameters(tmp_path: Path) -> None:
    rows = collection.row_ids(sizes())
    row = collection.reader(None, "portraits", tmp_path, 16, rows)(7)
    assert (row.id, row.split) == (58_001, "test")
    person = portraits.from_dict(json.loads(row.params or ""))
    assert person == portraits.sample(58_001)
    assert (images.to_uint8(images.decode_png(row.image)) == portraits.render(person, 16)).all()


def test_a_folder_is_read_in_the_order_of_its_names(tmp_path: Path) -> None:
    for name, shade in (("b.png", 90), ("a/z.PNG", 50), ("c.png", 130), ("notes.txt", 0)):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(encoded(shade))
    assert shades(tmp_path, tmp_path) == [50, 90, 130]


def test_a_zip_file_is_read_like_a_folder(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "photos.zip", "w") as archive:
        for name, shade in (("2.png", 80), ("1.png", 40), ("3.png", 120)):
            archive.writestr(name, encoded(shade))
    assert shades(Path("photos.zip"), tmp_path) == [40, 80, 120]


@pytest.mark.parametrize("wrapped", [False, True])
def test_parquet_files_give_the_pictures_of_their_rows(tmp_path: Path, wrapped: bool) -> None:
    pictures = [encoded(shade) for shade in (30, 60, 90)]
    column = [{"bytes": picture, "path": None} for picture in pictures] if wrapped else pictures
    for part in (slice(0, 2), slice(2, 3)):
        pq.write_table(pa.table({"image": column[part]}), tmp_path / f"{part.start}.parquet", row_group_size=1)
    assert shades(tmp_path, tmp_path) == [30, 60, 90]


def test_bad_sources_are_refused_in_one_line_that_names_them(tmp_path: Path) -> None:
    (tmp_path / "broken.zip").write_bytes(b"PK no")
    (tmp_path / "broken.parquet").write_bytes(b"PAR1")
    (tmp_path / "empty").mkdir()
    rows = [(0, "train")]
    for name in ("broken.zip", "broken.parquet", "empty", "missing", "broken.txt"):
        with pytest.raises(InputError) as caught:
            collection.reader(name, None, tmp_path, 8, rows)
        assert name in str(caught.value) and "\n" not in str(caught.value)


def test_too_few_pictures_and_no_source_at_all_say_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "one.png").write_bytes(encoded(1))
    with pytest.raises(InputError, match="holds 1 pictures, 2 are asked for"):
        collection.reader(".", None, tmp_path, 8, [(0, "train"), (1, "train")])
    with pytest.raises(InputError, match=r"prepare\.source"):
        collection.reader(None, None, tmp_path, 8, [(0, "train")])
