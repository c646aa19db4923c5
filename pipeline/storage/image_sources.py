"""Photographs in a folder, a zip file or Parquet files: which there are, what is left out and why, and their bytes.

Nothing is unpacked to disk. A folder with no pictures of its own is read through the zip and Parquet files in it.
"""

from __future__ import annotations

import hashlib
import io
import os
import re
import stat
import zipfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from pipeline.runtime.errors import InputError

ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".ppm")
ARCHIVES = (".parquet", ".zip")
MOST_BYTES = 1 << 28  # of one encoded picture in an archive; a larger one is no photograph
READ_ROWS = 16  # of a Parquet file at once
BUFFER = 1 << 20  # bytes of a Parquet file held at once, instead of a whole column


class Member(NamedTuple):
    """One picture: a file relative to the source ("" for the source itself), and what it is inside that archive."""

    file: str
    inside: str | int | None = None

    @property
    def name(self) -> str:
        """For people: what cannot be shown is escaped."""
        whole = self.file if self.inside is None else f"{self.file}:{self.inside}" if self.file else str(self.inside)
        shown = "".join(
            c if c.isprintable() else c.encode("unicode_escape", "backslashreplace").decode() for c in whole
        )
        return shown if len(shown) <= 200 else f"{shown[:100]}...{shown[-90:]}"


@dataclass(frozen=True)
class Listing:
    """members: what looks like a picture, in the order of the names. skipped: (name, reason) of everything else.

    fingerprint: changes when the source does, without reading it whole.
    """

    path: Path
    members: tuple[Member, ...]
    skipped: tuple[tuple[str, str], ...]
    fingerprint: str


def listing(path: Path) -> Listing:
    """What there is at `path`. Raises InputError for what is no folder, zip or Parquet file, and without pictures."""
    skipped: list[tuple[Member, str]] = []
    for held in (_zip, _reader):
        held.cache_clear()
    if path.is_dir():
        names = _files(path, skipped)
        members = [Member(name) for name in names if _is(name, ENDINGS)]
        archives = [] if members else [name for name in names if _is(name, ARCHIVES)]
        read = {member.file for member in members} | set(archives)
        skipped += [(Member(name), _not_a_picture(name)) for name in names if name not in read]
    elif path.is_file() and _is(path.name, ARCHIVES):
        names, members, archives = [], [], [""]
    else:
        raise InputError(f"{path} is no folder, .zip or .parquet file: set prepare.source")
    for name in archives:
        try:
            members += _inside(path, name, skipped)
        except InputError as error:
            if not name:
                raise InputError(f"{path} is {error}") from error
            skipped.append((Member(name), str(error)))
    if not members:
        raise InputError(f"{path} holds no pictures ({', '.join(ENDINGS)}){_first(skipped)}")
    told = tuple(sorted((member.name, reason) for member, reason in skipped))
    return Listing(path, tuple(members), told, _fingerprint(path, archives or names))


def opened(path: Path, member: Member) -> Path | io.BytesIO:
    """A picture file, or its bytes. Raises InputError, with a reason only, for what cannot be read."""
    place = path / member.file if member.file else path
    if member.inside is None:
        return place
    try:
        content = _unzipped(place, member.inside) if isinstance(member.inside, str) else _row(place, member.inside)
    except InputError:
        raise
    except Exception as error:  # a damaged archive fails in every way there is
        raise InputError(f"it cannot be read from its archive ({_reason(error)})") from error
    if not content:
        raise InputError("it is empty")
    return io.BytesIO(content)


def _is(name: str, endings: tuple[str, ...]) -> bool:
    return name.lower().endswith(endings)


def _not_a_picture(name: str) -> str:
    if _is(name, ARCHIVES):
        return "an archive beside pictures"
    ending = os.path.splitext(name)[1].lower()
    return f"no picture by its name ({ending})" if ending else "no picture by its name"


def _hidden(name: str) -> bool:
    return any(part.startswith(".") or part == "__MACOSX" for part in name.split("/"))


def _first(skipped: list[tuple[Member, str]]) -> str:
    return f": {skipped[0][0].name} is {skipped[0][1]}" if skipped else ""


# ---------------------------------------------------------------- folders


def _files(folder: Path, skipped: list[tuple[Member, str]]) -> list[str]:
    """Names of the plain files below a folder, sorted."""
    names: list[str] = []

    def refused(error: OSError) -> None:
        name = os.path.relpath(error.filename or folder, folder)
        skipped.append((Member(name), f"a folder that cannot be opened ({error.strerror})"))

    for place, folders, inside in os.walk(folder, onerror=refused):
        below = Path(os.path.relpath(place, folder))
        for entry in (*folders, *inside):
            name, is_folder = (below / entry).as_posix(), entry in folders
            if _hidden(name):
                skipped.append((Member(name), "hidden"))
            elif is_folder and os.path.islink(os.path.join(place, entry)):
                skipped.append((Member(name), "a link to a folder"))
            elif not is_folder and not os.path.isfile(os.path.join(place, entry)):
                skipped.append((Member(name), "no plain file"))
            elif not is_folder:
                names.append(name)
        folders[:] = [entry for entry in folders if not _hidden(entry)]
    return sorted(names)


