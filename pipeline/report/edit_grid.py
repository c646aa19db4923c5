"""Edits side by side: the same test images and prompts for every editor, beside the counterfactuals.

Nothing is selected by its result: prompts are the domain's first with different attributes, images the first of the
test set to which most of these prompts apply.
"""

from __future__ import annotations

import base64
import io
import json
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline import portraits
from pipeline.editors import label
from pipeline.evaluation import REFERENCES
from pipeline.evaluation.counterfactuals import TestSet, cases, one_per_attribute, test_set
from pipeline.runtime import files
from pipeline.storage import artefacts, images

if TYPE_CHECKING:
    from PIL.Image import Image

    from pipeline.storage.artefacts import DomainPaths
    from pipeline.storage.domains import Domain, Prompt

PAGE_ROWS, PAGE_COLUMNS = 4, 10  # test images and prompts on the page
Pair = tuple[int, str]  # id, prompt text

_TILE, _GAP, _PAIR_GAP, _MARGIN = 128, 3, 14, 14
_INK, _QUIET, _PAPER, _MISSING = "#1d2430", "#66707f", "#ffffff", "#eceff3"
_FONT, _SMALL = 17, 13


@dataclass(frozen=True)
class EditGrid:
    """Images uint8 [R,R,3] of some test images (ids) and prompts, in the order of the grid.

    before: unedited, by id
    counterfactuals: by id and prompt, where the prompt applies to the image
    edits: by editor, then by id and prompt
    """

    ids: tuple[int, ...]
    prompts: tuple[str, ...]
    before: dict[int, np.ndarray]
    counterfactuals: dict[Pair, np.ndarray]
    edits: dict[str, dict[Pair, np.ndarray]]


def choose(test: TestSet, prompts: Sequence[Prompt], rows: int, columns: int) -> tuple[list[int], list[str]]:
    """Ids and prompt texts to show: prompts of different attributes first, then images by how many apply to them."""
    first = one_per_attribute(prompts)
    ordered = [*first, *(prompt for prompt in prompts if prompt not in first)][:columns]
    texts = [prompt.text for prompt in prompts if prompt in ordered]
    if test.people is None:
        return list(test.ids[:rows]), texts
    prompts_by_text = {prompt.text: prompt for prompt in ordered}
    count = dict.fromkeys(test.ids, 0)
    for case in cases(test, [(row_id, text) for row_id in test.ids for text in texts], prompts_by_text):
        count[case.row_id] += 1
    return sorted(sorted(test.ids, key=lambda row_id: -count[row_id])[:rows]), texts  # stable: the first of equals


def gather(test: TestSet, prompts: Sequence[Prompt], edits: Mapping[str, Path], rows: int, columns: int) -> EditGrid:
    """The images and prompts of `choose`, among the test images that every editor has edited.

    edits: editor name -> artefact of schema `edits`
    """
    edited = [set(artefacts.read(path, "edits", ["id"])["id"].tolist()) for path in edits.values()]
    keep = [row for row, row_id in enumerate(test.ids) if all(row_id in ids for ids in edited)]
    people = None if test.people is None else tuple(test.people[row] for row in keep)
    subset = TestSet(tuple(test.ids[row] for row in keep), test.images[keep], people)
    ids, texts = choose(subset, prompts, rows, columns)
    index, size = subset.rows(), test.images.shape[-1]
    counterfactuals: dict[Pair, np.ndarray] = {}
    if people is not None:
        pairs = [(row_id, text) for row_id in ids for text in texts]
        for case in cases(subset, pairs, {prompt.text: prompt for prompt in prompts}):
            counterfactuals[case.row_id, case.prompt.text] = portraits.render(case.counterfactual, size)
    before = {row_id: images.to_uint8(subset.images[index[row_id]]) for row_id in ids}
    read = {name: _read(path, ids, texts) for name, path in edits.items()}
    return EditGrid(tuple(ids), tuple(texts), before, counterfactuals, read)


def _read(path: Path, ids: Sequence[int], texts: Sequence[str]) -> dict[Pair, np.ndarray]:
    edits = {}
    where = {"id": tuple(ids), "prompt": tuple(texts)}
    for part in artefacts.iterate(path, "edits", ["id", "prompt", "image"], 1024, where):
        for row_id, prompt, content in zip(part["id"].tolist(), part["prompt"], part["image"], strict=True):
            edits[row_id, prompt] = images.to_uint8(images.decode_png(content))
    return edits


# ---------------------------------------------------------------- grid.png


