from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deltaspace.prompts import check_strength, clean, words_that_fit
from pipeline.runtime.errors import InputError


@pytest.mark.parametrize("text", ["", "   ", "\n\t", "\u200f\u200e", "\u2067\u2069", "\ufeff", "\u0000", "\u200d"])
def test_a_prompt_with_nothing_to_see_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="empty"):
        clean(text)


def test_a_prompt_that_is_no_valid_text_is_refused() -> None:
    with pytest.raises(InputError, match="UTF-8"):
        clean("red \udcff hair")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("  face\twith\n red   hair ", "face with red hair"),
        ("\u202bوجه بشعر أحمر\u202c", "وجه بشعر أحمر"),
        ("cafe\u0301", "café"),
        ("می\u200cخندد", "می\u200cخندد"),
        ("👩\u200d🦰", "👩\u200d🦰"),
    ],
)
def test_cleaning_drops_direction_marks_and_keeps_words(text: str, expected: str) -> None:
    assert clean(text) == expected


@given(st.text())
def test_cleaning_twice_changes_nothing(text: str) -> None:
    try:
        once = clean(text)
    except InputError:
        return
    assert clean(once) == once


class _Letters:
    """A tokenizer with one token per character."""

    context_length = 22

    def encode(self, text: str) -> list[int]:
        return [ord(c) for c in text]


CLIP = SimpleNamespace(tokenizer=_Letters(), substitute=lambda text: (text, {}))


@given(st.text(alphabet="ab ", max_size=60).map(str.strip).filter(bool))
def test_what_fits_is_the_longest_beginning_in_whole_words(text: str) -> None:
    text = clean(text)
    fitting = words_that_fit(text, CLIP, ("a {}", "the {}"))
    assert text.startswith(fitting) and len(f"the {fitting}") <= 20
    if fitting != text and len(text.split()[0]) <= 16:
        words = text.split()
        longer = " ".join(words[: len(fitting.split()) + 1])
        assert fitting == " ".join(words[: len(fitting.split())]) and len(f"the {longer}") > 20


def test_a_word_longer_than_all_clip_reads_is_cut() -> None:
    assert words_that_fit("a" * 5000, CLIP, ("the {}",)) == "a" * 16


@pytest.mark.parametrize("strength", [math.nan, math.inf, -math.inf, 1e9])
def test_strengths_no_edit_can_use_are_refused(strength: float) -> None:
    with pytest.raises(InputError, match="out of range"):
        check_strength(strength)
