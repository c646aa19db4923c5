"""Edits to look at: the same people and prompts for every editor, each beside the counterfactual it should have become.

Nobody picks favourites: prompts are the domain's first with different attributes, people the first of the test set
whom most of these prompts concern.
"""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.evaluation.counterfactuals import TestSet, cases, test_set
from pipeline.runtime import files
from pipeline.storage import artefacts, images

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

    from pipeline.storage.artefacts import Layout
    from pipeline.storage.domains import Domain, Prompt

FRAMES = ("identity_editor", "counterfactual")  # the two rows between which every editor lies
APART = ("heldout", "combined")  # prompts that are not in the averages
SHOWN_PEOPLE, SHOWN_PROMPTS = 4, 10  # on the page
Pair = tuple[int, str]  # id, prompt text

_TILE, _GAP, _PAIR_GAP, _MARGIN = 128, 3, 14, 14
_INK, _QUIET, _PAPER, _MISSING = "#1d2430", "#66707f", "#ffffff", "#eceff3"
_FONT, _SMALL = 17, 13


@dataclass(frozen=True)
class Showcase:
    """People (ids) and prompts in the order shown; pictures are uint8 [R,R,3].

    before: by id. truth: the counterfactuals, by id and prompt, of those who lack the attribute. edits: by editor.
    """

    ids: tuple[int, ...]
    prompts: tuple[str, ...]
    before: dict[int, np.ndarray]
    truth: dict[Pair, np.ndarray]
    edits: dict[str, dict[Pair, np.ndarray]]


def label(name: str) -> str:
    """How an editor is called where people look: deltaedit_g -> DeltaEdit-G."""
    known = {"identity_editor": "input, unedited", "counterfactual": "counterfactual"}
    words = {
        "deltaedit": "DeltaEdit",
        "styleclip": "StyleCLIP",
        "stylemc": "StyleMC",
        "diffedit": "DiffEdit",
        "wplus": "W+",
    }
    return known.get(name) or "-".join(
        words.get(word, word.upper() if len(word) < 4 else word) for word in name.split("_")
    )


def one_each(prompts: Sequence[Prompt]) -> list[Prompt]:
    """The first prompt of every attribute."""
    first: dict[str, Prompt] = {}
    for prompt in prompts:
        first.setdefault(prompt.attribute or prompt.text, prompt)
    return [*first.values()]


def choose(test: TestSet, prompts: Sequence[Prompt], people: int, columns: int) -> tuple[list[int], list[str]]:
    """Ids and prompt texts to show: prompts of different attributes first, then people by how many concern them."""
    first = one_each(prompts)
    ordered = [*first, *(prompt for prompt in prompts if prompt not in first)][:columns]
    texts = [prompt.text for prompt in prompts if prompt in ordered]
    if test.people is None:
        return list(test.ids[:people]), texts
    known = {prompt.text: prompt for prompt in ordered}
    found = cases(test, [(row_id, text) for row_id in test.ids for text in texts], known)
    concern = dict.fromkeys(test.ids, 0)
    for case in found:
        concern[case.row_id] += 1
    chosen = sorted(test.ids, key=lambda row_id: -concern[row_id])[:people]  # stable: the first of equals
    return sorted(chosen), texts


def gather(test: TestSet, prompts: Sequence[Prompt], edits: Mapping[str, Path], people: int, columns: int) -> Showcase:
    """The pictures of the people and prompts that `choose` names, among the people whom every editor has edited."""
    edited = [set(artefacts.read(path, "edits", ["id"])["id"].tolist()) for path in edits.values()]
    common = set(test.ids).intersection(*edited)
    shown = _subset(test, common)
    ids, texts = choose(shown, prompts, people, columns)
    rows, size = shown.rows(), test.images.shape[-1]
    truth: dict[Pair, np.ndarray] = {}
    if shown.people is not None:
        from pipeline import portraits

        asked = [(row_id, text) for row_id in ids for text in texts]
        for case in cases(shown, asked, {prompt.text: prompt for prompt in prompts}):
            truth[case.row_id, case.prompt.text] = portraits.render(case.other, size)
    before = {row_id: images.to_uint8(shown.images[rows[row_id]]) for row_id in ids}
    return Showcase(
        tuple(ids), tuple(texts), before, truth, {name: _look_up(path, ids, texts) for name, path in edits.items()}
    )


