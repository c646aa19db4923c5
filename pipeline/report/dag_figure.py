"""The workflow as a drawing, read from dvc.yaml: which stage reads what which makes, and where boxes and arrows go."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

STAGES = (  # the order of the workflow (design.md section 3), for tables
    "prepare",
    "sample",
    "invert",
    "cache",
    "relevance",
    "mapper",
    "mapper_wplus",
    "diffusion",
    "edit_latent",
    "edit_baseline",
    "edit_diffusion",
    "evaluate",
    "report",
)
WIDTH, HEIGHT, GAP_X, GAP_Y, MARGIN = 112, 40, 44, 22, 6


@dataclass(frozen=True)
class Box:
    name: str
    makes: str
    x: float
    y: float


@dataclass(frozen=True)
class Chart:
    """width and height of the drawing and of a box; the boxes, and the SVG paths of the arrows between them."""

    width: float
    height: float
    box: tuple[int, int]
    boxes: tuple[Box, ...]
    arrows: tuple[str, ...]


def edges(workflow: Mapping[str, Any]) -> dict[str, set[str]]:
    """stage -> the stages whose outputs it reads. Templates like ${item.domain} stand for one same thing."""
    entries = {name: _body(entry) for name, entry in workflow.get("stages", {}).items()}
    makes = {
        name: [path for kind in ("outs", "metrics", "plots") for path in _paths(entry.get(kind))]
        for name, entry in entries.items()
    }
    return {
        name: {
            other
            for other, outputs in makes.items()
            if other != name and any(_overlap(dep, out) for dep in _paths(entry.get("deps")) for out in outputs)
        }
        for name, entry in entries.items()
    }


def chart(workflow: Mapping[str, Any]) -> Chart:
    """Left to right by the longest way from a source; arrows that a chain of others implies are left out."""
    needs = edges(workflow)
    depth: dict[str, int] = {}

    def level(name: str, above: tuple[str, ...] = ()) -> int:
        if name not in depth:
            inner = [level(other, (*above, name)) for other in needs[name] if other not in above]
            depth[name] = 1 + max(inner, default=-1)
        return depth[name]

    for name in needs:
        level(name)
    for name in needs:  # a source stands right before the first that needs it
        users = [depth[other] for other in needs if name in needs[other]]
        if not needs[name] and users:
            depth[name] = min(users) - 1
    columns: dict[int, list[str]] = {}
    for name in needs:
        columns.setdefault(depth[name], []).append(name)
    tallest = max((len(column) for column in columns.values()), default=0)
    height = tallest * (HEIGHT + GAP_Y) - GAP_Y + 2 * MARGIN
    place: dict[str, tuple[float, float]] = {}
    for index in sorted(columns):
        column = sorted(
            columns[index], key=lambda name: sum(place[o][1] for o in needs[name]) / max(1, len(needs[name]))
        )
        top = (height - len(column) * (HEIGHT + GAP_Y) + GAP_Y) / 2
        for row, name in enumerate(column):
            place[name] = (MARGIN + index * (WIDTH + GAP_X), top + row * (HEIGHT + GAP_Y))
    direct = {
        name: {o for o in needs[name] if not any(o in _all(needs, other) for other in needs[name])} for name in needs
    }
    boxes = tuple(Box(name, _what(workflow["stages"][name]), *place[name]) for name in needs)
    arrows = tuple(_arrow(place[other], place[name]) for name in needs for other in sorted(direct[name]))
    return Chart(len(columns) * (WIDTH + GAP_X) - GAP_X + 2 * MARGIN, height, (WIDTH, HEIGHT), boxes, arrows)


def _all(needs: Mapping[str, set[str]], name: str, seen: frozenset[str] = frozenset()) -> set[str]:
    """Everything `name` needs, over any number of steps."""
    found: set[str] = set()
    for other in needs[name]:
        if other not in seen:
            found |= {other} | _all(needs, other, seen | {name})
    return found


def _body(entry: Mapping[str, Any]) -> Mapping[str, Any]:
    return entry.get("do", entry)


def _paths(entries: Any) -> list[str]:
    """Paths of a list of plain entries and of {path: options}, templates replaced by one sign."""
    found = []
    for entry in entries or []:
        name = entry if isinstance(entry, str) else next(iter(entry))
        found.append(re.sub(r"\$\{[^}]*\}", "*", name).rstrip("/"))
    return found


def _overlap(dep: str, out: str) -> bool:
    return dep == out or dep.startswith(f"{out}/") or out.startswith(f"{dep}/")


def _what(entry: Mapping[str, Any]) -> str:
    """What a stage makes: the last part of its first output, without an ending."""
    body = _body(entry)
    paths = [path for kind in ("outs", "metrics", "plots") for path in _paths(body.get(kind))]
    names = [part for part in paths[0].split("/") if part != "*"] if paths else []
    return names[-1].removesuffix(".safetensors") if names else ""


def _arrow(start: tuple[float, float], end: tuple[float, float]) -> str:
    x, y = start[0] + WIDTH, start[1] + HEIGHT / 2
    to_x, to_y = end[0] - 5, end[1] + HEIGHT / 2
    bend = max(18.0, (to_x - x) / 2)
    return f"M{x:.0f},{y:.0f} C{x + bend:.0f},{y:.0f} {to_x - bend:.0f},{to_y:.0f} {to_x:.0f},{to_y:.0f}"
