"""Files that are whole or absent: temporary names, one rename, and a one-line error when the disk says no."""

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

SETTLED = 50_000_000  # ns: clocks of file systems are coarse, a younger file could change without its time changing
_DIGESTS: dict[tuple[str, int, int, int], str] = {}


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a temporary name beside `path`; what was written there becomes `path` at the end, or leaves no trace.

    Parents are made. What other, killed processes left under such names is removed. A full disk, a file-size limit
    or a file where a folder is needed raise InputError; whatever stood at `path` before then still stands there.
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
    """Turn what the disk refuses while writing `path` into one line."""
    try:
        yield
    except FileNotFoundError:
        raise  # something that was to be read: no fault of the disk
    except OSError as error:
        reason = error.strerror or str(error).splitlines()[0]
        raise InputError(f"cannot write {path}: {reason}; free or fix the disk there and run again") from error


def write_bytes(path: Path, content: bytes) -> None:
    """Write the whole content to `path`, or nothing."""
    with replacing(path) as partial:
        partial.write_bytes(content)


def digest(path: Path) -> str:
    """sha256 of a file as hex, remembered in this process while its size, time and inode stay the same."""
    path = Path(path)
    try:
        stat = path.stat()
        key = (str(path.resolve()), stat.st_size, stat.st_mtime_ns, stat.st_ino)
        if key in _DIGESTS:
            return _DIGESTS[key]
        with path.open("rb") as content:
            found = hashlib.file_digest(content, "sha256").hexdigest()
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from error
    if time.time_ns() - stat.st_mtime_ns > SETTLED:
        _DIGESTS[key] = found
    return found


def known_digest(path: Path, memory: Path) -> str:
    """`digest`, remembered beyond this process in the JSON file `memory` while size and time of the file stay the same.

    Good for showing what is there; what is about to be used is read again.
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
    found = digest(path)
    if time.time_ns() - stat.st_mtime_ns > SETTLED:
        kept = {name: entry for name, entry in known.items() if Path(name).is_file()}
        with suppress(InputError):  # without memory it takes longer, no more
            write_bytes(memory, json.dumps({**kept, key: [*state, found]}, indent=0).encode())
    return found


def remove(path: Path) -> None:
    """Remove a file or a whole folder if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def alive(pid: int) -> bool:
    """Whether a process with this number runs on this machine."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _remove_leftovers(path: Path) -> None:
    start, end = f".{path.name}.", ".partial"
    with os.scandir(path.parent) as entries:
        names = [entry.name for entry in entries if entry.name.startswith(start) and entry.name.endswith(end)]
    for name in names:
        pid = name[len(start) : -len(end)]
        if pid.isdigit() and int(pid) != os.getpid() and not alive(int(pid)):
            with suppress(OSError):
                remove(path.with_name(name))
