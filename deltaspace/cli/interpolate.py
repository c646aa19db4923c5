"""The commands that draw what lies between pictures: `interpolate` and `mix`."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from deltaspace.cli import errors
from deltaspace.cli import options as arguments
from deltaspace.cli.options import DebugOption, DeviceOption, DomainOption, JsonOption
from pipeline.runtime.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

    from deltaspace.outputs import Gallery
    from deltaspace.studio import Person, Studio

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
    pictures = [word for word in words[1:] if _is_picture(word)]
    if not 2 <= len(words) <= 3 or (pictures and len(words) == 3):
        raise InputError("give two pictures, or a picture and one or two texts: deltaspace interpolate a.png b.png")
    target = _gallery(out, words)
    started, studio = _studio(domain, device)

    from deltaspace.prompts import in_range
    from pipeline import interpolation

    person, editor = _person(studio, words[0]), _editor(studio)
    whole = interpolation.end(editor, person.source)
    if pictures:
        ends = [whole, interpolation.end(editor, _person(studio, words[1]).source)]
    else:
        prompts = [studio.prompt(text) for text in words[1:]]
        errors.warn(dict.fromkeys(warning for prompt in prompts for warning in prompt.warnings))
        directions = [editor.fit(prompt.pair) for prompt in prompts]
        edits = [interpolation.end(editor, person.source, one, in_range(strength)) for one in directions]
        ends = [whole, *edits] if len(edits) == 1 else edits
    start, stop = ends
    found = interpolation.between(editor, start, stop, [number / (steps - 1) for number in range(steps)])
    names = [f"{_stem(person)}-between-{number}" for number in range(steps)]
    _write(target, dict(zip(names, found, strict=True)), [], as_json, started)


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
    """Draw a picture with style levels of another: coarse ones are shapes. Writes pictures and a grid."""
    target = _gallery(out, [content, style])
    started, studio = _studio(domain, device)

    from pipeline import interpolation

    people, editor = [_person(studio, name) for name in (content, style)], _editor(studio)
    one, other = (interpolation.end(editor, person.source) for person in people)
    asked = [[name.strip() for name in text.split(",")] for text in levels or studio.backbones.generator.layout.levels]
    found = {
        f"{_stem(people[0])}-{'-'.join(names)}": interpolation.mixed(editor, one, other, names)[0] for names in asked
    }
    _write(target, found, [person.picture for person in people], as_json, started)


def _studio(domain: str, device: str) -> tuple[float, Studio]:
    started = time.perf_counter()
    arguments.known(domain)
    errors.one_thread()
    from deltaspace.studio import Studio

    return started, Studio.load(domain, device)


def _editor(studio: Studio) -> Any:
    """DeltaEdit-D, which knows how a picture's noise is found and drawn."""
    return studio.tool("deltaedit_d").editor


def _is_picture(word: str) -> bool:
    """Whether a word names a picture, be it there or not."""
    from pipeline.storage.image_sources import ENDINGS

    return word.startswith("portrait:") or os.path.exists(word) or Path(word).suffix.lower() in ENDINGS


def _person(studio: Studio, word: str) -> Person:
    if word.startswith("portrait:"):
        number = word.removeprefix("portrait:")
        if not (number.isascii() and number.isdigit() and len(number) < 16):
            raise InputError(f"'{word[:80]}' is no drawn person: write portrait: and an id, as in portrait:58007")
        return studio.portrait(int(number))
    if not os.path.exists(word):
        raise InputError(f"{word[:80]} does not exist: give a picture, or portrait:ID for a drawn person")
    person = studio.photo(Path(word))
    errors.warn(person.warnings)
    return person


def _stem(person: Person) -> str:
    from deltaspace import outputs

    return outputs.stem_of(Path(person.name))


def _gallery(out: Path, words: list[str]) -> Gallery:
    """Where results go, none of them over a picture that is read; InputError before any work."""
    from deltaspace.outputs import Gallery

    return Gallery(out, [Path(word) for word in words if os.path.exists(word)])


def _write(target: Gallery, found: dict[str, Tensor], before: list[Tensor], as_json: bool, started: float) -> None:
    """Every picture under its name, and a grid of all of them in one row, `before` first."""
    from deltaspace import outputs
    from pipeline.storage import images

    paths = []
    for name, picture in found.items():
        paths.append(target.named(name, outputs.ENDING))
        images.save_png(paths[-1], picture.cpu())
    grid = target.grid(None)
    outputs.save_grid(grid, [[*before, *(picture.cpu() for picture in found.values())]])
    seconds = time.perf_counter() - started
    if as_json:
        return errors.print_json({"pictures": [str(path) for path in paths], "grid": str(grid), "seconds": seconds})
    for path in paths:
        typer.echo(f"wrote {path}")
    typer.echo(f"wrote {grid} in {seconds:.1f} s")
