"""The published files that a domain's networks are made of: where they lie, in which state, how to get them."""

from __future__ import annotations

import glob
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pipeline.checkpoints import addresses
from pipeline.checkpoints.download import MB, Wanted
from pipeline.runtime import files
from pipeline.runtime.errors import InputError
from pipeline.storage import domains
from pipeline.storage.domains import Domain, Weights

# licences that let everyone use the weights for anything; all others are asked about
UNRESTRICTED = frozenset("MIT Apache-2.0 BSD-2-Clause BSD-3-Clause CC0-1.0 CC-BY-4.0".split())


@dataclass(frozen=True)
class Original:
    """The original of one network. root: the project."""

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
        """Where it lies, relative to the project; git and DVC do not see that folder."""
        return f"{Path(domains.default_path(self.domain, self.network)).parent.as_posix()}/originals/{self.name}"

    @property
    def path(self) -> Path:
        return self.root / self.place

    @property
    def wanted(self) -> Wanted:
        return Wanted(self.url, self.entry.original_size, self.entry.original_sha256)

    @property
    def command(self) -> str:
        return f"`deltaspace fetch {self.domain} {self.network}`"

    @property
    def restricted(self) -> bool:
        """Whether its licence is to be accepted first."""
        return self.entry.licence not in UNRESTRICTED

    def state(self, digest: Callable[[Path], str] = files.digest) -> str:
        """ "verified", "present" (nobody gave a digest), "changed" (not the published file), "partial" or "missing"."""
        if not self.path.is_file():
            return "partial" if self.fetched() else "missing"
        if self.entry.original_size not in (None, self.path.stat().st_size):
            return "changed"
        if self.entry.original_sha256 is None:
            return "present"
        return "verified" if digest(self.path) == self.entry.original_sha256 else "changed"

    def fetched(self) -> int:
        """Megabytes of it that a fetch that was stopped has left."""
        part = self.path.with_name(f"{self.path.name}.part")
        return -(-part.stat().st_size // MB) if part.is_file() else 0

    def twin(self) -> Path | None:
        """The same file, verified, among the originals of another domain."""
        size, sha256 = self.entry.original_size, self.entry.original_sha256
        found = self.root.glob(f"data/pretrained/*/originals/{glob.escape(self.name)}") if sha256 else ()
        for path in found:
            if path.is_file() and size in (None, path.stat().st_size) and files.digest(path) == sha256:
                return path
        return None

    def check(self) -> None:
        """InputError when the file that is there is not the published one."""
        if self.state() == "changed":
            size, published = self.path.stat().st_size, self.entry.original_size
            other = published not in (None, size)
            told = f"it has {size:,} bytes, {published:,} are published" if other else "its sha256 is another"
            raise InputError(f"{self.place} is not the published {self.name} ({told}): remove it, then {self.command}")

    def steps(self) -> list[str]:
        """What a person does when no program can fetch it."""
        size = f" ({self.entry.original_size:,} bytes)" if self.entry.original_size else ""
        return [
            f"1. open {addresses.browsed(self.url)} in a browser and download {self.name}{size}",
            f"2. put it at {self.place}",
            f"3. run {self.command} again: it verifies the file and goes on",
        ]


def of(domain: Domain, network: str, root: Path) -> Original | None:
    """The original of a network; None when nothing is published and the network is made here."""
    entry = domain.weights(network)
    return None if entry.url is None else Original(domain.name, network, entry, entry.url, root)


def copy(source: Path, target: Path) -> None:
    """A second name of a file, or a copy where the disk knows no such thing."""
    with files.replacing(target) as partial:
        try:
            os.link(source, partial)
        except OSError:
            shutil.copyfile(source, partial)
