"""The commands `interpolate` and `mix`: images between others, by the diffusion model."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from deltaspace.cli import errors, options
from deltaspace.cli.options import DebugOption, DeviceOption, DomainOption, JsonOption
from pipeline.runtime.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

    from deltaspace.outputs import OutputFolder
    from deltaspace.studio import EditableImage, Studio

OutOption = Annotated[Path, typer.Option("--out", "-o", metavar="DIR", help="Folder for the results.")]


def interpolate(
    words: Annotated[
        list[str],
        typer.Argument(
            metavar="IMAGE IMAGE | IMAGE TEXT | IMAGE TEXT TEXT",
            help="Two images; or an image and its edit; or two edits of an image. portrait:ID is a drawn portrait.",
        ),
    ],
    steps: Annotated[int, typer.Option(min=2, max=100, metavar="N", help="Images, both ends included.")] = 6,
    strength: Annotated[float, typer.Option(metavar="X", help="Strength of edits.")] = 1.0,
    domain: DomainOption = "portraits",
    device: DeviceOption = "auto",
    out: OutOption = Path("between"),
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Draw the images between two others, or between edits, with the diffusion model.

    Style codes change linearly, noise along a sphere. Writes every image and a grid.
    """
    second = [word for word in words[1:] if _names_image(word)]
    if not 2 <= len(words) <= 3 or (second and len(words) == 3):
        raise InputError("give two images, or an image and one or two texts: deltaspace interpolate a.png b.png")
    target = _output_folder(out, words)
    started, studio = _load(domain, device)

    from deltaspace.prompts import check_strength
    from pipeline import interpolation

    image, editor = _image(studio, words[0]), _diffusion_editor(studio)
    prepared = editor.prepare(image.source)
    unedited = interpolation.endpoint(editor, prepared)
    if second:
        ends = [unedited, interpolation.endpoint(editor, editor.prepare(_image(studio, words[1]).source))]
    else:
        prompts = [studio.prompt(text) for text in words[1:]]
        errors.warn(dict.fromkeys(warning for prompt in prompts for warning in prompt.warnings))
        directions = [editor.fit(prompt.pair) for prompt in prompts]
        edits = [interpolation.endpoint(editor, prepared, one, check_strength(strength)) for one in directions]
        ends = [unedited, *edits] if len(edits) == 1 else edits
    start, stop = ends
    between = interpolation.between(editor, start, stop, [number / (steps - 1) for number in range(steps)])
    names = [f"{_stem(image)}-between-{number}" for number in range(steps)]
    _write(target, dict(zip(names, between, strict=True)), [], as_json, started)


def mix(
    content: Annotated[str, typer.Argument(metavar="CONTENT", help="The image that stays; or portrait:ID.")],
    style: Annotated[str, typer.Argument(metavar="STYLE", help="The image whose style it takes.")],
    levels: Annotated[
        list[str] | None,
        typer.Option(metavar="NAMES", help="Levels to take, e.g. medium,fine; default: each of them alone."),
    ] = None,
    domain: DomainOption = "portraits",
    device: DeviceOption = "auto",
    out: OutOption = Path("mixed"),
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Draw an image with style levels of another: coarse ones are shapes. Writes images and a grid."""
    target = _output_folder(out, [content, style])
    started, studio = _load(domain, device)

    from pipeline import interpolation

    images, editor = [_image(studio, name) for name in (content, style)], _diffusion_editor(studio)
    one, other = (interpolation.endpoint(editor, editor.prepare(image.source)) for image in images)
    asked = [[name.strip() for name in text.split(",")] for text in levels or studio.networks.generator.layout.levels]
    mixed = {
        f"{_stem(images[0])}-{'-'.join(names)}": interpolation.mixed(editor, one, other, names)[0] for names in asked
    }
    _write(target, mixed, [image.pixels for image in images], as_json, started)


def _load(domain: str, device: str) -> tuple[float, Studio]:
    """(time of the start, studio)."""
    started = time.perf_counter()
    options.check_names(domain)
    errors.one_thread()
    from deltaspace.studio import Studio

    return started, Studio.load(domain, device)


def _diffusion_editor(studio: Studio) -> Any:
    """DeltaEdit-D, whose denoiser and noise inversion interpolation uses."""
    return studio.editor("deltaedit_d").editor


def _names_image(word: str) -> bool:
    """Whether a word is meant as an image, be it there or not."""
    from pipeline.storage.image_sources import ENDINGS

    return word.startswith("portrait:") or os.path.exists(word) or Path(word).suffix.lower() in ENDINGS


def _image(studio: Studio, word: str) -> EditableImage:
    if word.startswith("portrait:"):
        number = word.removeprefix("portrait:")
        if not (number.isascii() and number.isdigit() and len(number) < 16):
            raise InputError(f"'{word[:80]}' is no drawn portrait: write portrait: and an id, as in portrait:58007")
        return studio.portrait(int(number))
    if not os.path.exists(word):
        raise InputError(f"{word[:80]} does not exist: give an image, or portrait:ID for a drawn portrait")
    image = studio.photo(Path(word))
    errors.warn(image.warnings)
    return image


def _stem(image: EditableImage) -> str:
    from deltaspace import outputs

    return outputs.stem_of(Path(image.name))


def _output_folder(out: Path, words: list[str]) -> OutputFolder:
    """The folder for results, checked before any work."""
    from deltaspace.outputs import OutputFolder

    return OutputFolder(out, [Path(word) for word in words if os.path.exists(word)])


def _write(
    target: OutputFolder, results: dict[str, Tensor], inputs: list[Tensor], as_json: bool, started: float
) -> None:
    """Write every image under its name, and a grid of one row, inputs first."""
    from deltaspace import outputs
    from pipeline.storage import images

    paths = []
    for name, image in results.items():
        paths.append(target.path(name, outputs.ENDING))
        images.save_png(paths[-1], image.cpu())
    grid = target.grid(None)
    images.save_grid(grid, [[*inputs, *(image.cpu() for image in results.values())]])
    seconds = time.perf_counter() - started
    if as_json:
        return errors.print_json({"pictures": [str(path) for path in paths], "grid": str(grid), "seconds": seconds})
    for path in paths:
        typer.echo(f"wrote {path}")
    typer.echo(f"wrote {grid} in {seconds:.1f} s")
