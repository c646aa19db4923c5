"""Several images through one studio: input files, output files, and a report of the run."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deltaspace import outputs
from pipeline.runtime.errors import InputError
from pipeline.storage import images, weights
from pipeline.storage.image_sources import ENDINGS

if TYPE_CHECKING:
    from torch import Tensor

    from deltaspace.outputs import OutputFolder
    from deltaspace.studio import ConfiguredEditor, EditableImage, Prompt, Result, Studio

MAX_GRID_ROWS = 24


@dataclass(frozen=True)
class Inputs:
    """Images to work on: files, generated samples by id, drawn portraits by id."""

    paths: tuple[Path, ...] = ()
    samples: tuple[int, ...] = ()
    portraits: tuple[int, ...] = ()

    def __len__(self) -> int:
        return len(self.paths) + len(self.samples) + len(self.portraits)

    def stem(self) -> str | None:
        """The name of the only image, None for several."""
        names = [outputs.stem_of(path) for path in self.paths]
        names += [f"sample-{row_id}" for row_id in self.samples] + [f"portrait-{row_id}" for row_id in self.portraits]
        return names[0] if len(names) == 1 else None


@dataclass
class Report:
    """Facts about a run, ready for JSON. failed: images of a folder that could not be used, with reasons."""

    domain: str
    device: str
    editor: str | None = None
    pictures: list[dict[str, Any]] = field(default_factory=list)
    edits: list[dict[str, Any]] = field(default_factory=list)
    failed: list[dict[str, str]] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    grid: str | None = None
    seconds: float = 0.0


def find(names: Sequence[Path], out: Path) -> tuple[Path, ...]:
    """Image files that `names` stand for; a folder gives the images directly in it, by name.

    Raises InputError for an empty folder, and for one that results would be written into.
    """
    paths: list[Path] = []
    for name in names:
        if not os.path.exists(name):  # unlike Path.exists, also for names no file can have
            raise InputError(f"{str(name)[:80]} does not exist: check the name")
        if not name.is_dir():
            paths.append(name)
            continue
        if out.resolve() == name.resolve():
            raise InputError(f"{out} is the folder of the images: results need another one, give --out")
        inside = sorted(file for file in name.iterdir() if file.suffix.lower() in ENDINGS and file.name[0] != ".")
        if not inside:
            raise InputError(f"{name} holds no images: {', '.join(ENDINGS)} are looked for")
        paths += inside
    return tuple(paths)


def edit(
    studio: Studio,
    inputs: Inputs,
    prompts: Sequence[Prompt],
    strengths: Sequence[float | None],
    editor: ConfiguredEditor,
    target: OutputFolder,
    report: Report,
    seed: int | None = None,
    face: int | None = None,
) -> Iterator[Result]:
    """Edit every image with every prompt and strength; write each result at once, and a grid at the end.

    strengths: factors on each edit; None is the editor's own.
    target: folder of the results.
    report: filled as results come, complete when the iterator ends.
    seed: of the generated images among the inputs; None: the project's.
    face: which one of each photograph, as in `Studio.photo`.
    """
    rows: list[list[Tensor]] = []
    for image in _opened(studio, inputs, report, seed, face):
        row = [image.pixels, image.inversion]
        for prompt in prompts:
            for strength in strengths:
                result = studio.apply(image, prompt, editor, strength)
                amount = [f"x{result.strength:g}"] if len(strengths) > 1 else []
                path = target.result(outputs.stem_of(Path(image.name)), outputs.slug(prompt.pair.target), *amount)
                result.save(path)
                report.edits.append(_edit_facts(result, path))
                row.append(result.pixels)
                yield result
        rows = [*rows, row][:MAX_GRID_ROWS]
    _write_grid(rows, inputs, target, report)


def invert(
    studio: Studio, inputs: Inputs, target: OutputFolder, report: Report, face: int | None = None
) -> Iterator[EditableImage]:
    """Write the inversion of every image, its codes w_plus [L,D], s [S] and detail [C,r,r]; and a grid at the end.

    target: folder of the results.
    report: filled as results come, complete when the iterator ends.
    face: which one of each photograph, as in `Studio.photo`.
    """
    rows: list[list[Tensor]] = []
    for image in _opened(studio, inputs, report, face=face):
        stem, inversion = outputs.stem_of(Path(image.name)), image.source.inversion
        picture, codes = target.path(f"{stem}-inversion", ".png"), target.path(f"{stem}-codes", ".safetensors")
        images.save_png(picture, image.inversion)
        meta = {"domain": studio.domain.name, "picture": image.name, "error": image.error}
        tensors = {"w_plus": inversion.w_plus[0], "s": image.source.s[0]}
        if inversion.detail is not None:
            tensors["detail"] = inversion.detail[0]
        weights.save(codes, tensors, meta, half=False)
        report.pictures[-1] |= {"inversion": str(picture), "codes": str(codes)}
        rows = [*rows, [image.pixels, image.inversion]][:MAX_GRID_ROWS]
        yield image
    _write_grid(rows, inputs, target, report)


def _opened(
    studio: Studio, inputs: Inputs, report: Report, seed: int | None = None, face: int | None = None
) -> Iterator[EditableImage]:
    """Each input, inverted. A bad file among several is noted in the report, a bad file alone is an error."""
    loaders: list[tuple[str, Callable[[], EditableImage]]] = []
    loaders += [(str(path), lambda path=path: studio.photo(path, face=face)) for path in inputs.paths]
    loaders += [(f"sample {row}", lambda row=row: studio.sample(row, seed)) for row in inputs.samples]
    loaders += [(f"portrait {row}", lambda row=row: studio.portrait(row)) for row in inputs.portraits]
    studio.ready(bool(inputs.paths or inputs.portraits))  # missing weights are no image's fault
    for name, load in loaders:
        started = time.perf_counter()
        try:
            image = load()
        except InputError as error:
            if len(loaders) == 1:
                raise
            report.failed.append({"picture": name, "reason": str(error)})
            continue
        report.warnings += [warning for warning in image.warnings if warning not in report.warnings]
        facts = {"name": image.name, "picture": name, "error": image.error, "psnr": image.psnr}
        seconds = time.perf_counter() - started
        report.pictures.append({**facts, "notes": list(image.notes), "seconds": seconds})
        yield image
    if not report.pictures:
        reason = report.failed[0]["reason"]
        raise InputError(f"none of the {len(loaders)} images can be used, the first because {reason}")


def _edit_facts(result: Result, path: Path) -> dict[str, Any]:
    strengths = result.edited.strengths
    return {
        "name": result.image.name,
        "prompt": result.prompt.pair.target,
        "source": result.prompt.pair.source,
        "editor": result.editor,
        "strength": result.strength,
        "chosen_strength": None if strengths is None else float(strengths[0]),
        "path": str(path),
        "seconds": result.seconds,
        "evaluations": result.edited.evaluations,
        "channels_moved": result.moved,
        "channels": result.channels,
        "warnings": list(result.warnings),
    }


def _write_grid(rows: list[list[Tensor]], inputs: Inputs, target: OutputFolder, report: Report) -> None:
    path = target.grid(inputs.stem())
    images.save_grid(path, rows)
    report.grid = str(path)
    if len(report.pictures) > len(rows):
        report.warnings.append(f"the grid shows the first {len(rows)} of {len(report.pictures)} images")
