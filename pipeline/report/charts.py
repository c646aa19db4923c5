"""Numbers as points of the page's charts: plain coordinates, which the template draws as SVG."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.report.edit_grid import FRAMES, label
from pipeline.storage import artefacts

MEASURED = ("reached", "kept", "psnr", "distance", "agreement", "evaluations", "seconds", "round_trip")  # of a trial
COLORS = 12  # --c-0 and on, of the template
TITLES = {
    "psnr": "PSNR to the counterfactual, dB",
    "distance": "distance to the input",
    "agreement": "agreement with the text",
    "evaluations": "passes",
}
AXES = (("evaluations", "psnr"), ("strength", "psnr"), ("kept", "reached"), ("distance", "agreement"))


def tradeoff(found: Mapping[str, Any], editors: Sequence[str]) -> dict[str, Any] | None:
    """Editors proper, kept across and reached up, with their intervals; the axes hold them all. None without any.

    Points of [0,1] within the axes, y downwards as SVG has it; `slot` says in which row their name stands.
    """
    rows = [
        (i, name, found[name]["kept"], found[name]["reached"])
        for i, name in enumerate(editors)
        if name not in FRAMES and all(found[name].get(key, {}).get("value") is not None for key in ("reached", "kept"))
    ]
    if not rows:
        return None
    across = _axis([end for _, _, kept, _ in rows for end in _ends(kept)])
    up = _axis([end for _, _, _, reached in rows for end in _ends(reached)])

    def place(value: float, axis: Sequence[float]) -> float:
        return round((value - axis[0]) / (axis[-1] - axis[0]), 4)

    points: list[dict[str, Any]] = [
        {
            "label": label(name),
            "color": i % COLORS,
            "x": place(kept["value"], across),
            "y": 1 - place(reached["value"], up),
            "whiskers": [place(end, across) for end in _ends(kept)] + [1 - place(end, up) for end in _ends(reached)],
        }
        for i, name, kept, reached in rows
    ]
    for slot, point in enumerate(sorted(points, key=lambda point: point["y"])):
        point["slot"] = slot
    return {"points": points, "across": across, "up": up}


def _ends(leaf: Mapping[str, Any]) -> tuple[float, float]:
    low, high = (leaf["value"] if leaf[end] is None else leaf[end] for end in ("low", "high"))
    return low, high


def _axis(values: Sequence[float]) -> list[float]:
    """Multiples of .05 around the values, or of .1 where those would be many; two at least."""
    step = 0.05 if max(values) - min(values) < 0.3 else 0.1
    low, high = int(np.floor(min(values) / step)), int(np.ceil(max(values) / step))
    return [round(step * number, 4) for number in range(low, max(high, low + 1) + 1)]


def curves(path: Path) -> list[dict[str, Any]]:
    """A training's CSV as one chart per column over `step`."""
    with path.open(encoding="utf-8") as lines:
        rows = list(csv.DictReader(lines))
    names = [name for name in (rows[0] if rows else {}) if name != "step"]
    charts = []
    for name in names:
        points = [(float(row["step"]), float(row[name])) for row in rows if row.get(name)]
        points = [(x, y) for x, y in points if np.isfinite(y)]
        if len(points) > 1:
            charts.append({"title": f"{path.stem}: {name}", **_line(points)})
    return charts


