"""File names of results: safe for any prompt, never the same twice, never that of an input."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Sequence
from pathlib import Path

from pipeline.runtime.errors import InputError

ENDING = ".png"
MAX_STEM, MAX_SLUG = 100, 80  # bytes; file systems allow 255 for a whole name


def slug(text: str) -> str:
    """`text` as a part of a file name: letters, marks and digits of any script, everything else a hyphen."""
    kept = "".join(c if unicodedata.category(c)[0] in "LMN" else "-" for c in unicodedata.normalize("NFC", text))
    return _shortened("-".join(filter(None, kept.lower().split("-"))), MAX_SLUG).strip("-") or "prompt"


def stem_of(path: Path) -> str:
    """The name of an image without its ending, short enough to be a part of another name."""
    return _shortened(path.stem, MAX_STEM)


class OutputFolder:
    """Folder that one run writes its results to, each under a name of its own.

    out: the folder, or the name of a .png file for a single result
    inputs: image files that are read, and never written over
    Raises InputError when `out` cannot be such a folder.
    """

    def __init__(self, out: Path, inputs: Sequence[Path] = (), single: bool = False) -> None:
        self.file = out if out.suffix.lower() == ENDING and not out.is_dir() else None
        if self.file and not single:
            raise InputError(f"{out} is one file, but several images will be written: name a folder with --out")
        self.folder = self.file.parent if self.file else out
        blocking = next((part for part in (self.folder, *self.folder.parents) if part.exists()), None)
        if blocking is not None and not blocking.is_dir():
            raise InputError(f"{blocking} is a file, not a folder: choose another --out")
        self.inputs = {path.resolve() for path in inputs}
        if self.file and self.file.resolve() in self.inputs:
            raise InputError(f"{out} is the image itself: choose another --out")
        self.used: set[str] = set()

    def result(self, *parts: str) -> Path:
        """The file of a result; `parts`, such as image, prompt and strength, make its name."""
        return self.file or self.path("-".join(parts), ENDING)

    def grid(self, stem: str | None) -> Path:
        """The file of the grid, named after the image when there is only one."""
        if self.file:
            return self.path(f"{self.file.stem}-grid", ENDING)
        return self.path(f"{stem}-grid" if stem else "grid", ENDING)

    def path(self, stem: str, ending: str) -> Path:
        """`stem` + `ending` in the folder, numbered when this run has used the name, or reads that file."""
        number = 1
        while True:
            path = self.folder / f"{stem}{f'-{number}' if number > 1 else ''}{ending}"
            number += 1
            if path.name.casefold() not in self.used and path.resolve() not in self.inputs:
                self.used.add(path.name.casefold())
                return path


def _shortened(name: str, limit: int) -> str:
    """At most `limit` bytes of `name`, cut between characters."""
    while len(os.fsencode(name)) > limit:
        name = name[:-1]
    return name
