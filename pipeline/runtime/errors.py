"""The error that bad input raises and the hint for a mistyped name."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class InputError(Exception):
    """Input that cannot be used. The message is one line: what is wrong, and what to do about it."""


def nearest(name: str, choices: Iterable[str]) -> str:
    """A hint such as " (did you mean 'cat'?)" for a mistyped name, or an empty string.

    name: the mistyped name.
    choices: the names that exist.
    """
    match = difflib.get_close_matches(str(name), list(choices), n=1)
    return f" (did you mean '{match[0]}'?)" if match else ""
