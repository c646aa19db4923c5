"""Charts of the page, drawn by matplotlib in one style and embedded as SVG."""

from __future__ import annotations

import base64
import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure

from pipeline.editors import label
from pipeline.evaluation import TRIAL_METRICS
from pipeline.storage import artefacts

COLORS = (  # mid-tones, readable on white and on black
    *("#4a7be0", "#12a08c", "#dd7a2c", "#9d66d6", "#d6527c", "#6c9e2c"),
    *("#2f9dc4", "#ab7a4d", "#93933a", "#dc6470", "#67809f", "#848c98"),
)
TITLES = {
    "psnr": "PSNR to the counterfactual, dB",
    "distance": "distance to the input",
    "agreement": "agreement with the text",
    "evaluations": "passes",
}
AXES = (("evaluations", "psnr"), ("strength", "psnr"), ("kept", "reached"), ("distance", "agreement"))
TEXT, LIGHT, DARK = "#777777", "#566070", "#a3adbb"  # of text and axes, and what replaces it in either theme
STYLE: dict[Any, Any] = {
    "svg.hashsalt": "deltaspace",  # the same figure gives the same bytes
    "svg.fonttype": "none",
    "font.size": 9,
    "axes.prop_cycle": f"cycler('color', {list(COLORS)})",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "lines.linewidth": 1.4,
    "lines.markersize": 4,
    "figure.dpi": 72,
    **{f"{part}.color": TEXT for part in ("text", "xtick", "ytick", "grid")},
    **{f"axes.{part}color": TEXT for part in ("label", "edge")},
}


@rc_context(STYLE)
def svg(figure: Figure) -> str:
    """The figure as a data URI; its background is transparent, its text follows the page's light or dark theme."""
    content = io.StringIO()
    metadata = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    figure.savefig(content, format="svg", bbox_inches="tight", pad_inches=0.03, transparent=True, metadata=metadata)
    theme = f"svg{{color:{LIGHT}}}@media(prefers-color-scheme:dark){{svg{{color:{DARK}}}}}*{{"
    text = content.getvalue().replace(TEXT, "currentColor").replace("*{", theme, 1)
    return "data:image/svg+xml;base64," + base64.b64encode(text.encode()).decode()


@rc_context(STYLE)
def tradeoff(editors: Mapping[str, tuple[Mapping[str, Any], str]]) -> Figure | None:
    """Share reached against share kept, with their intervals; None where no editor has both.

    editors: name -> its metrics and its colour
    """
    rows = [
        (label(name), metrics["kept"], metrics["reached"], color)
        for name, (metrics, color) in editors.items()
        if all(metrics.get(key, {}).get("value") is not None for key in ("reached", "kept"))
    ]
    if not rows:
        return None
    figure = Figure((3.7, 3))
    axes = figure.subplots()
    axes.set(xlabel="kept: the rest of the image is as it should be", ylabel="reached")
    rows.sort(key=lambda row: -row[2]["value"])
    for slot, (name, kept, reached, color) in enumerate(rows):
        x, y = kept["value"], reached["value"]
        axes.errorbar(x, y, _whiskers(reached), _whiskers(kept), "o", color=color, elinewidth=1)
        arrow = {"arrowstyle": "-", "color": color, "lw": 0.6, "ls": ":", "relpos": (0, 0.5)}
        beside = (1.04, 0.97 - slot / max(9, len(rows)))
        axes.annotate(name, (x, y), beside, textcoords="axes fraction", va="center", arrowprops=arrow)
    return figure


def _whiskers(leaf: Mapping[str, Any]) -> list[list[float]] | None:
    """Distances from a value to the ends of its interval, as matplotlib takes them."""
    if leaf["low"] is None or leaf["high"] is None:
        return None
    return [[leaf["value"] - leaf["low"]], [leaf["high"] - leaf["value"]]]


