"""Replacement of words that CLIP's training captions lack by the nearest ones that they have, from a thesaurus."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass

WORD = re.compile(r"[^\W\d_]+")
START, END = "<", ">"
APOSTROPHES = "'’"
SURE = 60.0  # percent: a replacement below this may mean something else
# Factors on the nearness of a candidate that captions have next to the following word, and to the preceding one.
FOLLOWING_WEIGHT, PRECEDING_WEIGHT = 3.0, 1.5


@dataclass(frozen=True)
class SynonymTable:
    """Thesaurus from words that CLIP does not know to the words of its training captions.

    near: near[word][known], nearness in percent of an unknown word to known ones.
    vocabulary: the known words.
    pairs: neighbouring words in the captions, with START and END of a caption among them.
    """

    near: Mapping[str, Mapping[str, float]]
    vocabulary: frozenset[str]
    pairs: frozenset[tuple[str, str]]

    def substitute(self, text: str) -> tuple[str, dict[str, float]]:
        """Replace the unknown words of a text; return it and the nearness in percent of each replaced word.

        Words without a near known one, and words next to an apostrophe, stay. A candidate must occur in captions before
        the known word that follows, or last where none follows; of the others those that captions have next to the
        neighbours are preferred: fair hair becomes blond, fair skin light.
        """
        matches, nearness = list(WORD.finditer(text)), dict[str, float]()
        words = [match[0].lower() for match in matches]
        pieces, end = [], 0
        for n, match in enumerate(matches):
            neighbours = text[max(0, match.start() - 1) : match.start()] + text[match.end() : match.end() + 1]
            if any(mark in neighbours for mark in APOSTROPHES):
                continue
            before, after = words[n - 1] if n else START, words[n + 1] if n + 1 < len(words) else END
            if replacement := self._nearest(words[n], before, after):
                nearness[words[n]] = self.near[words[n]][replacement]
                pieces += [text[end : match.start()], replacement]
                words[n], end = replacement, match.end()
        return "".join([*pieces, text[end:]]), nearness

    def _nearest(self, word: str, before: str, after: str) -> str | None:
        def weighted(known: str) -> float:
            preceding = PRECEDING_WEIGHT * ((before, known) in self.pairs)
            following = FOLLOWING_WEIGHT * ((known, after) in self.pairs)
            return self.near[word][known] * (1 + (preceding + following))

        if word in self.vocabulary:
            return None
        constrained = after == END or after in self.vocabulary
        candidates = [
            known for known in sorted(self.near.get(word, ())) if not constrained or (known, after) in self.pairs
        ]
        return max(candidates, key=weighted, default=None)


def serialise(table: SynonymTable, licence: str) -> bytes:
    """JSON of a table, a line per word, with the licence of the thesauri that it was made from."""

    def lines(entries: Mapping[str, object]) -> str:
        return ",\n".join(f"{json.dumps(word)}: {json.dumps(entries[word])}" for word in sorted(entries))

    follow: dict[str, list[str]] = {}
    for first, second in sorted(table.pairs):
        follow.setdefault(first, []).append(second)
    sections = {"follow": follow, "near": table.near}
    parts = [f'"{name}": {{\n{lines(entries)}\n}}' for name, entries in sections.items()]
    body = ",\n".join([f'"licence": {json.dumps(licence)}', *parts])
    return f"{{{body}}}\n".encode()


def parse(content: bytes, vocabulary: frozenset[str]) -> SynonymTable:
    """Table in the JSON of `serialise`, for a CLIP with these known words. Raises ValueError for other content."""
    try:
        table = json.loads(content)
        pairs = frozenset((first, second) for first, seconds in table["follow"].items() for second in seconds)
        return SynonymTable(table["near"], vocabulary, pairs)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"not a table of synonyms: {error}") from error