def _fingerprint(path: Path, names: list[str]) -> str:
    """A digest of names, sizes and times."""
    total = hashlib.sha256()
    for name in names:
        with suppress(OSError):  # gone meanwhile: reading it will tell
            state = os.stat(path / name if name else path)
            total.update(os.fsencode(f"{name}\0{state.st_size}\0{state.st_mtime_ns}\n"))
    return total.hexdigest()


# ---------------------------------------------------------------- archives


def _inside(path: Path, name: str, skipped: list[tuple[Member, str]]) -> list[Member]:
    """The pictures in an archive of the source, in order. InputError, with a reason only, when it cannot be."""
    place = path / name if name else path
    if _is(place.name, (".parquet",)):
        return [Member(name, row) for row in range(_rows_of(place))]
    members: dict[str, Member] = {}
    for entry in _zip(place).infolist():
        if entry.filename.endswith("/"):  # unlike is_dir, also for a name of nothing
            continue
        member = Member(name, entry.filename)
        if entry.filename in members:
            skipped.append((member, "there twice: the later one counts, as when it is unpacked"))
        elif reason := _refused(entry):
            skipped.append((member, reason))
        else:
            members[entry.filename] = member
    return [members[inside] for inside in sorted(members)]


def _refused(entry: zipfile.ZipInfo) -> str | None:
    """Why a member of a zip file is left out."""
    name = entry.filename
    parts = name.replace("\\", "/").split("/")
    if name.startswith(("/", "\\")) or ".." in parts or re.match("[A-Za-z]:", name):
        return "a name that leads out of the archive"
    if _hidden(name):
        return "hidden"
    if not _is(name, ENDINGS):
        return _not_a_picture(name)
    if stat.S_ISLNK(entry.external_attr >> 16):
        return "a link"
    if entry.flag_bits & 1:
        return "encrypted"
    if entry.file_size > MOST_BYTES:
        return f"{entry.file_size / 1e6:,.0f} MB when unpacked, over {MOST_BYTES / 1e6:,.0f} MB"
    return None


@lru_cache(maxsize=1)
def _zip(path: Path) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(path)
    except Exception as error:  # hostile headers raise whatever they like
        raise InputError(f"no readable zip file ({_reason(error)})") from error


def _unzipped(path: Path, name: str) -> bytes:
    archive = _zip(path)
    with archive.open(archive.getinfo(name)) as member:
        content = member.read(MOST_BYTES + 1)  # no more than its header says in any case
    if len(content) > MOST_BYTES:
        raise InputError(f"it is over {MOST_BYTES / 1e6:,.0f} MB when unpacked")
    return content


def _parquet(path: Path) -> Any:
    import pyarrow.parquet as pq

    try:
        return pq.ParquetFile(path, buffer_size=BUFFER)
    except Exception as error:
        raise InputError(f"no readable Parquet file ({_reason(error)})") from error


def _rows_of(path: Path) -> int:
    import pyarrow as pa

    file = _parquet(path)
    if "image" not in file.schema_arrow.names:
        raise InputError("a Parquet file without a column 'image' of encoded pictures")
    kind = file.schema_arrow.field("image").type
    if pa.types.is_struct(kind):
        kind = kind.field("bytes").type if kind.get_field_index("bytes") >= 0 else None
    if kind is None or not (pa.types.is_binary(kind) or pa.types.is_large_binary(kind)):
        raise InputError(f"a Parquet file whose column 'image' is {file.schema_arrow.field('image').type}, not binary")
    return file.metadata.num_rows


def _row(path: Path, row: int) -> bytes:
    """The encoded bytes in column `image` of one row; quick for rows that are asked for in order."""
    reader = _reader(path)
    if row < reader.next:
        _reader.cache_clear()
        reader = _reader(path)
    value = reader.at(row)
    if isinstance(value, dict):
        value = value["bytes"]
    if value is None:
        raise InputError("it has no encoded bytes")
    if len(value) > MOST_BYTES:
        raise InputError(f"it is over {MOST_BYTES / 1e6:,.0f} MB")
    return value


class _Reader:
    """A Parquet file from one row on, a few rows at once; whole row groups before it are not read."""

    def __init__(self, path: Path) -> None:
        self.file = _parquet(path)
        self.next = 0  # the row that `self.rows` gives next
        self.rows: Iterator[Any] = iter(())
        self.end = 0  # of the row group that it is in

    def at(self, row: int) -> Any:
        if row >= self.end:
            self._open(row)
        try:
            for value in self.rows:
                self.next += 1
                if self.next > row:
                    return value
        except Exception:
            self.end = 0  # what is damaged here is damaged for the next row too
            raise
        raise InputError("its row is not in the file")

    def _open(self, row: int) -> None:
        start = 0
        for group in range(self.file.num_row_groups):
            self.end = start + self.file.metadata.row_group(group).num_rows
            if row < self.end:
                batches = self.file.iter_batches(READ_ROWS, row_groups=[group], columns=["image"])
                self.next, self.rows = start, (value.as_py() for batch in batches for value in batch.column(0))
                return
            start = self.end


@lru_cache(maxsize=1)
def _reader(path: Path) -> _Reader:
    return _Reader(path)


def _reason(error: BaseException) -> str:
    return (str(error).splitlines() or [""])[0][:120] or type(error).__name__