def draw(showcase: Showcase, editor: str, label: str) -> Picture:
    """One picture: a row per person; before, then for each prompt the edit and, where it is known, the truth."""
    from PIL import Image, ImageDraw, ImageFont

    with_truth = bool(showcase.truth)
    span = 2 * _TILE + _GAP if with_truth else _TILE
    head = _MARGIN + 2 * _FONT + _SMALL + 22
    width = 2 * _MARGIN + _TILE + len(showcase.prompts) * (span + _PAIR_GAP)
    height = head + len(showcase.ids) * (_TILE + _GAP) - _GAP + _MARGIN
    sheet = Image.new("RGB", (width, height), _PAPER)
    pen = ImageDraw.Draw(sheet)
    font, small = ImageFont.load_default(_FONT), ImageFont.load_default(_SMALL)
    bottom = head - 8

    def heading(x: int, room: int, text: str, below: Sequence[str]) -> None:
        lines = _wrapped(text, lambda line: pen.textlength(line, font) <= room)
        top = bottom - _SMALL - 10 - len(lines) * (_FONT + 3)
        for i, line in enumerate(lines):
            pen.text((x + room / 2, top + i * (_FONT + 3)), line, _INK, font, anchor="ma")
        for i, name in enumerate(below):
            centre = x + _TILE / 2 + i * (_TILE + _GAP)
            pen.text((centre, bottom), name, _QUIET, small, anchor="mb")

    heading(_MARGIN, _TILE, "input", [""])
    for column, text in enumerate(showcase.prompts):
        x = _MARGIN + _TILE + _PAIR_GAP + column * (span + _PAIR_GAP)
        heading(x, span, text, [label, "truth"] if with_truth else [label])
    for row, row_id in enumerate(showcase.ids):
        y = head + row * (_TILE + _GAP)
        sheet.paste(_tile(showcase.before[row_id]), (_MARGIN, y))
        for column, text in enumerate(showcase.prompts):
            x = _MARGIN + _TILE + _PAIR_GAP + column * (span + _PAIR_GAP)
            sheet.paste(_tile(showcase.edits[editor].get((row_id, text))), (x, y))
            if with_truth:
                sheet.paste(_tile(showcase.truth.get((row_id, text))), (x + _TILE + _GAP, y))
    return sheet


