"""Prompts as typed, made fit for CLIP: any script, invisible marks, any length; and warnings about them."""

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

MAX_LENGTH = 1000  # characters; CLIP reads far fewer, and a tokenizer is slow on megabytes
# Marks of writing direction and of zero width; joiners (U+200C, U+200D) are parts of words and stay.
_MARKS = (0x061C, 0x200B, 0x200E, 0x200F, 0x2060, 0xFEFF, *range(0x202A, 0x202F), *range(0x2066, 0x206A))
MAX_STRENGTH = 20.0
_INVISIBLE = dict.fromkeys(_MARKS)
_VISIBLE = "LNSP"  # Unicode categories: letters, numbers, symbols, punctuation


def clean(text: str, what: str = "prompt") -> str:
    """`text` in composed form (NFC) with single spaces, without control characters and direction marks.

    Raises InputError, naming it as `what`, when nothing visible is left or it is no valid text.
    """
    if not isinstance(text, str):
        raise InputError(f"the {what} is a {type(text).__name__}: give text")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InputError(f"the {what} is not valid UTF-8: type it again, or check the terminal's encoding") from error
    visible = unicodedata.normalize("NFC", text).translate(_INVISIBLE)
    visible = " ".join("".join(" " if unicodedata.category(c) == "Cc" else c for c in visible).split())
    if not any(unicodedata.category(c)[0] in _VISIBLE for c in visible):
        raise InputError(f"the {what} is empty: say what the picture should show, such as 'face with red hair'")
    return visible


def words_that_fit(text: str, clip: Clip, templates: tuple[str, ...]) -> str:
    """The longest beginning of `text`, in whole words, that fits into CLIP's context length with every template.

    A first word that alone is too long is cut.
    """
    tokenizer = clip.tokenizer
    room = tokenizer.context_length - 2  # start and end of text

    def fits(beginning: str) -> bool:
        return all(
            len(tokenizer.encode(template.format(clip.substitute(beginning)[0]))) <= room for template in templates
        )

    text = text[:MAX_LENGTH]
    if fits(text):
        return text
    words = text.split()
    count = bisect.bisect_left(range(1, len(words) + 1), True, key=lambda n: not fits(" ".join(words[:n])))
    if count:
        return " ".join(words[:count])
    size = bisect.bisect_left(range(1, len(text) + 1), True, key=lambda n: not fits(text[:n]))
    return text[: max(size, 1)]


def vocabulary_warnings(words: str, clip: Clip, name: str) -> list[str]:
    """Warnings about words outside the training captions of domain `name`'s CLIP: replaced by others, or unreliable.

    Empty for a CLIP without a known vocabulary, as public ones, which know nearly all words.
    """
    if clip.vocabulary is None:
        return []
    prefix, (read, nearness) = f"the CLIP of {name} was never taught", clip.substitute(words)
    warnings = [f"{prefix} {_quoted(nearness)}: it reads '{read}'"] if nearness else []
    if unsure := [word for word, near in nearness.items() if near < SURE]:
        warnings[0] += f", which may not be what {_quoted(unsure)} says"
    all_words = list(dict.fromkeys(re.findall(r"[^\W\d_]+|[^\w\s.,;:!?'\"()-]", read.lower())))
    unknown = set(clip.unknown_words(read))
    unknown |= {word for word in all_words if not word.isalpha() and word not in clip.vocabulary}
    if not unknown and all_words:
        return warnings
    listed = _quoted([word for word in all_words if word in unknown] or [words])
    count = f"{len(unknown)} of {len(all_words)} words" if all_words else "a prompt without words"
    return [*warnings, f"{prefix} {count} ({listed}): do not trust what they do"]


def _quoted(words: Iterable[str]) -> str:
    """Words between quotes, as far as they fit into a line."""
    text = ", ".join(f"'{word}'" for word in words)
    return text if len(text) <= 80 else f"{text[:80]}..."


def check_strength(strength: float) -> float:
    """`strength` unless it is out of range (InputError)."""
    if not isinstance(strength, int | float) or not math.isfinite(strength) or abs(strength) > MAX_STRENGTH:
        raise InputError(f"strength {strength!r} is out of range: give a number such as 1, at most {MAX_STRENGTH:g}")
    return float(strength)


def check_row_id(row_id: int) -> int:
    """`row_id` unless it is no whole number from 0 up (InputError)."""
    if type(row_id) is not int or row_id < 0:
        raise InputError(f"{row_id!r} is no id: give a whole number from 0 up")
    return row_id
