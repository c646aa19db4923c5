"""Where a domain's pictures come from: its renderer, or photographs in a folder, a zip file or Parquet files."""

from __future__ import annotations

import io
import json
import zipfile
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from pipeline import images
from pipeline.values import InputError

ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")


@dataclass(frozen=True)
class PrepareParams:
    """source: a path, or None for the domain's renderer. train: rows from 0 up, the last `val` of them for validation.

    test: rows from `test_start` up; 58,000 is the paper's border between the two. shard: rows per Parquet shard, here
    and in what is made of them: the unit of resuming.
    """

    source: str | None
    train: int
    val: int
    test: int
    test_start: int
    shard: int

    def __post_init__(self) -> None:
        if not 0 <= self.val < self.train or self.test < 0 or self.shard < 1:
            raise ValueError(f"{self.val} of {self.train} pictures for validation leave none to train on")
        if self.train > self.test_start:
            raise ValueError(f"train may be at most test_start ({self.test_start}), not {self.train}")


class Row(NamedTuple):
    """One picture of the dataset: PNG bytes, and the renderer's parameters as JSON where they are known."""

    id: int
    split: str
    image: bytes
    params: str | None


def row_ids(params: PrepareParams) -> list[tuple[int, str]]:
    """(row id, split) of every picture, in id order."""
    border = params.train - params.val
    train = [(row, "train" if row < border else "val") for row in range(params.train)]
    return train + [(row, "test") for row in range(params.test_start, params.test_start + params.test)]


def reader(
    source: str | None, renderer: str | None, root: Path, resolution: int, rows: list[tuple[int, str]]
) -> Rendered | Photographs:
    """A function position -> Row for the positions of `rows`; it can be sent to worker processes.

    Raises InputError when `source` (a path, relative to `root`) is missing, unreadable or too small, or when there is
    neither a source nor a renderer.
    """
    if source is None and renderer is None:
        raise InputError("no pictures are known for this domain: set prepare.source to a folder, .zip or .parquet file")
    if source is None:
        return Rendered(resolution, tuple(rows))
    path = (root / source).expanduser()
    names = photographs(path)
    if len(names) < len(rows):
        raise InputError(
            f"{path} holds {len(names)} pictures, {len(rows)} are asked for: lower prepare.train or prepare.test"
        )
    return Photographs(path, resolution, tuple(rows), tuple(names))


@dataclass(frozen=True)
class Rendered:
    """Portraits drawn from their row id."""

    resolution: int
    rows: tuple[tuple[int, str], ...]

    def __call__(self, position: int) -> Row:
        from pipeline import portraits

        row, split = self.rows[position]
        person = portraits.sample(row)
        picture = images.encode_png(images.from_uint8(portraits.render(person, self.resolution)))
        return Row(row, split, picture, json.dumps(portraits.to_dict(person), sort_keys=True))


@dataclass(frozen=True)
class Photographs:
    """Photographs cropped to a square and scaled; `names` are what `photographs` gave for `path`."""

    path: Path
    resolution: int
    rows: tuple[tuple[int, str], ...]
    names: tuple[str, ...]

    def __call__(self, position: int) -> Row:
        row, split = self.rows[position]
        photo = images.open_photo(_open(self.path, self.names[position]), self.resolution)
        return Row(row, split, images.encode_png(photo.image[0]), None)


def photographs(path: Path) -> list[str]:
    """Sorted names of the pictures in a folder (searched recursively), a zip file, or Parquet files (file:row).

    Raises InputError when there are none.
    """
    if path.is_dir():
        inside = [file.relative_to(path).as_posix() for file in path.rglob("*") if file.is_file()]
        names = sorted(name for name in inside if name.lower().endswith(ENDINGS))
        if not names and any(name.endswith(".parquet") for name in inside):
            files = sorted(name for name in inside if name.endswith(".parquet"))
            names = [f"{name}:{row}" for name in files for row in range(_parquet_rows(path / name))]
    elif path.suffix == ".zip" and path.is_file():
        names = sorted(name for name in _zip(path).namelist() if name.lower().endswith(ENDINGS))
    elif path.suffix == ".parquet" and path.is_file():
        names = [f":{row}" for row in range(_parquet_rows(path))]
    else:
        raise InputError(f"{path} is no folder, .zip or .parquet file: set prepare.source")
    if not names:
        raise InputError(f"{path} holds no pictures ({', '.join(ENDINGS)})")
    return names


def _open(path: Path, name: str) -> Path | io.BytesIO:
    if path.suffix == ".zip":
        return io.BytesIO(_zip(path).read(name))
    file, _, row = name.rpartition(":")
    if path.suffix == ".parquet" or file.endswith(".parquet"):
        return io.BytesIO(_parquet_image(path / file if file else path, int(row)))
    return path / name


@lru_cache(maxsize=1)
def _zip(path: Path) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(path)
    except (zipfile.BadZipFile, OSError) as error:
        raise InputError(f"{path} is not a readable zip file: {error}") from error


def _parquet_rows(path: Path) -> int:
    import pyarrow.parquet as pq

    try:
        return pq.ParquetFile(path).metadata.num_rows
    except (OSError, ValueError) as error:
        raise InputError(f"{path} is not a readable Parquet file: {error}") from error


def _parquet_image(path: Path, row: int) -> bytes:
    """The encoded bytes in column `image` (binary, or a struct with a field `bytes`) of one row."""
    import pyarrow.parquet as pq

    file = pq.ParquetFile(path)
    if "image" not in file.schema_arrow.names:
        raise InputError(f"{path} has no column 'image' with encoded pictures")
    for group in range(file.num_row_groups):
        rows = file.metadata.row_group(group).num_rows
        if row < rows:
            value = file.read_row_group(group, columns=["image"])["image"][row].as_py()
            return value["bytes"] if isinstance(value, dict) else value
        row -= rows
    raise InputError(f"{path} has no row {row}")
