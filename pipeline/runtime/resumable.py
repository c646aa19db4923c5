"""Unfinished work that survives a killed stage: one folder per stage, domain and fingerprint, under a lock.

It lies in .cache/ of the main checkout, also for queued experiments. A finished piece counts only while its size and
sha256 are those of the manifest, so a stale, cut or foreign file is made again, never used. At the end the pieces are
published into the stage's DVC output in one rename, and the folder is removed.
"""

from __future__ import annotations

import dataclasses
import fcntl
import hashlib
import inspect
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from types import ModuleType
from typing import Any

from pipeline.runtime import files
from pipeline.runtime.errors import InputError
from pipeline.storage import params

MANIFEST = "manifest.json"
KEPT = 2  # other fingerprints of a stage that may still be wanted


class Unit:
    """The unfinished work of one stage on one domain with one fingerprint; made by `open`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._manifest: dict[str, list[dict[str, Any]]] = _read_manifest(folder / MANIFEST)

    def path(self, name: str) -> Path:
        """Where the piece `name` is written (its folder exists); write it whole or not at all, then `mark` it."""
        path = self.folder / _checked_name(name)
        with files.writing_to(path):
            path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def done(self, name: str) -> bool:
        """Whether the piece was marked and its file is still byte for byte the one that was."""
        path = self.folder / _checked_name(name)
        known = self._manifest.get(name, [])
        if not path.is_file() or path.stat().st_size not in [entry["size"] for entry in known]:
            return False
        return files.digest(path) in [entry["sha256"] for entry in known]

    def mark(self, name: str) -> None:
        """Record the piece as finished."""
        self._record(name, [_entry(self.folder / _checked_name(name))])

    @contextmanager
    def writing(self, name: str) -> Iterator[Path]:
        """Give a path to write; then the file becomes the piece `name` and is marked.

        For a piece that is replaced again and again, as a checkpoint is: killed at any moment, either the old or the
        new file stands there and counts as done.
        """
        path = self.path(name)
        with files.replacing(path) as partial:
            yield partial
            self._record(name, [*self._manifest.get(name, [])[-1:], _entry(partial)])
        self._record(name, self._manifest[name][-1:])

    def names(self, folder: str = "") -> tuple[str, ...]:
        """The marked pieces, or those of one folder, sorted."""
        prefix = f"{folder}/" if folder else ""
        return tuple(sorted(name for name in self._manifest if name.startswith(prefix)))

    def publish(self, outputs: Mapping[str, Path]) -> None:
        """Put pieces where DVC expects them, then remove this unit.

        outputs: a piece -> a file, or a folder of pieces -> a folder, which is replaced as a whole and gets only
        marked pieces; a file that was written but not marked is marked now. Killed in the middle, the same command
        publishes again; what stood at a destination stays until the new content is complete beside it.
        """
        for name, destination in outputs.items():
            if name not in self._manifest and (self.folder / _checked_name(name)).is_file():
                self.mark(name)
            pieces = [name] if name in self._manifest else list(self.names(name))
            missing = [piece for piece in pieces if not self.done(piece)]
            if missing or not pieces:
                raise ValueError(f"{missing[0] if missing else name} is not finished and cannot be published")
            if pieces == [name]:
                _publish_file(self.folder / name, Path(destination))
            else:
                inside = {piece.removeprefix(f"{name}/"): self.folder / piece for piece in pieces}
                _publish_folder(inside, Path(destination))
        self._manifest = {}
        files.remove(self.folder)

    def _record(self, name: str, entries: list[dict[str, Any]]) -> None:
        self._manifest[name] = entries
        files.write_bytes(self.folder / MANIFEST, json.dumps(self._manifest, sort_keys=True, indent=0).encode())


@contextmanager
def open(stage: str, domain: str, fingerprint: Mapping[str, Any], root: Path | None = None) -> Iterator[Unit]:
    """The unit of work with this fingerprint (JSON-able: params, input digests, code), locked for this process.

    Raises InputError when another process holds it. Left without `publish`, its finished pieces stay for the next
    try. Of the stage's other fingerprints the newest two are kept, those that nobody works on.
    """
    place = params.main_root(root) / ".cache" / f"{stage}-{domain}"
    folder = place / fingerprint_of(fingerprint)
    with files.writing_to(place):
        place.mkdir(parents=True, exist_ok=True)
    with _locked(_lock_path(folder), f"{stage} of {domain}"):
        with files.writing_to(folder):
            folder.mkdir(exist_ok=True)
            os.utime(folder)
        with suppress(OSError):  # another process may be tidying up as well
            _prune(place, folder)
        yield Unit(folder)


def fingerprint_of(fingerprint: Mapping[str, Any]) -> str:
    """16 hexadecimal digits that change with any value in `fingerprint`."""
    content = json.dumps(fingerprint, sort_keys=True, default=_plain).encode()
    return hashlib.sha256(content).hexdigest()[:16]


def digest_of(path: Path) -> str:
    """sha256 of a file, or of a folder's names and contents (hidden files apart); for fingerprints."""
    path = Path(path)
    if not path.is_dir():
        return files.digest(path)
    total = hashlib.sha256()
    for inner in sorted(path.rglob("*"), key=lambda inner: inner.relative_to(path).as_posix()):
        name = inner.relative_to(path).as_posix()
        if inner.is_file() and not any(part.startswith(".") for part in PurePosixPath(name).parts):
            total.update(f"{name}\0{inner.stat().st_size}\0{files.digest(inner)}\n".encode())
    return total.hexdigest()


