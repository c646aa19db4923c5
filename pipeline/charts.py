"""Numbers as points of the page's charts: plain coordinates, which the template draws as SVG."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.evaluation import FRAMES
from pipeline.showcase import label

NEEDED = ("people", "evaluations", "psnr", "kept", "reached")
MEASURED = ("reached", "kept", "psnr", "evaluations", "seconds", "round_trip")  # of a trial; all else is its setting


def tradeoff(found: Mapping[str, Any], editors: Sequence[str]) -> list[dict[str, Any]]:
    """Points kept -> x, reached -> y on a unit square, with their intervals."""
    return [
        {
            "label": label(name),
            "frame": name in FRAMES,
            "color": i,
            "x": found[name]["kept"],
            "y": found[name]["reached"],
        }
        for i, name in enumerate(editors)
        if "reached" in found[name]
        and found[name]["reached"]["value"] is not None
        and found[name]["kept"]["value"] is not None
    ]


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
    """What `deltaspace tune --out` wrote: the settings that were varied, a row each, and two charts of them.

    In the charts a line joins the trials of one editor that differ in their numbers alone.
    """
    with path.open(encoding="utf-8") as lines:
        rows = [row for row in csv.DictReader(lines) if all(_number(row.get(key) or "") is not None for key in NEEDED)]
    varied = [key for key in rows[0] if key not in MEASURED and len({row[key] for row in rows}) > 1] if rows else []
    groups: dict[str, list[dict[str, str]]] = {}
    for row in sorted(rows, key=lambda row: [_number(row[key]) or 0.0 for key in varied]):
        words = [row["editor"], *(row[key] for key in varied if _number(row[key]) is None)]
        groups.setdefault(" ".join(dict.fromkeys(words)), []).append(row)
    return {
        "title": path.stem.replace("_", " "),
        "people": rows[0]["people"] if rows else "0",
        "varied": varied,
        "measured": [key for key in MEASURED if rows and key in rows[0]],
        "rows": rows,
        "charts": [
            _lines(groups, "evaluations", "psnr", "passes", "PSNR to the counterfactual, dB", logarithmic=True),
            _lines(groups, "kept", "reached", "kept", "reached"),
        ]
        if rows
        else [],
    }


def _number(text: str) -> float | None:
    """The finite number that `text` is, if it is one."""
    try:
        return float(text) if np.isfinite(float(text)) else None
    except ValueError:
        return None


def _lines(
    groups: Mapping[str, Sequence[Mapping[str, str]]],
    across: str,
    up: str,
    x_title: str,
    y_title: str,
    logarithmic: bool = False,
    width: int = 320,
    height: int = 200,
) -> dict[str, Any]:
    """Lines within width x height, and the values at the ends of both axes."""

    def place(value: str) -> float:
        return float(np.log(max(1.0, float(value)))) if logarithmic else float(value)

    points = [(place(row[across]), float(row[up])) for rows in groups.values() for row in rows]
    (left, right), (low, high) = ((min(side), max(side)) for side in zip(*points))
    lines = []
    for number, (name, rows) in enumerate(groups.items()):
        drawn = [
            (
                round(width * (place(row[across]) - left) / max(right - left, 1e-9), 1),
                round(height * (1 - (float(row[up]) - low) / max(high - low, 1e-9)), 1),
            )
            for row in rows
        ]
        lines.append({"name": name, "color": number % 9 + 1, "points": drawn})
    ends = (float(np.exp(side)) if logarithmic else side for side in (left, right))
    return {
        "lines": lines,
        "x": tuple(ends),
        "y": (low, high),
        "x_title": x_title,
        "y_title": y_title,
        "size": (width, height),
    }
