"""What CLIP reads in place of words it was never taught: the taught ones nearest in meaning, by a table of words."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pipeline.runtime import files
from pipeline.runtime.errors import InputError

WORD = re.compile(r"[^\W\d_]+")
START, END = "<", ">"
APOSTROPHES = "'’"
SURE = 60.0  # percent: what is read at less may be something else
# What it is worth to stand beside the word that follows, and beside the one before, as somewhere in the captions.
FITS, FITS_BEFORE = 3.0, 1.5


@dataclass(frozen=True)
class Wording:
    """near[word][taught]: how near a word comes to taught ones, in percent, for words that CLIP was not taught.

    vocabulary: the taught words; pairs: those that stand side by side in the captions it was taught with, START and
    END of one among them.
    """

    near: Mapping[str, Mapping[str, float]]
    vocabulary: frozenset[str]
    pairs: frozenset[tuple[str, str]]

    def read(self, text: str) -> tuple[str, dict[str, float]]:
        """(what CLIP reads for `text`, how near each untaught word comes to what is read for it, in percent).

        A word that nothing is near to stays as it is, and so does what stands beside an apostrophe. No word is taken
        that captions never have before the taught word which follows, or last where none follows; of the others rather
        one that they have beside its neighbours: fair hair is blond, fair skin light.
        """
        found, nearness = list(WORD.finditer(text)), dict[str, float]()
        words = [match[0].lower() for match in found]
        pieces, end = [], 0
        for n, match in enumerate(found):
            beside = text[max(0, match.start() - 1) : match.start()] + text[match.end() : match.end() + 1]
            if any(mark in beside for mark in APOSTROPHES):
                continue
            before, after = words[n - 1] if n else START, words[n + 1] if n + 1 < len(words) else END
            if read := self._nearest(words[n], before, after):
                nearness[words[n]] = self.near[words[n]][read]
                pieces += [text[end : match.start()], read]
                words[n], end = read, match.end()
        return "".join([*pieces, text[end:]]), nearness

    def _nearest(self, word: str, before: str, after: str) -> str | None:
        def worth(taught: str) -> float:
            beside = FITS_BEFORE * ((before, taught) in self.pairs) + FITS * ((taught, after) in self.pairs)
            return self.near[word][taught] * (1 + beside)

        if word in self.vocabulary:
            return None
        known = after == END or after in self.vocabulary
        able = [taught for taught in sorted(self.near.get(word, ())) if not known or (taught, after) in self.pairs]
        return max(able, key=worth, default=None)


def save(path: Path, wording: Wording, licence: str) -> None:
    """Write a table with the terms of those it was made from, a line for every word."""

    def lines(table: Mapping[str, object]) -> str:
        return ",\n".join(f"{json.dumps(word)}: {json.dumps(table[word])}" for word in sorted(table))

    follow: dict[str, list[str]] = {}
    for first, second in sorted(wording.pairs):
        follow.setdefault(first, []).append(second)
    tables = {"follow": follow, "near": wording.near}
    parts = [f'"{name}": {{\n{lines(table)}\n}}' for name, table in tables.items()]
    body = ",\n".join([f'"licence": {json.dumps(licence)}', *parts])
    files.write_bytes(path, f"{{{body}}}\n".encode())


def load(path: Path, sha256: str, vocabulary: frozenset[str]) -> Wording:
    """The table that `save` wrote; InputError when it is missing, not the one of that digest, or no such table."""
    if not path.is_file():
        raise InputError(f"{path} is missing: `git checkout` it, or take `words` out of the domain's file")
    if files.digest(path) != sha256:
        raise InputError(f"{path} is not the one that the domain's file names: its sha256 is {files.digest(path)}")
    try:
        content = json.loads(path.read_bytes())
        pairs = frozenset((first, second) for first, seconds in content["follow"].items() for second in seconds)
        return Wording(content["near"], vocabulary, pairs)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path} is no table of words: make it again with `deltaspace words`") from error
