"""Options shared by commands, and arguments turned into values; a mistake raises InputError that says what to type."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Annotated

import typer

from pipeline.runtime.errors import InputError, nearest

EXAMPLE = 'deltaspace edit photo.png "face with red hair"'
DomainOption = Annotated[str, typer.Option("--domain", "-d", metavar="NAME", help="Kind of images; see `domains`.")]
DeviceOption = Annotated[str, typer.Option(metavar="NAME", help="auto, cpu, cuda or cuda:N.")]
FaceOption = Annotated[
    int | None,
    typer.Option("--face", min=1, metavar="N", help="Number of the face, from left to right; default: the largest."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object, and nothing else, on stdout.")]
DebugOption = Annotated[
    bool, typer.Option("--debug", help="Show the traceback of an error, and where settings come from.")
]


def images_and_texts(words: list[str], by_id: bool) -> tuple[list[Path], list[str]]:
    """The words after `edit`: an image or a folder, then texts; texts only where images are given by id."""
    from deltaspace.prompts import clean

    if by_id and words and os.path.exists(words[0]):
        raise InputError(f"both the image {words[0]} and --sample or --portrait: give one of them")
    if by_id and not words:
        raise InputError(f"no text: say what the images should show, as in {EXAMPLE}")
    if not by_id and len(words) < 2:
        missing = "no text" if words else "no image and no text"
        raise InputError(f"{missing}: write {EXAMPLE}, or give --sample ID instead of an image")
    images = [] if by_id else [Path(words[0])]
    for image in images:
        if not os.path.exists(image):  # unlike Path.exists, also for names no file can have
            raise InputError(
                f"{str(image)[:80]} does not exist: the first word is an image or a folder, as in {EXAMPLE}"
            )
    return images, list(dict.fromkeys(clean(text) for text in words[len(images) :]))


def ids(values: list[str] | None, option: str) -> tuple[int, ...]:
    """Row ids of an option that may be repeated and may hold a list with commas."""
    numbers = []
    for text in _split(values):
        if not (text.isascii() and text.isdigit() and len(text) < 16):
            raise InputError(f"{option} '{text}' is not an id: give whole numbers from 0 up, such as {option} 3,7")
        numbers.append(int(text))
    return tuple(dict.fromkeys(numbers))


def strengths(values: list[str] | None) -> list[float | None]:
    """Strengths in the order given; [None], the editor's own, when there are none."""
    from deltaspace.prompts import check_strength

    numbers: list[float | None] = []
    for text in _split(values):
        try:
            numbers.append(check_strength(float(text)))
        except ValueError:
            raise InputError(f"--strength '{text}' is not a number: give numbers such as 0.5,1") from None
    return list(dict.fromkeys(numbers)) or [None]


Value = bool | int | float | str | None | list["Value"]


def grid(values: list[str], option: str = "--try") -> dict[str, list[Value]]:
    """Values of settings to try: "strength=1,2" -> {"strength": [1, 2]}; also words, null, and lists.

    A list is written with plus signs: "widths=0.5+1,0.5+1+2" -> {"widths": [[0.5, 1], [0.5, 1, 2]]}.
    """
    settings: dict[str, list[Value]] = {}
    for text in values:
        name, _, chosen = text.partition("=")
        if not name.strip() or not all(part.strip() for part in chosen.split(",")):
            raise InputError(f"{option} '{text}' is not understood: write {option} strength=1,1.5,2")
        settings[name.strip()] = [_value(part.strip()) for part in chosen.split(",")]
    return settings


def _value(text: str) -> Value:
    """A number, true, false, null, a list of them, or else the text."""
    constants: dict[str, Value] = {"true": True, "false": False, "null": None}
    if text in constants:
        return constants[text]
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            pass
    parts = [part.strip() for part in text.split("+")]
    return [_value(part) for part in parts] if len(parts) > 1 and all(parts) else text


def words(text: str) -> list[str]:
    """The different words of a list with commas."""
    different = list(dict.fromkeys(filter(None, _split([text]))))
    if not different:
        raise InputError("an empty list: give names, with commas between them")
    return different


def finite(value: float | None, option: str, example: float) -> float | None:
    """`value`, unless it is infinite or not a number (InputError)."""
    if value is not None and not math.isfinite(value):
        raise InputError(f"{option} {value} is out of range: give a number such as {example:g}")
    return value


def check_face(face: int | None, images: list[Path]) -> None:
    """Raises InputError for a face number without a photograph."""
    if face is not None and not images:
        raise InputError("--face chooses among the faces of a photograph: give an image, or leave it out")


def check_names(domain: str, editor: str | None = None) -> None:
    """Raises InputError for mistyped names, before torch is imported."""
    from pipeline import editors
    from pipeline.storage import domains, params

    domains.load(domain, params.root())
    if editor is not None and editor not in editors.names():
        editors.module(editor)


def check_style(style: str) -> None:
    """Raises InputError for an unknown style of the portraits renderer."""
    from pipeline.portraits import STYLES

    if style not in STYLES:
        raise InputError(f"unknown style '{style}'{nearest(style, STYLES)}: there are {', '.join(STYLES)}")


def project() -> Path:
    """The project folder, for commands that write into it. InputError where there is only an installed package."""
    from pipeline.storage import params

    root = params.root()
    if root.name == "_rooms":  # data of the installed package: see deltaspace/__init__.py
        raise InputError("no project here: run it in a clone of the repository, or set DELTASPACE_ROOT to its folder")
    return root


def _split(values: list[str] | None) -> list[str]:
    return [part.strip() for value in values or [] for part in value.split(",")]
