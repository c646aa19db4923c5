"""The report: one self-contained HTML page per domain, from what the stages wrote.

Nothing in the page points outside it: images and charts are data URIs. Its texts are in templates/report.html.j2.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.editors import label
from pipeline.evaluation import REFERENCES, SEPARATE_SPLITS, paper_claims
from pipeline.report import charts, columns, dag_figure, edit_grid, external_results, summary
from pipeline.report.external_results import read_json
from pipeline.runtime import files
from pipeline.runtime.errors import InputError
from pipeline.storage import artefacts, params
from pipeline.storage.domains import Domain

SHOWN_SKIPPED = 200
TAGS = {"heldout": "new words", "combined": "combined"}
TOLERANCE = 0.03  # largest difference between the shares of two oracles that confirm each other


def write(domain: Domain, root: Path) -> Path:
    """Write reports/<domain>/index.html and return its path."""
    path = artefacts.DomainPaths(domain, root).page
    files.write_bytes(path, render(domain, root).encode())
    return path


def render(domain: Domain, root: Path) -> str:
    """The page as HTML.

    Needs metrics, scores, edits and test images; shows training curves, timings and other runs where they exist.
    Raises InputError when metrics.json is missing or damaged.
    """
    import jinja2

    paths = artefacts.DomainPaths(domain, root)
    metrics = read_json(paths.metrics)
    if metrics is None:
        raise InputError(f"{paths.metrics} is missing: run `dvc repro`")
    editors, full = metrics["editors"], external_results.full(paths)
    for row in editors.values():
        row |= {
            f"reached_{split}": row[split]["reached"] for split in SEPARATE_SPLITS if "reached" in row.get(split, {})
        }
    names = sorted(editors, key=_reference_order)
    colors = {name: charts.COLORS[i % len(charts.COLORS)] for i, name in enumerate(names) if name not in REFERENCES}
    stages = dag_figure.graph(params.read_mapping(root / "dvc.yaml")) if (root / "dvc.yaml").is_file() else None
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters["svg"] = charts.svg
    return environment.get_template("report.html.j2").render(
        domain=domain,
        editors=[{"label": label(name), "color": colors.get(name), "metrics": editors[name]} for name in names],
        columns=[c for c in columns.EDITOR_COLUMNS if any(_measured(c.key, row) for row in editors.values())],
        best={column.key: _best(column, editors) for column in columns.EDITOR_COLUMNS},
        notes=_notes(editors),
        tradeoff=charts.tradeoff({name: (editors[name], color) for name, color in colors.items()}),
        summary=summary.paragraphs(
            metrics, {prompt.text: prompt.split for prompt in domain.prompts}, domain.renderer is not None
        ),
        claims=paper_claims.table(metrics, full and full["metrics"]) if metrics.get("claims") else [],
        full=full,
        gpu=external_results.gpu(root),
        speed=external_results.speed(root),
        prompts=_prompts(editors, list(colors), domain),
        networks=_network_tables(metrics),
        reconstructions=_reconstructions(metrics),
        reconstruction_columns=columns.RECONSTRUCTION_COLUMNS,
        codes_alone=columns.CODES_ALONE,
        second_oracle=_second_oracle(metrics),
        attributes=_attributes(metrics),
        edits=edit_grid.page_edits(domain, paths, names),
        figures=edit_grid.page_figures(paths),
        clip_maps=charts.clip_maps(paths.clip_map),
        curves=[curve for path in sorted(paths.curve("x").parent.glob("*.csv")) for curve in charts.curves(path)],
        workflow=stages and dag_figure.figure(stages),
        settings=_flat(params.load_yaml(root)),
        weights=[_weights(domain, name, root) for name in domain.networks],
        photographs=_photographs(paths.prepared),
        costs=_costs(paths, list(stages or ())),
        trials=[trial for path in sorted(paths.trials.glob("*.csv")) if (trial := charts.trials(path))["rows"]],
    )


# ---------------------------------------------------------------- tables


def _reference_order(name: str) -> int:
    """The unedited input first, the counterfactual last, editors between, in the order of params.yaml."""
    return 2 * REFERENCES.index(name) if name in REFERENCES else 1


def _measured(key: str, row: Mapping[str, Any]) -> bool:
    return key in row and "note" not in row[key]


def _best(column: columns.Column, editors: Mapping[str, Any]) -> float | None:
    """The best value of a column among the editors; None where neither more nor less is better."""
    leaves = [row.get(column.key, {}) for name, row in editors.items() if name not in REFERENCES]
    values = [leaf["value"] for leaf in leaves if leaf.get("value") is not None]
    return max(values, key=lambda value: column.better * value) if values and column.better else None


def _notes(editors: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(titles of columns that were not computed, reason)"""
    titles: dict[str, list[str]] = {}
    for column in columns.EDITOR_COLUMNS:
        for note in dict.fromkeys(row.get(column.key, {}).get("note") for row in editors.values()):
            if note:
                titles.setdefault(note, []).append(column.title)
    return [(", ".join(each), note) for note, each in titles.items()]


