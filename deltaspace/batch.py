"""Many pictures through one studio: which to take, what to write for each, and a report of it all."""

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

    from deltaspace.outputs import Gallery
    from deltaspace.studio import Person, Prompt, Result, Studio, Tool

GRID_ROWS = 24  # more pictures than that are no longer compared at a glance


@dataclass(frozen=True)
class Pictures:
    """What to work on: picture files, generated people by id, drawn people by id."""

    paths: tuple[Path, ...] = ()
    samples: tuple[int, ...] = ()
    portraits: tuple[int, ...] = ()

    def __len__(self) -> int:
        return len(self.paths) + len(self.samples) + len(self.portraits)

    def stem(self) -> str | None:
        """The name of the only picture, None for several."""
        named = [outputs.stem_of(path) for path in self.paths]
        named += [f"sample-{row_id}" for row_id in self.samples] + [f"portrait-{row_id}" for row_id in self.portraits]
        return named[0] if len(named) == 1 else None


@dataclass
class Report:
    """What a run did, ready for JSON. failed: pictures of a folder that could not be used, and why."""

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
    """The pictures that `names`, files and folders, stand for; a folder gives those directly in it, by name.

    Raises InputError for an empty folder, and for one that results would be written into.
    """
    found: list[Path] = []
    for name in names:
        if not os.path.exists(name):  # unlike Path.exists, also for names no file can have
            raise InputError(f"{str(name)[:80]} does not exist: check the name")
        if not name.is_dir():
            found.append(name)
            continue
        if out.resolve() == name.resolve():
            raise InputError(f"{out} is the folder of the pictures: results need another one, give --out")
        inside = sorted(file for file in name.iterdir() if file.suffix.lower() in ENDINGS and file.name[0] != ".")
        if not inside:
            raise InputError(f"{name} holds no pictures: {', '.join(ENDINGS)} are looked for")
        found += inside
    return tuple(found)


def edit(
    studio: Studio,
    pictures: Pictures,
    prompts: Sequence[Prompt],
    strengths: Sequence[float | None],
    tool: Tool,
    target: Gallery,
    report: Report,
    seed: int | None = None,
    face: int | None = None,
) -> Iterator[Result]:
    """Edit every picture with every prompt and strength, and write each result as soon as it is there; then the grid.

    face: which one of each picture, as in `Studio.photo`. Yields results as they come; `report` is complete when
    nothing more comes.
    """
    rows: list[list[Tensor]] = []
    for person in _people(studio, pictures, report, seed, face):
        row = [person.picture, person.inversion]
        for prompt in prompts:
            for strength in strengths:
                result = studio.apply(person, prompt, tool, strength)
                amount = [f"x{result.strength:g}"] if len(strengths) > 1 else []
                stem = outputs.stem_of(Path(person.name))
                path = target.result(stem, outputs.slug(prompt.pair.target), *amount)
                result.save(path)
                report.edits.append(_edit_facts(result, path))
                row.append(result.picture)
                yield result
        rows = [*rows, row][:GRID_ROWS]
    _grid(rows, pictures, target, report)


def invert(
    studio: Studio, pictures: Pictures, target: Gallery, report: Report, face: int | None = None
) -> Iterator[Person]:
    """Write what the generator makes of every picture, its codes w_plus [L,D] and s [S], and what they lack, detail
    [C,r,r]; then the grid."""
    rows: list[list[Tensor]] = []
    for person in _people(studio, pictures, report, face=face):
        stem = outputs.stem_of(Path(person.name))
        picture, codes = target.named(f"{stem}-inversion", ".png"), target.named(f"{stem}-codes", ".safetensors")
        images.save_png(picture, person.inversion)
        meta = {"domain": studio.domain.name, "picture": person.name, "error": person.error}
        source = person.source
        tensors = {"w_plus": source.w_plus[0], "s": source.s[0]}
        if source.detail is not None:
            tensors["detail"] = source.detail.added[0]
        weights.save(codes, tensors, meta, half=False)
        report.pictures[-1] |= {"inversion": str(picture), "codes": str(codes)}
        rows = [*rows, [person.picture, person.inversion]][:GRID_ROWS]
        yield person
    _grid(rows, pictures, target, report)


def _people(
    studio: Studio, pictures: Pictures, report: Report, seed: int | None = None, face: int | None = None
) -> Iterator[Person]:
    """Each picture's person. A bad file among several is noted in the report, a bad file alone is an error."""
    makers: list[tuple[str, Callable[[], Person]]] = []
    makers += [(str(path), lambda path=path: studio.photo(path, face=face)) for path in pictures.paths]
    makers += [(f"sample {row}", lambda row=row: studio.sample(row, seed)) for row in pictures.samples]
    makers += [(f"portrait {row}", lambda row=row: studio.portrait(row)) for row in pictures.portraits]
    studio.ready(bool(pictures.paths or pictures.portraits))  # what is missing is not a picture's fault
    for name, make in makers:
        started = time.perf_counter()
        try:
            person = make()
        except InputError as error:
            if len(makers) == 1:
                raise
            report.failed.append({"picture": name, "reason": str(error)})
            continue
        report.warnings += [warning for warning in person.warnings if warning not in report.warnings]
        report.pictures.append(
            {
                "name": person.name,
                "picture": name,
                "error": person.error,
                "psnr": person.psnr,
                "notes": list(person.notes),
                "seconds": time.perf_counter() - started,
            }
        )
        yield person
    if not report.pictures:
        raise InputError(
            f"none of the {len(makers)} pictures can be used, the first because {report.failed[0]['reason']}"
        )


def _edit_facts(result: Result, path: Path) -> dict[str, Any]:
    return {
        "name": result.person.name,
        "prompt": result.prompt.pair.target,
        "source": result.prompt.pair.source,
        "editor": result.editor,
        "strength": result.strength,
        "enough": None if result.edited.enough is None else float(result.edited.enough[0]),
        "path": str(path),
        "seconds": result.seconds,
        "evaluations": result.edited.evaluations,
        "channels_moved": result.moved,
        "channels": result.channels,
        "warnings": list(result.warnings),
    }


def _grid(rows: list[list[Tensor]], pictures: Pictures, target: Gallery, report: Report) -> None:
    path = target.grid(pictures.stem())
    outputs.save_grid(path, rows)
    report.grid = str(path)
    if len(report.pictures) > len(rows):
        report.warnings.append(f"the grid shows the first {len(rows)} of {len(report.pictures)} pictures")