def draw(grid: EditGrid, editor: str) -> Image:
    """One editor's edits as an image: a row per test image, with each edit's counterfactual beside it if it exists."""
    from PIL import Image, ImageDraw, ImageFont

    paired = bool(grid.counterfactuals)
    span = 2 * _TILE + _GAP if paired else _TILE
    head = _MARGIN + 2 * _FONT + _SMALL + 22
    width = 2 * _MARGIN + _TILE + len(grid.prompts) * (span + _PAIR_GAP)
    height = head + len(grid.ids) * (_TILE + _GAP) - _GAP + _MARGIN
    sheet = Image.new("RGB", (width, height), _PAPER)
    pen = ImageDraw.Draw(sheet)
    font, small = ImageFont.load_default(_FONT), ImageFont.load_default(_SMALL)
    bottom = head - 8

    def heading(x: int, room: int, text: str, below: Sequence[str]) -> None:
        lines = textwrap.wrap(text, room // 8, max_lines=2, placeholder="...")
        top = bottom - _SMALL - 10 - len(lines) * (_FONT + 3)
        for i, line in enumerate(lines):
            pen.text((x + room / 2, top + i * (_FONT + 3)), line, _INK, font, anchor="ma")
        for i, name in enumerate(below):
            pen.text((x + _TILE / 2 + i * (_TILE + _GAP), bottom), name, _QUIET, small, anchor="mb")

    heading(_MARGIN, _TILE, "input", [""])
    columns = [_MARGIN + _TILE + _PAIR_GAP + column * (span + _PAIR_GAP) for column in range(len(grid.prompts))]
    for x, text in zip(columns, grid.prompts):
        heading(x, span, text, [label(editor), "truth"] if paired else [label(editor)])
    for row, row_id in enumerate(grid.ids):
        y = head + row * (_TILE + _GAP)
        sheet.paste(_tile(grid.before[row_id]), (_MARGIN, y))
        for x, text in zip(columns, grid.prompts):
            sheet.paste(_tile(grid.edits[editor].get((row_id, text))), (x, y))
            if paired:
                sheet.paste(_tile(grid.counterfactuals.get((row_id, text))), (x + _TILE + _GAP, y))
    return sheet


def _tile(pixels: np.ndarray | None) -> Image:
    from PIL import Image

    if pixels is None:
        return Image.new("RGB", (_TILE, _TILE), _MISSING)
    integer_scale = _TILE % len(pixels) == 0  # then pixels stay what they are, and the file small
    return Image.fromarray(pixels).resize(
        (_TILE, _TILE), Image.Resampling.NEAREST if integer_scale else Image.Resampling.LANCZOS
    )


def save(path: Path, image: Image, colours: int | None = None) -> None:
    """Write as PNG, whole or not at all; equal images give equal bytes.

    colours: palette size, for drawings, whose files become a third of their size
    """
    from PIL import Image

    if colours:
        image = image.quantize(colours, Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
    files.write_bytes(path, _png(image))


# ---------------------------------------------------------------- for the page


def page_edits(domain: Domain, layout: DomainPaths, editors: Sequence[str]) -> dict[str, Any]:
    """Test images, and for each the rows (counterfactual and editors) by prompts, as data URIs with their scores."""
    names = [name for name in editors if name not in REFERENCES]
    test = test_set(layout.images)
    seen = [prompt for prompt in domain.prompts if prompt.split == "seen"]
    grid = gather(test, seen, {name: layout.edits(name) for name in names}, PAGE_ROWS, PAGE_COLUMNS)
    table = artefacts.table(layout.scores)
    scores = {
        (row["editor"], row["id"], row["prompt"]): row
        for row in table.filter(table["id"].is_in(grid.ids)).iter_rows(named=True)
    }
    image_rows = []
    for row_id in grid.ids:
        before, rows = grid.before[row_id], []
        if grid.counterfactuals:
            cells = [_cell(grid.counterfactuals.get((row_id, text)), before, None) for text in grid.prompts]
            rows.append({"label": label("counterfactual"), "cells": cells})
        for name in names:
            pairs = [(grid.edits[name].get((row_id, text)), scores.get((name, row_id, text))) for text in grid.prompts]
            cells = [_cell(pixels if score else None, before, score) for pixels, score in pairs]
            rows.append({"label": label(name), "cells": cells})
        image_rows.append({"id": row_id, "before": data_uri(before), "rows": rows})
    return {"prompts": grid.prompts, "images": image_rows, "counterfactuals": bool(grid.counterfactuals)}


def _cell(pixels: np.ndarray | None, before: np.ndarray, score: Mapping[str, Any] | None) -> dict[str, Any]:
    if pixels is None:
        return {"uri": None, "score": score}
    return {"uri": data_uri(pixels), "map": data_uri(difference(pixels, before)), "score": score}


def difference(pixels: np.ndarray, before: np.ndarray) -> np.ndarray:
    """Change of each pixel, uint8 [R,R]: 255 for none, darker with the largest channel's change, in 16 steps.

    pixels, before: uint8 [R,R,3] (paper, figure 17)
    """
    largest = np.abs(pixels.astype(np.int16) - before).max(axis=2)
    return (255 - largest // 16 * 17).astype(np.uint8)


def data_uri(pixels: np.ndarray) -> str:
    """uint8 [R,R,3] or [R,R] as a PNG of 192 pixels at most."""
    from PIL import Image

    image = Image.fromarray(pixels)
    if max(image.size) > 192:
        image.thumbnail((192, 192), Image.Resampling.LANCZOS)
    return _uri(_png(image))


def page_figures(layout: DomainPaths) -> dict[str, Any]:
    """Grids of `pipeline.evaluation.figures`, by name as data URIs, and their captions; empty without any."""
    uris = {path.stem: _uri(path.read_bytes()) for path in sorted(layout.figures.glob("*.png"))}
    return {**json.loads((layout.figures / "captions.json").read_text(encoding="utf-8")), **uris} if uris else {}


def _png(image: Image) -> bytes:
    content = io.BytesIO()
    image.save(content, "PNG", optimize=True)
    return content.getvalue()


def _uri(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode()
