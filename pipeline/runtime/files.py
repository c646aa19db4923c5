"""Files that are complete or absent: temporary names, one rename, and a one-line error where the disk refuses."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from pipeline.runtime.errors import InputError

SETTLED = 50_000_000  # ns: file systems have coarse clocks, a younger file could change without its time changing
_DIGESTS: dict[tuple[str, int, int, int], str] = {}


def main_checkout(root: Path) -> Path:
    """Main checkout of the project at `root`, also from inside a queued DVC experiment (.dvc/tmp/exps/)."""
    root = Path(root)
    for parts in root.parts, root.resolve().parts:
        for index in range(len(parts) - 3):
            if parts[index : index + 3] == (".dvc", "tmp", "exps"):
                return Path(*parts[:index])
    return root


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary name beside `path`; its content replaces `path` at the end, or leaves no trace after an error.

    Parent folders are created, leftovers of killed processes removed. A full disk, a file-size limit or a file where a
    folder is needed raise InputError; the previous content of `path` then still stands.
    """
    path = Path(path)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with writing_to(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            _remove_leftovers(path)
            if path.is_dir():
                raise InputError(f"{path} is a folder where a file is to be written: move it away")
            yield partial
            with partial.open("rb") as written:
                os.fsync(written.fileno())
            os.replace(partial, path)
    finally:
        with suppress(OSError):
            partial.unlink(missing_ok=True)


@contextmanager
def writing_to(path: Path) -> Iterator[None]:
    """Raise InputError, naming `path`, for an OSError while writing it."""
    try:
        yield
    except FileNotFoundError:
        raise  # a file that was to be read
    except OSError as error:
        reason = error.strerror or str(error).splitlines()[0]
        raise InputError(f"cannot write {path}: {reason}; free or fix the disk there and run again") from error


def write_bytes(path: Path, content: bytes) -> None:
    """Write the whole content to `path`, or nothing."""
    with replacing(path) as partial:
        partial.write_bytes(content)


def digest(path: Path) -> str:
    """sha256 of a file as hex, cached in this process while the file's size, time and inode stay the same.

    Raises InputError for a file that cannot be read.
    """
    path = Path(path)
    try:
        stat = path.stat()
        key = (str(path.resolve()), stat.st_size, stat.st_mtime_ns, stat.st_ino)
        if key in _DIGESTS:
            return _DIGESTS[key]
        with path.open("rb") as content:
            sha256 = hashlib.file_digest(content, "sha256").hexdigest()
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from error
    if time.time_ns() - stat.st_mtime_ns > SETTLED:
        _DIGESTS[key] = sha256
    return sha256


def known_digest(path: Path, memory: Path) -> str:
    """`digest`, cached across processes in the JSON file `memory` while size and time of the file stay the same.

    For displaying a state; a file that is about to be used is digested again.
    """
    try:
        stat = path.stat()
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from error
    state, key = [stat.st_size, stat.st_mtime_ns], str(path.resolve())
    try:
        known = json.loads(memory.read_bytes())
    except (OSError, ValueError):
        known = {}
    known = known if isinstance(known, dict) else {}
    if isinstance(entry := known.get(key), list) and entry[:2] == state and len(entry) == 3:
        return str(entry[2])
    sha256 = digest(path)
    if time.time_ns() - stat.st_mtime_ns > SETTLED:
        existing = {name: entry for name, entry in known.items() if Path(name).is_file()}
        with suppress(InputError):  # without the cache it takes longer
            write_bytes(memory, json.dumps({**existing, key: [*state, sha256]}, indent=0).encode())
    return sha256


def remove(path: Path) -> None:
    """Remove a file or a whole folder if it exists."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def shard_name(index: int, ending: str = ".parquet") -> str:
    """File name of shard number `index`; names sort as numbers do."""
    return f"shard-{index:05d}{ending}"


def alive(pid: int) -> bool:
    """Whether a process with this id runs on this machine."""
    import psutil

    return psutil.pid_exists(pid)


def _remove_leftovers(path: Path) -> None:
    start, end = f".{path.name}.", ".partial"
    with os.scandir(path.parent) as entries:
        names = [entry.name for entry in entries if entry.name.startswith(start) and entry.name.endswith(end)]
    for name in names:
        pid = name[len(start) : -len(end)]
        if pid.isdigit() and int(pid) != os.getpid() and not alive(int(pid)):
            with suppress(OSError):
                remove(path.with_name(name))
