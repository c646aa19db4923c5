"""The workflow as a figure, read from dvc.yaml: its stages, their first outputs, and which stage reads which."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import networkx as nx
from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch
from matplotlib.path import Path as Curve

from pipeline.report.charts import STYLE, TEXT

WIDTH, HEIGHT, GAP_X, GAP_Y = 112, 40, 44, 22  # points: a box, and between boxes


def graph(workflow: Mapping[str, Any]) -> nx.DiGraph:
    """Stages as nodes, with `makes`, the name of their first output; an edge to each stage that reads an output.

    Templates like ${item.domain} all stand for the same.
    """
    stages = {name: entry.get("do", entry) for name, entry in workflow.get("stages", {}).items()}
    outputs = {name: _paths(entry, "outs", "metrics", "plots") for name, entry in stages.items()}
    dag = nx.DiGraph()
    for name, paths in outputs.items():
        parts = [part for part in paths[0].split("/") if part != "*"] if paths else [""]
        dag.add_node(name, makes=parts[-1].removesuffix(".safetensors"))
    for name, entry in stages.items():
        reads = _paths(entry, "deps")
        dag.add_edges_from(
            (other, name)
            for other, paths in outputs.items()
            if other != name and any(_overlap(dep, out) for dep in reads for out in paths)
        )
    return dag


def positions(dag: nx.DiGraph) -> dict[str, tuple[float, float]]:
    """Centres (x, y) of the stages' boxes: left to right by the longest path to a stage, inputs beside their first use.

    Within a column stages are ordered by the mean height of those that they read.
    """
    columns = {name: column for column, names in enumerate(nx.topological_generations(dag)) for name in names}
    for name in dag:
        if not dag.in_degree(name) and dag.out_degree(name):
            columns[name] = min(columns[user] for user in dag.successors(name)) - 1
    coordinates: dict[str, tuple[float, float]] = {}
    for column in sorted(set(columns.values())):
        names = [name for name in dag if columns[name] == column]
        heights = {name: [coordinates[other][1] for other in dag.predecessors(name)] for name in names}
        names.sort(key=lambda name: sum(heights[name]) / max(1, len(heights[name])))
        for row, name in enumerate(names):
            coordinates[name] = (column * (WIDTH + GAP_X), (row - (len(names) - 1) / 2) * (HEIGHT + GAP_Y))
    return coordinates


@rc_context(STYLE)
def figure(dag: nx.DiGraph) -> Figure:
    """The figure: boxes and arrows; an arrow that a chain of others implies is left out."""
    coordinates = positions(dag)
    xs, ys = ([point[axis] for point in coordinates.values()] for axis in (0, 1))
    width, height = max(xs) - min(xs) + WIDTH + 8, max(ys) - min(ys) + HEIGHT + 8
    drawn = Figure((width / 72, height / 72))
    axes = drawn.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    left, top = min(xs) - WIDTH / 2 - 4, min(ys) - HEIGHT / 2 - 4
    axes.set(xlim=(left, left + width), ylim=(top + height, top))
    for name, (x, y) in coordinates.items():
        corner = (x - WIDTH / 2, y - HEIGHT / 2)
        axes.add_patch(FancyBboxPatch(corner, WIDTH, HEIGHT, "round,pad=0,rounding_size=7", fc="none", ec=TEXT))
        axes.text(x, y - 7, name, size=12, ha="center", va="center")
        axes.text(x, y + 10, dag.nodes[name]["makes"], size=10, ha="center", va="center", alpha=0.8)
    for start, end in nx.transitive_reduction(dag).edges:
        (x, y), (to_x, to_y) = coordinates[start], coordinates[end]
        x, to_x = x + WIDTH / 2, to_x - WIDTH / 2
        bend = max(18, (to_x - x) / 2)
        curve = Curve([(x, y), (x + bend, y), (to_x - bend, to_y), (to_x, to_y)], [Curve.MOVETO, *[Curve.CURVE4] * 3])
        axes.add_patch(FancyArrowPatch(path=curve, arrowstyle="-|>", mutation_scale=9, color=TEXT))
    return drawn


def _paths(entry: Mapping[str, Any], *kinds: str) -> list[str]:
    """Paths of lists of plain entries and of {path: options}, with `*` for templates."""
    entries = [item for kind in kinds for item in entry.get(kind) or []]
    names = [item if isinstance(item, str) else next(iter(item)) for item in entries]
    return [re.sub(r"\$\{[^}]*\}", "*", name).rstrip("/") for name in names]


def _overlap(dep: str, out: str) -> bool:
    return f"{dep}/".startswith(f"{out}/") or f"{out}/".startswith(f"{dep}/")