def _prompts(editors: Mapping[str, Any], names: Sequence[str], domain: Domain) -> dict[str, Any]:
    """One row per prompt: the number of test images, and the metrics of every editor in `names`."""
    rows = []
    for prompt in domain.prompts:
        if leaves := [row["prompts"][prompt.text] for row in editors.values() if prompt.text in row["prompts"]]:
            rows.append(
                {
                    "text": prompt.text,
                    "tag": TAGS.get(prompt.split),
                    "images": max(leaf["images"]["value"] for leaf in leaves),
                    "cells": [editors[name]["prompts"].get(prompt.text, {}) for name in names],
                }
            )
    measure = "reached" if any(_measured("reached", editors[name]) for name in names) else "clip_direction"
    return {"editors": [label(name) for name in names], "measure": measure, "rows": rows}


def _network_tables(metrics: Mapping[str, Any]) -> list[dict[str, Any]]:
    tables = []
    for title, network, rows in columns.NETWORK_TABLES:
        leaves = [(metrics.get(network, {}).get(key, {}), name, digits) for key, name, digits in rows]
        measured = [row for row in leaves if row[0].get("value") is not None or "note" in row[0]]
        if measured:
            tables.append({"title": title, "rows": measured})
    return tables


def _reconstructions(metrics: Mapping[str, Any]) -> list[dict[str, Any]]:
    rows = []
    for title, path in columns.RECONSTRUCTIONS:
        node = functools.reduce(lambda node, key: node.get(key, {}), path, metrics)
        if node.get("psnr"):
            rows.append({"title": title, "metrics": node})
    return rows


def _attributes(metrics: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Accuracy of oracle and CLIP per attribute."""
    oracle, clip = (metrics[network].get("attributes", {}) for network in ("oracle", "clip"))
    names = dict.fromkeys([*oracle, *clip])
    return [{"name": name.replace("_", " "), "oracle": oracle.get(name), "clip": clip.get(name)} for name in names]


def _second_oracle(metrics: Mapping[str, Any]) -> dict[str, Any] | None:
    """Whether the second oracle's shares are within TOLERANCE of the first's, in percent; None without one."""
    largest = metrics.get("oracle2", {}).get("largest_difference", {}).get("value")
    if largest is None:
        return None
    return {"difference": 100 * largest, "tolerance": 100 * TOLERANCE, "confirms": largest <= TOLERANCE}


# ---------------------------------------------------------------- the run


def _flat(node: Any, path: str = "") -> list[tuple[str, str]]:
    """Nested settings as rows of (dotted name, value)."""
    if isinstance(node, Mapping):
        return [row for key, child in node.items() for row in _flat(child, f"{path}.{key}" if path else str(key))]
    return [(path, ", ".join(map(str, node)) if isinstance(node, list) else "default" if node is None else str(node))]


def _weights(domain: Domain, name: str, root: Path) -> dict[str, Any]:
    weights = domain.weights(name)
    path = root / weights.path
    row = {"name": name, "licence": weights.licence, "megabytes": None, "sha256": None}
    if path.is_file():
        row |= {"megabytes": path.stat().st_size / 1e6, "sha256": files.digest(path)[:12]}
    return row


def _photographs(path: Path) -> dict[str, Any] | None:
    """Counts of a dataset of photographs, with the first of those that were skipped; None for drawn portraits."""
    content = read_json(path) or {}
    if "skipped" not in content:
        return None
    return {**content, "skipped": content["skipped"][:SHOWN_SKIPPED], "skipped_count": len(content["skipped"])}


def _costs(paths: artefacts.DomainPaths, stages: Sequence[str]) -> list[dict[str, Any]]:
    """Seconds, also of fitting, and peak memory in bytes of each stage's last run, in the order of dvc.yaml."""
    rows = []
    for path in paths.timings.glob("*.json"):
        timing = read_json(path)
        seconds = {key: timing.get(key) for key in ("seconds", "fit_seconds")}
        rows.append({"stage": path.stem, **seconds, "rss": timing.get("peak_rss")})
    order = {name: number for number, name in enumerate(stages)}
    return sorted(rows, key=lambda row: (order.get(row["stage"].split("-")[0], len(order)), row["stage"]))
