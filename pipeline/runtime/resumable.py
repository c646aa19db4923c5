"""Partial results of a stage, kept when the process is killed: a locked folder per stage, domain and fingerprint.

It lies in .cache/ of the main checkout, also for queued experiments. A finished piece counts only while its size and
sha256 are those in the manifest, so that a stale or truncated file is computed again, never used. At the end the pieces
are published as the stage's DVC outputs in one rename, and the folder is removed.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import Any

from filelock import FileLock, Timeout

from pipeline.runtime import files
from pipeline.runtime.errors import InputError

MANIFEST = "manifest.json"
MAX_OTHERS = 2  # other fingerprints of a stage whose work is kept


class Work:
    """Unfinished work of one stage on one domain with one fingerprint; created by `open`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._manifest: dict[str, list[dict[str, Any]]] = _read_manifest(folder / MANIFEST)

    def path(self, name: str) -> Path:
        """Path of the piece `name`, in an existing folder; write it, then `mark` it."""
        path = self.folder / _checked_name(name)
        with files.writing_to(path):
            path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def done(self, name: str) -> bool:
        """Whether the piece was marked and its file still has the same bytes."""
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
        """Yield a path to write; then the file becomes the piece `name` and is marked.

        For a piece that is replaced again and again, such as a checkpoint: after a kill at any moment either the old or
        the new file is there and counts as done.
        """
        path = self.path(name)
        with files.replacing(path) as partial:
            yield partial
            self._record(name, [*self._manifest.get(name, [])[-1:], _entry(partial)])
        self._record(name, self._manifest[name][-1:])

    def names(self, folder: str = "") -> tuple[str, ...]:
        """Names of the marked pieces, or of those in one folder, sorted."""
        prefix = f"{folder}/" if folder else ""
        return tuple(sorted(name for name in self._manifest if name.startswith(prefix)))

    def publish(self, outputs: Mapping[str, Path]) -> None:
        """Move pieces to where DVC expects them, then remove this work.

        After a kill in the middle, the same call publishes again; the previous content of a destination stays until the
        new content is complete beside it.

        outputs: a piece -> a file, or a folder of pieces -> a folder, which is replaced as a whole and gets only marked
            pieces. A single file that was written but not marked is marked now.
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
def open(stage: str, domain: str, fingerprint: Mapping[str, Any], root: Path) -> Iterator[Work]:
    """Open the work with this fingerprint and lock it for this process.

    Without `publish`, its finished pieces stay for the next try. Of the stage's other fingerprints the newest
    MAX_OTHERS are kept, and those in use. Raises InputError while another process has it open.

    fingerprint: JSON-able description of everything the result depends on: parameters, digests of inputs and code.
    root: the project.
    """
    stage_folder = files.main_checkout(root) / ".cache" / f"{stage}-{domain}"
    folder = stage_folder / fingerprint_of(fingerprint)
    with files.writing_to(stage_folder):
        stage_folder.mkdir(parents=True, exist_ok=True)
    with _locked(folder, f"{stage} of {domain}"):
        with files.writing_to(folder):
            folder.mkdir(exist_ok=True)
            os.utime(folder)
        with suppress(OSError):  # another process may be pruning too
            _prune(stage_folder, folder)
        yield Work(folder)


def fingerprint_of(fingerprint: Mapping[str, Any]) -> str:
    """16 hexadecimal digits that change with any value in `fingerprint`."""
    content = json.dumps(fingerprint, sort_keys=True, default=_plain).encode()
    return hashlib.sha256(content).hexdigest()[:16]


def digest_of(path: Path) -> str:
    """sha256 of a file, or of a folder's names and contents without hidden files; for fingerprints."""
    path = Path(path)
    if not path.is_dir():
        return files.digest(path)
    total = hashlib.sha256()
    for inner in sorted(path.rglob("*"), key=lambda inner: inner.relative_to(path).as_posix()):
        name = inner.relative_to(path).as_posix()
        if inner.is_file() and not any(part.startswith(".") for part in PurePosixPath(name).parts):
            total.update(f"{name}\0{inner.stat().st_size}\0{files.digest(inner)}\n".encode())
    return total.hexdigest()


@contextmanager
def _locked(folder: Path, what: str) -> Iterator[None]:
    """Lock a folder; the system releases the lock when the process ends, however it ends."""
    path = folder.with_name(f"{folder.name}.lock")
    lock = FileLock(path, timeout=0)
    with files.writing_to(path):
        try:
            lock.acquire()
        except Timeout as error:
            holder = f"{what} is locked by process {_holder(path)}"
            raise InputError(f"another repro is running: {holder}; wait for it or stop it") from error
    try:
        with suppress(OSError):  # for the message above
            path.write_text(str(os.getpid()))
        yield
    finally:
        with suppress(OSError):
            path.unlink()  # still locked: a process that waits on the removed file opens the new one
        lock.release()


def _holder(path: Path) -> str:
    with suppress(OSError):
        return path.read_text().strip() or "unknown"
    return "unknown"


def _prune(stage_folder: Path, current: Path) -> None:
    with os.scandir(stage_folder) as entries:
        folders = [(entry.stat().st_mtime_ns, entry.name) for entry in entries if entry.is_dir()]
    others = [stage_folder / name for _, name in sorted(folders, reverse=True) if name != current.name]
    for folder in others[MAX_OTHERS:]:
        with suppress(InputError, OSError), _locked(folder, folder.name):
            files.remove(folder)


def _publish_file(source: Path, destination: Path) -> None:
    with files.replacing(destination) as partial:
        _link(source, partial)


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
                _link(source, fresh / name)
            files.remove(old)
            if destination.exists():
                os.replace(destination, old)
            os.replace(fresh, destination)
        finally:
            files.remove(fresh)
        files.remove(old)


def _link(source: Path, destination: Path) -> None:
    """Hard link, so that publishing needs no space, or a copy where the file system has no links."""
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
