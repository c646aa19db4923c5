"""Sources of published networks: address, path on disk, state, and instructions to get a file by hand."""

from __future__ import annotations

import glob
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from pipeline.runtime import files
from pipeline.runtime.errors import InputError
from pipeline.storage import domains
from pipeline.storage.domains import Domain, Weights

MB = 1_000_000
# licences that allow any use of the weights; all others have to be accepted
UNRESTRICTED = frozenset("MIT Apache-2.0 BSD-2-Clause BSD-3-Clause CC0-1.0 CC-BY-4.0".split())
DRIVE = "https://drive.usercontent.google.com/download?export=download&confirm=t&id={}"
PAGES = re.compile(r"https://(github\.com/[^/]+/[^/]+/?|drive\.google\.com/(drive|file)/.*)")
LOOPBACK = ("127.0.0.1", "::1", "localhost")


@dataclass(frozen=True)
class PublishedFile:
    """url: https://... or gdrive:ID; size in bytes and sha256 are None where they are not published."""

    url: str
    size: int | None = None
    sha256: str | None = None


@dataclass(frozen=True)
class Original:
    """The published file that one network is made of. root: the project."""

    domain: str
    network: str
    entry: Weights
    url: str
    root: Path

    @property
    def name(self) -> str:
        return self.entry.original or f"{self.network}.original"

    @property
    def place(self) -> str:
        """Path relative to the project, in a folder that git and DVC ignore."""
        return f"{Path(domains.default_path(self.domain, self.network)).parent.as_posix()}/originals/{self.name}"

    @property
    def path(self) -> Path:
        return self.root / self.place

    @property
    def published(self) -> PublishedFile:
        return PublishedFile(self.url, self.entry.original_size, self.entry.original_sha256)

    @property
    def command(self) -> str:
        return f"`deltaspace fetch {self.domain} {self.network}`"

    @property
    def restricted(self) -> bool:
        """Whether its licence has to be accepted first."""
        return self.entry.licence not in UNRESTRICTED

    def state(self, digest: Callable[[Path], str] = files.digest) -> str:
        """ "verified", "present" (no sha256 is published), "changed" (another file), "partial" or "missing"."""
        if not self.path.is_file():
            return "partial" if self.fetched_mb() else "missing"
        if self.entry.original_size not in (None, self.path.stat().st_size):
            return "changed"
        if self.entry.original_sha256 is None:
            return "present"
        return "verified" if digest(self.path) == self.entry.original_sha256 else "changed"

    def fetched_mb(self) -> int:
        """Megabytes that an interrupted fetch has left."""
        part = self.path.with_name(f"{self.path.name}.part")
        return -(-part.stat().st_size // MB) if part.is_file() else 0

    def verified_copy(self) -> Path | None:
        """The same file, verified, among the originals of another domain."""
        size, sha256 = self.entry.original_size, self.entry.original_sha256
        paths = self.root.glob(f"data/pretrained/*/originals/{glob.escape(self.name)}") if sha256 else ()
        for path in paths:
            if path.is_file() and size in (None, path.stat().st_size) and files.digest(path) == sha256:
                return path
        return None

    def check(self) -> None:
        """Raises InputError when the file on disk is not the published one."""
        if self.state() == "changed":
            size, published = self.path.stat().st_size, self.entry.original_size
            if published not in (None, size):
                difference = f"it has {size:,} bytes, {published:,} are published"
            else:
                difference = "its sha256 is another"
            raise InputError(
                f"{self.place} is not the published {self.name} ({difference}): remove it, then {self.command}"
            )

    def steps(self) -> list[str]:
        """Instructions for a download in the browser."""
        size = f" ({self.entry.original_size:,} bytes)" if self.entry.original_size else ""
        return [
            f"1. open {browser_url(self.url)} in a browser and download {self.name}{size}",
            f"2. put it at {self.place}",
            f"3. run {self.command} again: it verifies and converts the file",
        ]


def of(domain: Domain, network: str, root: Path) -> Original | None:
    """The original of a network; None when nothing is published and the network is trained here."""
    entry = domain.weights(network)
    return None if entry.url is None else Original(domain.name, network, entry, entry.url, root)


def link(source: Path, target: Path) -> None:
    """Hard-link a file, or copy it where the file system has no links."""
    with files.replacing(target) as partial:
        try:
            os.link(source, partial)
        except OSError:
            shutil.copyfile(source, partial)


# ---------------------------------------------------------------- addresses


def address(url: str) -> str:
    """The address to request for `url`. InputError unless it is https://, gdrive:ID or http:// of this machine."""
    if identity := _drive_id(url):
        return DRIVE.format(identity)
    if re.search(r"[^\x21-\x7e]", url) or not is_safe(url):
        raise InputError(f"'{one_line(url)}' is no address to fetch from: https://... or gdrive:ID is expected")
    return url


def browser_url(url: str) -> str:
    """The address to open in a browser."""
    identity = _drive_id(url)
    return f"https://drive.google.com/file/d/{identity}/view" if identity else url


def leads_to_page(url: str) -> bool:
    """Whether the file has to be looked for by hand: the page of a repository or of a folder."""
    return bool(PAGES.fullmatch(url))


def _drive_id(url: str) -> str | None:
    match = re.fullmatch(r"gdrive:([A-Za-z0-9_-]{10,100})", url)
    return match[1] if match else None


def is_safe(url: str) -> bool:
    """Whether it is an https:// address, or one of this machine."""
    try:
        parts = urlsplit(url)
        host = parts.hostname
    except ValueError:
        return False
    return bool(host) and (parts.scheme == "https" or (parts.scheme == "http" and host in LOOPBACK))


def one_line(text: object) -> str:
    """Text of a server or of a domain's file, fit for an error's one line."""
    return " ".join(str(text).encode("unicode_escape").decode().split())[:120]
