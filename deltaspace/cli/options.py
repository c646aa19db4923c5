"""What people type after a command, made into values; a mistake is an InputError that says what to type."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Annotated

import typer

from pipeline.runtime.errors import InputError, nearest

BENCHES = ("kernels", "ffhq")
EXAMPLE = 'deltaspace edit photo.png "face with red hair"'
DomainOption = Annotated[str, typer.Option("--domain", "-d", metavar="NAME", help="Kind of pictures; see `domains`.")]
DeviceOption = Annotated[str, typer.Option(metavar="NAME", help="auto, cpu, cuda or cuda:N.")]
FaceOption = Annotated[
    int | None,
    typer.Option("--face", min=1, metavar="N", help="Which face, counted from left to right; absent, the largest."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object, and nothing else, on stdout.")]
DebugOption = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]


def pictures_and_texts(words: list[str], drawn: bool) -> tuple[list[Path], list[str]]:
    """The words after `edit`: a picture or a folder, then texts; with people that are drawn by id all are texts."""
    from deltaspace.prompts import clean

    if drawn and words and os.path.exists(words[0]):
        raise InputError(f"both the picture {words[0]} and --sample or --portrait: give one of them")
    if drawn and not words:
        raise InputError(f"no text: say what the pictures should show, as in {EXAMPLE}")
    if not drawn and len(words) < 2:
        missing = "no text" if words else "no picture and no text"
        raise InputError(f"{missing}: write {EXAMPLE}, or give --sample ID instead of a picture")
    pictures = [] if drawn else [Path(words[0])]
    for picture in pictures:
        if not os.path.exists(picture):  # unlike Path.exists, also for names no file can have
            raise InputError(
                f"{str(picture)[:80]} does not exist: the first word is a picture or a folder, as in {EXAMPLE}"
            )
    return pictures, list(dict.fromkeys(clean(text) for text in words[len(pictures) :]))


def ids(values: list[str] | None, option: str) -> tuple[int, ...]:
    """Row ids of an option that may be repeated and may hold a list with commas."""
    found = []
    for text in _listed(values):
        if not (text.isascii() and text.isdigit() and len(text) < 16):
            raise InputError(f"{option} '{text}' is not an id: give whole numbers from 0 up, such as {option} 3,7")
        found.append(int(text))
    return tuple(dict.fromkeys(found))


def strengths(values: list[str] | None) -> list[float | None]:
    """Strengths in the order given; [None], the editor's own, when there are none."""
    from deltaspace.prompts import in_range

    found: list[float | None] = []
    for text in _listed(values):
        try:
            found.append(in_range(float(text)))
        except ValueError:
            raise InputError(f"--strength '{text}' is not a number: give numbers such as 0.5,1") from None
    return list(dict.fromkeys(found)) or [None]


Value = bool | int | float | str | None | list["Value"]


def tries(values: list[str], option: str = "--try") -> dict[str, list[Value]]:
    """Settings to try: "strength=1,2" -> {"strength": [1, 2]}; also words, as in solver=ddim,belm, null, and lists.

    A list is written with plus signs: "tries=0.5+1,0.5+1+2" -> {"tries": [[0.5, 1], [0.5, 1, 2]]}.
    """
    found: dict[str, list[Value]] = {}
    for text in values:
        name, _, chosen = text.partition("=")
        if not name.strip() or not all(part.strip() for part in chosen.split(",")):
            raise InputError(f"{option} '{text}' is not understood: write {option} strength=1,1.5,2")
        found[name.strip()] = [_plain(part.strip()) for part in chosen.split(",")]
    return found


def _plain(text: str) -> Value:
    """A number, a truth value, nothing, or a list of them where `text` is one."""
    words: dict[str, Value] = {"true": True, "false": False, "null": None}
    if text in words:
        return words[text]
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            pass
    parts = [part.strip() for part in text.split("+")]
    return [_plain(part) for part in parts] if len(parts) > 1 and all(parts) else text


def words(text: str) -> list[str]:
    """The different words of a list with commas."""
    found = list(dict.fromkeys(filter(None, _listed([text]))))
    if not found:
        raise InputError("an empty list: give names, with commas between them")
    return found


def finite(value: float | None, option: str, example: float) -> float | None:
    """`value` when it is absent or a finite number."""
    if value is not None and not math.isfinite(value):
        raise InputError(f"{option} {value} is out of range: give a number such as {example:g}")
    return value


def of_a_photograph(face: int | None, pictures: list[Path]) -> None:
    """A face can only be chosen where there is a photograph."""
    if face is not None and not pictures:
        raise InputError("--face chooses among the faces of a photograph: give a picture, or leave it out")


def of_a_bench(what: str | None, rows: list[str] | None) -> None:
    """What `bench` measures; only the comparison has rows to choose from."""
    if what is not None and what not in BENCHES:
        raise InputError(f"unknown bench '{what}'{nearest(what, BENCHES)}: give {' or '.join(BENCHES)}, or nothing")
    if what is not None and rows:
        raise InputError(f"--rows chooses among the rows of the comparison: leave it out with {what}")


def known(domain: str, editor: str | None = None) -> None:
    """Tell mistyped names before anything heavy is imported."""
    from pipeline import editors
    from pipeline.storage import domains, params

    domains.load(domain, params.root())
    if editor is not None and editor not in editors.names():
        editors.module(editor)


def _listed(values: list[str] | None) -> list[str]:
    return [part.strip() for value in values or [] for part in value.split(",")]