def _line(points: Sequence[tuple[float, float]], width: int = 300, height: int = 120) -> dict[str, Any]:
    """SVG coordinates of a line; the vertical range leaves out the first, high points of a loss."""
    ys = np.array([y for _, y in points])
    low, high = float(ys.min()), float(np.percentile(ys, 98))
    high = high if high > low else low + 1
    left, right = points[0][0], points[-1][0]
    scaled = [
        (width * (x - left) / max(right - left, 1e-9), height * (1 - (min(y, high) - low) / (high - low)))
        for x, y in points[:: max(1, len(points) // 400)]
    ]
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in scaled)
    return {"points": path, "low": low, "high": high, "first": left, "last": right, "end": points[-1][1]}


def trials(path: Path) -> dict[str, Any]:
    """What `deltaspace tune --out` wrote: the settings that were varied, a row each, and charts of them.

    In the charts a line joins trials of one editor along one number (`_groups`). Rows that are not whole, or of another
    version's tables, are left out.
    """
    with path.open(encoding="utf-8") as lines:
        rows = [
            row
            for row in csv.DictReader(lines)
            if all(row.get(key) for key in ("editor", "people", "style"))
            and all(_number(row.get(key)) is not None for key in MEASURED)
        ]
    names = [key for key in (rows[0] if rows else {}) if key not in (*MEASURED, "editor", "style")]
    editors = {row["editor"]: [other for other in rows if other["editor"] == row["editor"]] for row in rows}
    varied = [key for key in names if any(len({row[key] for row in own}) > 1 for own in editors.values())]
    varied = [key for key in ("editor", "style") if len({row[key] for row in rows}) > 1] + varied
    groups = {x: _groups(editors, varied, x) for x, _ in AXES}
    shown = [
        (x, y)
        for x, y in AXES
        if any(len({row.get(x) for row in group}) > 1 for group in groups[x].values())
        and all(_number(row.get(x)) is not None for row in rows)
    ]
    return {
        "title": path.stem.replace("_", " "),
        "people": rows[0]["people"] if rows else "0",
        "split": (rows[0].get("split") if rows else None) or "seen",
        "varied": varied,
        "measured": list(MEASURED),
        "rows": rows,
        "charts": [_lines(groups[x], x, y, logarithmic=x == "evaluations") for x, y in shown],
    }


def _groups(
    editors: Mapping[str, Sequence[Mapping[str, str]]], varied: Sequence[str], across: str
) -> dict[str, list[Mapping[str, str]]]:
    """The lines of a chart over `across`, by name.

    An editor's go along `across` if that was varied, else along strength, else along the number of most values. What it
    was varied in beside that, and does not follow from it, names them.
    """
    groups: dict[str, list[Mapping[str, str]]] = {}
    for editor, rows in editors.items():
        differ = [key for key in varied if len({row[key] for row in rows}) > 1]
        numbers = [key for key in differ if not any(_is_word(row[key]) for row in rows)]
        preferred = [key for key in (across, "strength") if key in numbers]
        along = preferred[0] if preferred else max(numbers, key=lambda key: len({r[key] for r in rows}), default="")
        pairs = {key: {(row.get(along), row[key]) for row in rows} for key in differ if key != along}
        others = [key for key, found in pairs.items() if len(found) > len({value for value, _ in found})]
        for row in sorted(rows, key=lambda row: [_number(row.get(key)) or 0.0 for key in (*others, along)]):
            name = " ".join([label(editor), *(f"{key} {row[key] or 'null'}" for key in others)])
            groups.setdefault(name, []).append(row)
    return groups


def _number(text: str | None) -> float | None:
    """The finite number that `text` is, if it is one."""
    try:
        return float(text) if text and np.isfinite(float(text)) else None
    except ValueError:
        return None


def _is_word(text: str) -> bool:
    return bool(text) and _number(text) is None


def _lines(
    groups: Mapping[str, Sequence[Mapping[str, str]]],
    across: str,
    up: str,
    logarithmic: bool = False,
    width: int = 320,
    height: int = 200,
) -> dict[str, Any]:
    """Lines within width x height, the values at the ends of both axes, and every line's `mean_height`."""

    def place(value: str) -> float:
        return float(np.log(max(1.0, float(value)))) if logarithmic else float(value)

    curves = {name: [(place(row[across]), float(row[up])) for row in rows] for name, rows in groups.items()}
    points = [point for curve in curves.values() for point in curve]
    (left, right), (low, high) = ((min(side), max(side)) for side in zip(*points))
    heights = mean_heights(curves) if across != "strength" else {}  # which is not one scale for all editors
    lines = []
    for number, (name, curve) in enumerate(curves.items()):
        drawn = [
            (
                round(width * (x - left) / max(right - left, 1e-9), 1),
                round(height * (1 - (y - low) / max(high - low, 1e-9)), 1),
            )
            for x, y in curve
        ]
        lines.append({"name": name, "color": number % COLORS, "points": drawn, "mean_height": heights.get(name)})
    ends = (float(np.exp(side)) if logarithmic else side for side in (left, right))
    return {
        "lines": lines,
        "x": tuple(ends),
        "y": (low, high),
        "x_title": TITLES.get(across, across),
        "y_title": TITLES.get(up, up),
        "size": (width, height),
    }


def mean_heights(curves: Mapping[str, Sequence[tuple[float, float]]]) -> dict[str, float]:
    """The area under every curve over the range of x that all of them cover, divided by that range.

    Between its points a curve is straight. What turns back, and single points, are left out; none where the ranges have
    nothing in common.
    """
    steps = {name: np.diff([x for x, _ in curve]) for name, curve in curves.items() if len(curve) > 1}
    ordered = {
        name: np.array(sorted(curves[name])) for name, way in steps.items() if (way > 0).all() or (way < 0).all()
    }
    if not ordered:
        return {}
    left = max(curve[0, 0] for curve in ordered.values())
    right = min(curve[-1, 0] for curve in ordered.values())
    if not left < right:
        return {}
    along = np.linspace(left, right, 201)
    return {
        name: float(np.trapezoid(np.interp(along, curve[:, 0], curve[:, 1]), along) / (right - left))
        for name, curve in ordered.items()
    }


def places(path: Path) -> list[dict[str, Any]]:
    """Two maps of CLIP's space that `pipeline.report.page.figures` made, points of [0,1] each; none where it made none."""
    if not path.is_file():
        return []
    rows = artefacts.table(path)
    return [
        {
            "title": title,
            "points": [
                (round(row["x"], 3), round(row["y"], 3), "text" if row["text"] else "picture")
                for row in rows.iter_rows(named=True)
                if row["space"] == space
            ],
        }
        for space, title in enumerate(("as they are", "differences of two people"))
    ]
