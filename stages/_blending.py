"""The commands that draw what lies between pictures: `interpolate` and `mix`."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipeline.values import InputError
from stages import _arguments as arguments
from stages import _shell
from stages._arguments import DebugOption, DeviceOption, DomainOption, JsonOption

if TYPE_CHECKING:
    from torch import Tensor

    from pipeline.service import Person, Studio

OutOption = Annotated[Path, typer.Option("--out", "-o", metavar="DIR", help="Folder for the results.")]


def interpolate(
    words: Annotated[
        list[str],
        typer.Argument(
            metavar="IMAGE IMAGE | IMAGE TEXT | IMAGE TEXT TEXT",
            help="Two pictures; or a picture and its edit; or a picture's two edits. portrait:ID is a drawn person.",
        ),
    ],
    steps: Annotated[int, typer.Option(min=2, max=100, metavar="N", help="Pictures, both ends included.")] = 6,
    strength: Annotated[float, typer.Option(metavar="X", help="Of edits.")] = 1.0,
    domain: DomainOption = "portraits",
    device: DeviceOption = "auto",
    out: OutOption = Path("between"),
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Draw the pictures between two others, or between edits, with the diffusion model.

    Styles change in a straight line, noise along a sphere. Writes every picture and a grid.
    """
    if not 2 <= len(words) <= 3:
        raise InputError("give two pictures, or a picture and one or two texts: deltaspace interpolate a.png b.png")
    started, studio = _studio(domain, device)

    from pipeline import blending
    from pipeline.prompts import in_range

    person, editor = _person(studio, words[0]), _editor(studio)
    whole = blending.end(editor, person.source)
    if len(words) == 2 and _is_picture(words[1]):
        ends = [whole, blending.end(editor, _person(studio, words[1]).source)]
    else:
        directions = [editor.fit(studio.prompt(text).pair) for text in words[1:]]
        edits = [blending.end(editor, person.source, one, in_range(strength)) for one in directions]
        ends = [whole, *edits] if len(edits) == 1 else edits
    start, stop = ends
    found = blending.between(editor, start, stop, [number / (steps - 1) for number in range(steps)])
    names = [f"{person.name.split('.')[0]}-between-{number}" for number in range(steps)]
    _write(out, dict(zip(names, found, strict=True)), [], _paths(words), as_json, started)


def mix(
    content: Annotated[str, typer.Argument(metavar="CONTENT", help="The picture that stays; or portrait:ID.")],
    style: Annotated[str, typer.Argument(metavar="STYLE", help="The picture whose style it takes.")],
    levels: Annotated[
        list[str] | None,
        typer.Option(metavar="NAMES", help="Levels to take, e.g. medium,fine; absent, each of them alone."),
    ] = None,
    domain: DomainOption = "portraits",
    device: DeviceOption = "auto",
    out: OutOption = Path("mixed"),
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Draw a picture with style levels of another: coarse is shape, fine is colour. Writes pictures and a grid."""
    started, studio = _studio(domain, device)

    from pipeline import blending

    people, editor = [_person(studio, name) for name in (content, style)], _editor(studio)
    one, other = (blending.end(editor, person.source) for person in people)
    asked = [text.split(",") for text in levels or studio.backbones.generator.layout.levels]
    stem = people[0].name.split(".")[0]
    found = {f"{stem}-{'-'.join(names)}": blending.mixed(editor, one, other, names)[0] for names in asked}
    _write(out, found, [person.picture for person in people], _paths([content, style]), as_json, started)


def _studio(domain: str, device: str) -> tuple[float, Studio]:
    started = time.perf_counter()
    arguments.known(domain)
    _shell.one_thread()
    from pipeline.service import Studio

    return started, Studio.load(domain, device)


def _editor(studio: Studio) -> Any:
    """DeltaEdit-D, which knows how a picture's noise is found and drawn."""
    return studio.tool("deltaedit_d").editor


def _is_picture(word: str) -> bool:
    return word.startswith("portrait:") or os.path.exists(word)


def _person(studio: Studio, word: str) -> Person:
    if word.startswith("portrait:"):
        return studio.portrait(arguments.ids([word.removeprefix("portrait:")], "portrait:")[0])
    if not os.path.exists(word):
        raise InputError(f"{word[:80]} does not exist: give a picture, or portrait:ID for a drawn person")
    return studio.photo(Path(word))


def _paths(words: list[str]) -> list[Path]:
    return [Path(word) for word in words if os.path.exists(word)]


def _write(
    out: Path, found: dict[str, Tensor], before: list[Tensor], inputs: list[Path], as_json: bool, started: float
) -> None:
    """Every picture under its name, and a grid of all of them in one row, `before` first."""
    from pipeline import gallery, images

    target, paths = gallery.Gallery(out, inputs), []
    for name, picture in found.items():
        paths.append(target.named(name, gallery.ENDING))
        images.save_png(paths[-1], picture.cpu())
    grid = target.grid(None)
    gallery.save_grid(grid, [[*before, *(picture.cpu() for picture in found.values())]])
    seconds = time.perf_counter() - started
    if as_json:
        return _shell.print_json({"pictures": [str(path) for path in paths], "grid": str(grid), "seconds": seconds})
    for path in paths:
        typer.echo(f"wrote {path}")
    typer.echo(f"wrote {grid} in {seconds:.1f} s")