def save(path: Path, picture: Picture, colours: int | None = None) -> None:
    """Write as PNG, whole or not at all; equal pictures give equal bytes. colours: at most so many, for drawings, whose
    files become a third of their size."""
    from PIL import Image

    content = io.BytesIO()
    if colours:
        picture = picture.quantize(colours, Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
    picture.save(content, "PNG", optimize=True)
    files.write_bytes(path, content.getvalue())


def gallery(domain: Domain, layout: Layout, editors: Sequence[str]) -> dict[str, Any]:
    """For the page: people, and for each the rows truth and editors by the columns prompts, as data URIs."""
    proper = [name for name in editors if name not in FRAMES]
    test = test_set(layout.images)
    seen = [prompt for prompt in domain.prompts if prompt.split == "seen"]
    shown = gather(test, seen, {name: layout.edits(name) for name in proper}, SHOWN_PEOPLE, SHOWN_PROMPTS)
    scores = {
        (row["editor"], row["id"], row["prompt"]): row
        for row in artefacts.table(layout.scores).iter_rows(named=True)
        if row["id"] in shown.ids
    }
    people = []
    for row_id in shown.ids:
        rows = []
        if shown.truth:
            before = shown.before[row_id]
            cells = [_cell(shown.truth.get((row_id, text)), before, None) for text in shown.prompts]
            rows.append({"label": "truth", "cells": cells})
        for name in proper:
            cells = []
            for text in shown.prompts:
                score = scores.get((name, row_id, text))
                picture = shown.edits[name].get((row_id, text)) if score else None  # only whom the prompt concerns
                cells.append(_cell(picture, shown.before[row_id], score))
            rows.append({"label": label(name), "cells": cells})
        people.append({"id": row_id, "before": data_uri(shown.before[row_id]), "rows": rows})
    return {"prompts": shown.prompts, "people": people, "truth": bool(shown.truth)}


def _cell(pixels: np.ndarray | None, before: np.ndarray, score: Mapping[str, Any] | None) -> dict[str, Any]:
    if pixels is None:
        return {"uri": None, "score": score}
    return {"uri": data_uri(pixels), "map": data_uri(difference(pixels, before)), "score": score}


def difference(pixels: np.ndarray, before: np.ndarray) -> np.ndarray:
    """How much of each pixel is not as before, uint8 [R,R]: 255 where nothing is, darker with the largest colour's
    change, in 16 steps (paper, figure 17)."""
    most = np.abs(pixels.astype(np.int16) - before).max(axis=2)
    return (255 - most // 16 * 17).astype(np.uint8)


def data_uri(pixels: np.ndarray) -> str:
    """uint8 [R,R,3], or [R,R] for a grey one, as a picture that needs no file."""
    from PIL import Image

    content = io.BytesIO()
    picture = Image.fromarray(pixels)
    if max(picture.size) > 192:
        picture.thumbnail((192, 192), Image.Resampling.LANCZOS)
    picture.save(content, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(content.getvalue()).decode()


def figures(layout: Layout) -> dict[str, Any]:
    """For the page: the grids that `pipeline.report.page.figures` drew, by name as data URIs, and what they show; empty where it
    drew none."""
    uris = {
        path.stem: f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}"
        for path in sorted(layout.figures.glob("*.png"))
    }
    return {**json.loads((layout.figures / "told.json").read_text(encoding="utf-8")), **uris} if uris else {}


def _subset(test: TestSet, ids: set[int]) -> TestSet:
    keep = [row for row, row_id in enumerate(test.ids) if row_id in ids]
    people = None if test.people is None else tuple(test.people[row] for row in keep)
    return TestSet(tuple(test.ids[row] for row in keep), test.images[keep], people)


def _look_up(path: Path, ids: Sequence[int], texts: Sequence[str]) -> dict[Pair, np.ndarray]:
    found = {}
    where = {"id": tuple(ids), "prompt": tuple(texts)}
    for part in artefacts.iterate(path, "edits", ["id", "prompt", "image"], 1024, where):
        for row_id, prompt, content in zip(part["id"].tolist(), part["prompt"], part["image"], strict=True):
            found[row_id, prompt] = images.to_uint8(images.decode_png(content))
    return found


def _tile(pixels: np.ndarray | None) -> Picture:
    from PIL import Image

    if pixels is None:
        return Image.new("RGB", (_TILE, _TILE), _MISSING)
    whole = _TILE % len(pixels) == 0  # then pixels stay what they are, and the file small
    return Image.fromarray(pixels).resize(
        (_TILE, _TILE), Image.Resampling.NEAREST if whole else Image.Resampling.LANCZOS
    )


def _wrapped(text: str, fits: Callable[[str], bool]) -> list[str]:
    """One or two lines; what does not fit ends in an ellipsis."""
    lines: list[str] = []
    for word in text.split():
        if lines and fits(f"{lines[-1]} {word}"):
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return [_cut(line, fits) for line in (lines[0], " ".join(lines[1:])) if line]


def _cut(line: str, fits: Callable[[str], bool]) -> str:
    if fits(line):
        return line
    while line and not fits(f"{line}..."):
        line = line[:-1]
    return f"{line.rstrip()}..."