def code_of(*modules: ModuleType) -> str:
    """A digest of modules' source, for fingerprints: work begun with other code is not gone on with."""
    sources = sorted((module.__name__, inspect.getsource(module)) for module in modules)
    return hashlib.sha256(json.dumps(sources).encode()).hexdigest()


@contextmanager
def _locked(path: Path, what: str) -> Iterator[None]:
    """Hold the lock file; the system lets go of it when the process ends, however it ends."""
    handle = _try_lock(path)
    if handle is None:
        holder = _holder(path)
        raise InputError(f"another repro is running: {what} is held by process {holder}; wait for it or stop it")
    try:
        yield
    finally:
        with suppress(OSError):
            path.unlink()  # still held: a newcomer sees that its file is gone and takes the new one
        os.close(handle)


def _try_lock(path: Path) -> int | None:
    while True:
        with files.writing_to(path):
            handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(handle)
            return None
        try:
            current = os.path.samestat(os.fstat(handle), path.stat())
        except FileNotFoundError:  # its last holder has just removed it
            current = False
        if current:
            with suppress(OSError):  # only a courtesy to whoever finds it locked
                os.ftruncate(handle, 0)
                os.write(handle, str(os.getpid()).encode())
            return handle
        os.close(handle)


def _holder(path: Path) -> str:
    with suppress(OSError):
        return path.read_text().strip() or "unknown"
    return "unknown"


def _lock_path(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.lock")


def _prune(place: Path, current: Path) -> None:
    with os.scandir(place) as entries:
        found = [(entry.stat().st_mtime_ns, entry.name) for entry in entries if entry.is_dir()]
    others = [place / name for _, name in sorted(found, reverse=True) if name != current.name]
    for folder in others[KEPT:]:
        with suppress(InputError, OSError), _locked(_lock_path(folder), folder.name):
            files.remove(folder)


def _publish_file(source: Path, destination: Path) -> None:
    with files.replacing(destination) as partial:
        _copy(source, partial)


def _publish_folder(pieces: Mapping[str, Path], destination: Path) -> None:
    """Build the folder beside its destination, then swap; remove what a killed try left there."""
    fresh = destination.with_name(f".{destination.name}.fresh")
    old = destination.with_name(f".{destination.name}.old")
    with files.writing_to(destination):
        destination.parent.mkdir(parents=True, exist_ok=True)
        if destination.exists() and not destination.is_dir():
            raise InputError(f"{destination} is a file where a folder is to be written: move it away")
        files.remove(fresh)
        try:
            for name, source in pieces.items():
                (fresh / name).parent.mkdir(parents=True, exist_ok=True)
                _copy(source, fresh / name)
            files.remove(old)
            if destination.exists():
                os.replace(destination, old)
            os.replace(fresh, destination)
        finally:
            files.remove(fresh)
        files.remove(old)


def _copy(source: Path, destination: Path) -> None:
    """A hard link where the disk can, so that publishing needs no space; the unit's name for it goes away soon."""
    try:
        os.link(source, destination)
    except OSError:
        shutil.copyfile(source, destination)


def _checked_name(name: str) -> str:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or path.as_posix() != name or name in ("", ".", MANIFEST):
        raise ValueError(f"'{name}' is no name for a piece of work")
    return name


def _entry(path: Path) -> dict[str, Any]:
    return {"size": path.stat().st_size, "sha256": files.digest(path)}


def _read_manifest(path: Path) -> dict[str, list[dict[str, Any]]]:
    try:
        manifest = json.loads(path.read_bytes())
        return {str(name): [{"size": e["size"], "sha256": e["sha256"]} for e in manifest[name]] for name in manifest}
    except (OSError, ValueError, TypeError, KeyError):
        return {}


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    if isinstance(value, Path):
        return value.as_posix()
    raise TypeError(f"{value!r} cannot be a part of a fingerprint")
