"""Where edited pictures go: file names that are safe for any prompt, pictures written whole, one grid to look at."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.runtime.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

ENDING = ".png"
LONGEST_STEM, LONGEST_SLUG = 100, 80  # bytes; file systems allow 255 for a whole name
CELL = 128  # a picture in the grid is at least this wide


def slug(text: str) -> str:
    """`text` as a part of a file name: letters, marks and digits of any script, everything else a hyphen."""
    kept = "".join(c if unicodedata.category(c)[0] in "LMN" else "-" for c in unicodedata.normalize("NFC", text))
    return _shortened("-".join(filter(None, kept.lower().split("-"))), LONGEST_SLUG).strip("-") or "prompt"


class Gallery:
    """A folder that results are written to. No two results of one run get the same name.

    out: the folder, or the name of a .png file when there is one single result. inputs: the pictures that are read,
    which are never written over. Raises InputError when `out` cannot be such a folder.
    """

    def __init__(self, out: Path, inputs: Sequence[Path] = (), single: bool = False) -> None:
        self.file = out if out.suffix.lower() == ENDING and not out.is_dir() else None
        if self.file and not single:
            raise InputError(f"{out} is one file, but several pictures will be written: name a folder with --out")
        self.folder = self.file.parent if self.file else out
        blocking = next((part for part in (self.folder, *self.folder.parents) if part.exists()), None)
        if blocking is not None and not blocking.is_dir():
            raise InputError(f"{blocking} is a file, not a folder: choose another --out")
        self.inputs = {path.resolve() for path in inputs}
        if self.file and self.file.resolve() in self.inputs:
            raise InputError(f"{out} is the picture itself: choose another --out")
        self.taken: set[str] = set()

    def result(self, *parts: str) -> Path:
        """The file of a result; `parts` such as picture, prompt and strength make its name."""
        return self.file or self.named("-".join(parts), ENDING)

    def grid(self, stem: str | None) -> Path:
        """The file of the grid, named after the picture when there is only one."""
        if self.file:
            return self.named(f"{self.file.stem}-grid", ENDING)
        return self.named(f"{stem}-grid" if stem else "grid", ENDING)

    def named(self, stem: str, ending: str) -> Path:
        """`stem` + `ending` in the folder, with a number when this run has used the name, or reads that file."""
        number = 1
        while True:
            path = self.folder / f"{stem}{f'-{number}' if number > 1 else ''}{ending}"
            number += 1
            if path.name.casefold() not in self.taken and path.resolve() not in self.inputs:
                self.taken.add(path.name.casefold())
                return path


def stem_of(path: Path) -> str:
    """The name of a picture without its ending, short enough to be a part of another name."""
    return _shortened(path.stem, LONGEST_STEM)


def save_grid(path: Path, rows: Sequence[Sequence[Tensor]]) -> None:
    """Write rows of pictures [3,R,R] as one PNG; small ones are enlarged by whole factors."""
    from pipeline.storage import images

    size = rows[0][0].shape[-1]
    factor = max(1, CELL // size)
    enlarged = [[cell.repeat_interleave(factor, 1).repeat_interleave(factor, 2) for cell in row] for row in rows]
    images.save_png(path, images.grid(enlarged, pad=max(2, factor)))


def _shortened(name: str, limit: int) -> str:
    """At most `limit` bytes of `name`, cut between characters."""
    while len(os.fsencode(name)) > limit:
        name = name[:-1]
    return name