@rc_context(STYLE)
def curves(path: Path) -> list[tuple[str, Figure]]:
    """Title and chart of every column of a training's CSV over `step`.

    The vertical range leaves out the highest fiftieth: the first points of a loss.
    """
    with path.open(encoding="utf-8") as lines:
        rows = list(csv.DictReader(lines))
    charts = []
    for name in (name for name in (rows[0] if rows else {}) if name != "step"):
        points = np.array([(float(row["step"]), float(row[name])) for row in rows if row.get(name)]).reshape(-1, 2)
        x, y = points[np.isfinite(points[:, 1])].T
        if len(x) < 2:
            continue
        figure = Figure((4.6, 2))
        axes = figure.subplots()
        every = max(1, len(x) // 400)
        axes.plot(x[::every], y[::every])
        low, high = float(y.min()), float(np.percentile(y, 98))
        axes.set_ylim(low, high if high > low else low + 1)
        axes.set_xlabel("step")
        charts.append((f"{path.stem}: {name}, at the end {y[-1]:.4g}", figure))
    return charts


@rc_context(STYLE)
def clip_maps(path: Path) -> list[tuple[str, Figure]]:
    """Title and chart of both maps in the table of `pipeline.evaluation.figures.clip_map`; none without the file."""
    if not path.is_file():
        return []
    table, charts = artefacts.table(path), []
    for space, title in enumerate(("embeddings", "differences of two images, and of their captions")):
        rows = table.filter(table["space"] == space)
        figure = Figure((4.2, 4.2))
        axes = figure.subplots()
        axes.set(xticks=[], yticks=[], aspect="equal", frame_on=False)
        for text, (name, color) in enumerate((("images", COLORS[0]), ("captions", COLORS[2]))):
            side = rows.filter(rows["text"] == text)
            axes.plot(side["x"], side["y"], "o", color=color, alpha=0.6, markeredgewidth=0, label=name)
        figure.legend(loc="upper center", ncols=2, frameon=False, bbox_to_anchor=(0.5, 0.97))
        charts.append((title, figure))
    return charts


# ---------------------------------------------------------------- trials


def trials(path: Path) -> dict[str, Any]:
    """A table of `deltaspace tune --out`: the settings that vary, its rows, and its charts (`trial_chart`).

    Incomplete rows, and those of another version's tables, are left out.
    """
    with path.open(encoding="utf-8") as lines:
        rows = [
            row
            for row in csv.DictReader(lines)
            if all(row.get(key) for key in ("editor", "images", "style"))
            and all(_number(row.get(key)) is not None for key in TRIAL_METRICS)
        ]
    names = [key for key in (rows[0] if rows else {}) if key not in (*TRIAL_METRICS, "editor", "style")]
    editors = {row["editor"]: [other for other in rows if other["editor"] == row["editor"]] for row in rows}
    varied = [key for key in names if any(len({row[key] for row in own}) > 1 for own in editors.values())]
    varied = [key for key in ("editor", "style") if len({row[key] for row in rows}) > 1] + varied
    charts = []
    for x, y in AXES:
        lines_of = _lines(editors, varied, x)
        if any(len({row.get(x) for row in line}) > 1 for line in lines_of.values()) and all(
            _number(row.get(x)) is not None for row in rows
        ):
            charts.append(trial_chart(lines_of, x, y))
    return {
        "title": path.stem.replace("_", " "),
        "images": rows[0]["images"] if rows else "0",
        "split": (rows[0].get("split") if rows else None) or "seen",
        "varied": varied,
        "measured": list(TRIAL_METRICS),
        "rows": rows,
        "charts": charts,
    }


@rc_context(STYLE)
def trial_chart(lines: Mapping[str, Sequence[Mapping[str, str]]], x: str, y: str) -> dict[str, Any]:
    """{figure, lines: (name, colour, mean height or None), title} of columns `x` and `y`; passes are logarithmic."""
    figure = Figure((4.4, 2.8))
    axes = figure.subplots()
    axes.set(xlabel=TITLES.get(x, x), ylabel=TITLES.get(y, y))
    curves = {name: [(float(row[x]), float(row[y])) for row in rows] for name, rows in lines.items()}
    axes.locator_params(nbins=6)
    if x == "evaluations":
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter("{x:.0f}")
        curves = {name: [(max(1.0, passes), value) for passes, value in curve] for name, curve in curves.items()}
    for number, curve in enumerate(curves.values()):
        axes.plot(*zip(*curve), "o-", color=COLORS[number % len(COLORS)])
    if x == "evaluations":
        curves = {name: [(float(np.log(passes)), value) for passes, value in curve] for name, curve in curves.items()}
    heights = mean_heights(curves) if x != "strength" else {}  # which is not one scale for all editors
    named = [(name, COLORS[number % len(COLORS)], heights.get(name)) for number, name in enumerate(curves)]
    return {"figure": figure, "lines": named, "title": f"{TITLES.get(y, y)} against {TITLES.get(x, x)}"}


def _lines(
    editors: Mapping[str, Sequence[Mapping[str, str]]], varied: Sequence[str], across: str
) -> dict[str, list[Mapping[str, str]]]:
    """Trials that a line of a chart over column `across` joins, by the line's name.

    An editor's lines follow `across` if that was varied, else strength, else the number of most values. What else was
    varied, and is not a function of it, names the line.
    """
    lines: dict[str, list[Mapping[str, str]]] = {}
    for editor, rows in editors.items():
        differ = [key for key in varied if len({row[key] for row in rows}) > 1]
        numbers = [key for key in differ if all(not row[key] or _number(row[key]) is not None for row in rows)]
        preferred = [key for key in (across, "strength") if key in numbers]
        along = preferred[0] if preferred else max(numbers, key=lambda key: len({r[key] for r in rows}), default="")
        pairs = {key: {(row.get(along), row[key]) for row in rows} for key in differ if key != along}
        others = [key for key, values in pairs.items() if len(values) > len({value for value, _ in values})]
        for row in sorted(rows, key=lambda row: [_number(row.get(key)) or 0.0 for key in (*others, along)]):
            name = " ".join([label(editor), *(f"{key} {row[key] or 'null'}" for key in others)])
            lines.setdefault(name, []).append(row)
    return lines


def _number(text: str | None) -> float | None:
    """`text` as a finite number, or None."""
    try:
        return float(text) if text and np.isfinite(float(text)) else None
    except ValueError:
        return None


def mean_heights(curves: Mapping[str, Sequence[tuple[float, float]]]) -> dict[str, float]:
    """Area under each curve over the range of x that all of them cover, divided by that range.

    Curves are piecewise linear. Single points, and curves whose x is not monotonic, are left out; without a common
    range there are none.
    """
    steps = {name: np.diff([x for x, _ in curve]) for name, curve in curves.items() if len(curve) > 1}
    ordered = {name: np.array(sorted(curves[name])) for name, dx in steps.items() if (dx > 0).all() or (dx < 0).all()}
    left = max((curve[0, 0] for curve in ordered.values()), default=0.0)
    right = min((curve[-1, 0] for curve in ordered.values()), default=0.0)
    if not left < right:
        return {}
    x = np.linspace(left, right, 201)
    return {
        name: float(np.trapezoid(np.interp(x, curve[:, 0], curve[:, 1]), x) / (right - left))
        for name, curve in ordered.items()
    }
