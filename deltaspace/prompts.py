"""What people type, made fit for CLIP: any script, invisible marks, any length; and what CLIP makes of it."""

from __future__ import annotations

import bisect
import math
import re
import unicodedata
from collections.abc import Iterable
from typing import TYPE_CHECKING

from pipeline.models.synonyms import SURE
from pipeline.runtime.errors import InputError

if TYPE_CHECKING:
    from pipeline.models.clip import Clip

LONGEST = 1000  # characters that are looked at; CLIP reads far fewer, and a tokenizer is slow on megabytes
# Marks that steer the direction of writing, or take no room; joiners (U+200C, U+200D) are parts of words and stay.
_MARKS = (0x061C, 0x200B, 0x200E, 0x200F, 0x2060, 0xFEFF, *range(0x202A, 0x202F), *range(0x2066, 0x206A))
MOST_STRENGTH = 20.0
_INVISIBLE = dict.fromkeys(_MARKS)
_SEEN = "LNSP"  # categories of characters that show: letters, numbers, symbols, punctuation


def clean(text: str, what: str = "prompt") -> str:
    """`text` in composed form (NFC) with single spaces, without control characters and direction marks.

    Raises InputError, naming it as `what`, when nothing visible is left or it is no valid text.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InputError(f"the {what} is not valid UTF-8: type it again, or check the terminal's encoding") from error
    visible = unicodedata.normalize("NFC", text).translate(_INVISIBLE)
    visible = " ".join("".join(" " if unicodedata.category(c) == "Cc" else c for c in visible).split())
    if not any(unicodedata.category(c)[0] in _SEEN for c in visible):
        raise InputError(f"the {what} is empty: say what the picture should show, such as 'face with red hair'")
    return visible


def words_that_fit(text: str, clip: Clip, templates: tuple[str, ...]) -> str:
    """The longest beginning of `text`, in whole words, that `clip` reads to its end in every template, as it reads it.

    A first word that is longer than all CLIP reads is cut.
    """
    tokenizer = clip.tokenizer
    room = tokenizer.context_length - 2  # start and end of text

    def fits(beginning: str) -> bool:
        return all(len(tokenizer.encode(template.format(clip.read(beginning)[0]))) <= room for template in templates)

    text = text[:LONGEST]
    if fits(text):
        return text
    words = text.split()
    count = bisect.bisect_left(range(1, len(words) + 1), True, key=lambda n: not fits(" ".join(words[:n])))
    if count:
        return " ".join(words[:count])
    size = bisect.bisect_left(range(1, len(text) + 1), True, key=lambda n: not fits(text[:n]))
    return text[: max(size, 1)]


def untaught(words: str, clip: Clip, name: str) -> list[str]:
    """Warnings about what the CLIP of domain `name` was never taught of `words`: what it reads for it, or that it is
    not to be trusted there. Empty for a CLIP whose vocabulary is not known, as of public ones, which know nearly all.
    """
    if clip.vocabulary is None:
        return []
    told, (read, nearness) = f"the CLIP of {name} was never taught", clip.read(words)
    warnings = [f"{told} {_quoted(nearness)}: it reads '{read}'"] if nearness else []
    if unsure := [word for word, near in nearness.items() if near < SURE]:
        warnings[0] += f", which may not be what {_quoted(unsure)} says"
    all_words = list(dict.fromkeys(re.findall(r"[^\W\d_]+|[^\w\s.,;:!?'\"()-]", read.lower())))
    unknown = set(clip.unknown_words(read))
    unknown |= {word for word in all_words if not word.isalpha() and word not in clip.vocabulary}
    if not unknown and all_words:
        return warnings
    named = _quoted([word for word in all_words if word in unknown] or [words])
    count = f"{len(unknown)} of {len(all_words)} words" if all_words else "a prompt without words"
    return [*warnings, f"{told} {count} ({named}): do not trust what they do"]


def _quoted(words: Iterable[str]) -> str:
    """Words between quotes, as far as they fit into a line."""
    named = ", ".join(f"'{word}'" for word in words)
    return named if len(named) <= 80 else f"{named[:80]}..."


def in_range(strength: float) -> float:
    """`strength` if it is a number an edit can use."""
    if not math.isfinite(strength) or abs(strength) > MOST_STRENGTH:
        raise InputError(f"strength {strength:g} is out of range: give a number such as 1, at most {MOST_STRENGTH:g}")
    return float(strength)
