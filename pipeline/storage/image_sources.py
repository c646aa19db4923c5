"""Photographs in a folder, a zip file or Parquet files: list them, with what is skipped and why, and read their bytes.

No archive is unpacked to disk. Of a folder without image files the zip and Parquet files are read.
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
MAX_BYTES = 1 << 28  # of one encoded image in an archive; a larger one is no photograph
READ_ROWS = 16  # of a Parquet file at once
BUFFER = 1 << 20  # bytes of a Parquet file in memory, instead of a whole column


class Member(NamedTuple):
    """One image: a file relative to the source ("" for the source itself), and its name or row inside an archive."""

    file: str
    inside: str | int | None = None

    @property
    def name(self) -> str:
        """Printable name, shortened."""
        whole = self.file if self.inside is None else f"{self.file}:{self.inside}" if self.file else str(self.inside)
        shown = "".join(
            c if c.isprintable() else c.encode("unicode_escape", "backslashreplace").decode() for c in whole
        )
        return shown if len(shown) <= 200 else f"{shown[:100]}...{shown[-90:]}"


@dataclass(frozen=True)
class Listing:
    """Images of the source at `path`.

    members: files that look like images, in the order of their names.
    skipped: (name, reason) of everything else.
    fingerprint: digest of names, sizes and times, which changes when the source does.
    """

    path: Path
    members: tuple[Member, ...]
    skipped: tuple[tuple[str, str], ...]
    fingerprint: str


def list_images(path: Path) -> Listing:
    """List the images at `path`. Raises InputError when it is no folder, zip or Parquet file, or holds no images."""
    skipped: list[tuple[Member, str]] = []
    for cached in (_zip, _reader):
        cached.cache_clear()
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
    reasons = tuple(sorted((member.name, reason) for member, reason in skipped))
    return Listing(path, tuple(members), reasons, _fingerprint(path, archives or names))


def open_member(path: Path, member: Member) -> Path | io.BytesIO:
    """Path of an image file, or its bytes from an archive. Raises InputError, its reason alone, if unreadable."""
    file = path / member.file if member.file else path
    if member.inside is None:
        return file
    try:
        content = _unzipped(file, member.inside) if isinstance(member.inside, str) else _row(file, member.inside)
    except InputError:
        raise
    except Exception as error:  # damaged archives raise errors of all kinds
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

    for parent, folders, inside in os.walk(folder, onerror=refused):
        below = Path(os.path.relpath(parent, folder))
        for entry in (*folders, *inside):
            name, is_folder = (below / entry).as_posix(), entry in folders
            if _hidden(name):
                skipped.append((Member(name), "hidden"))
            elif is_folder and os.path.islink(os.path.join(parent, entry)):
                skipped.append((Member(name), "a link to a folder"))
            elif not is_folder and not os.path.isfile(os.path.join(parent, entry)):
                skipped.append((Member(name), "no plain file"))
            elif not is_folder:
                names.append(name)
        folders[:] = [entry for entry in folders if not _hidden(entry)]
    return sorted(names)


def _fingerprint(path: Path, names: list[str]) -> str:
    """A digest of names, sizes and times."""
    total = hashlib.sha256()
    for name in names:
        with suppress(OSError):  # removed meanwhile: reading it will fail
            state = os.stat(path / name if name else path)
            total.update(os.fsencode(f"{name}\0{state.st_size}\0{state.st_mtime_ns}\n"))
    return total.hexdigest()


# ---------------------------------------------------------------- archives


def _inside(path: Path, name: str, skipped: list[tuple[Member, str]]) -> list[Member]:
    """Images in an archive of the source, in order. InputError, its reason alone, if unreadable."""
    archive = path / name if name else path
    if _is(archive.name, (".parquet",)):
        return [Member(name, row) for row in range(_count_rows(archive))]
    members: dict[str, Member] = {}
    for entry in _zip(archive).infolist():
        if entry.filename.endswith("/"):  # unlike is_dir, also for an empty name
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
    """Reason for skipping a member of a zip file, or None."""
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
    if entry.file_size > MAX_BYTES:
        return f"{entry.file_size / 1e6:,.0f} MB when unpacked, over {MAX_BYTES / 1e6:,.0f} MB"
    return None


@lru_cache(maxsize=1)
def _zip(path: Path) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(path)
    except Exception as error:  # hostile headers raise errors of all kinds
        raise InputError(f"no readable zip file ({_reason(error)})") from error


def _unzipped(path: Path, name: str) -> bytes:
    archive = _zip(path)
    with archive.open(archive.getinfo(name)) as member:
        content = member.read(MAX_BYTES + 1)  # whatever its header claims
    if len(content) > MAX_BYTES:
        raise InputError(f"it is over {MAX_BYTES / 1e6:,.0f} MB when unpacked")
    return content


def _parquet(path: Path) -> Any:
    import pyarrow.parquet as pq

    try:
        return pq.ParquetFile(path, buffer_size=BUFFER)
    except Exception as error:
        raise InputError(f"no readable Parquet file ({_reason(error)})") from error


def _count_rows(path: Path) -> int:
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
    """Encoded bytes in column `image` of one row; fast for rows read in order."""
    reader = _reader(path)
    if row < reader.next:
        _reader.cache_clear()
        reader = _reader(path)
    value = reader.at(row)
    if isinstance(value, dict):
        value = value["bytes"]
    if value is None:
        raise InputError("it has no encoded bytes")
    if len(value) > MAX_BYTES:
        raise InputError(f"it is over {MAX_BYTES / 1e6:,.0f} MB")
    return value


class _Reader:
    """Column `image` of a Parquet file from one row on, READ_ROWS at a time; earlier row groups are not read."""

    def __init__(self, path: Path) -> None:
        self.file = _parquet(path)
        self.next = 0  # row that `self.rows` yields next
        self.rows: Iterator[Any] = iter(())
        self.end = 0  # of its row group

    def at(self, row: int) -> Any:
        if row >= self.end:
            self._open(row)
        try:
            for value in self.rows:
                self.next += 1
                if self.next > row:
                    return value
        except Exception:
            self.end = 0  # read the row group again for the next row
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
