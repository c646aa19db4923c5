"""One self-contained page per domain: what was run, what came out, and what it looks like.

`page` reads only what the stages left; nothing in the HTML points outside it (pictures are data URIs, charts inline
SVG). The words are in templates/report.html.j2, the numbers here.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.evaluation import paper_claims
from pipeline.report import charts, dag_figure, edit_grid, external_results, summary
from pipeline.report.edit_grid import APART, FRAMES, label
from pipeline.runtime import files
from pipeline.runtime.errors import InputError
from pipeline.storage import artefacts, params
from pipeline.storage.domains import Domain

SHOWN_SKIPPED = 200
TAGS = {"heldout": "new words", "combined": "combined"}
WITHIN = 0.03  # shares by two oracles that agree
HINT = "run `dvc repro`"


@dataclass(frozen=True)
class Column:
    """A column of the editors' table. better: 1 when more is better, -1 when less is, 0 when neither."""

    key: str
    title: str
    digits: int
    better: int
    help: str


EDITOR_COLUMNS = (
    Column("reached", "reached", 2, 1, "share of edits in which the oracle sees the prompt's value"),
    Column(
        "reached_heldout", "reached, new words", 2, 1, "reached, for prompts in synonyms that no network was taught"
    ),
    Column("reached_combined", "reached, combined", 2, 1, "reached, for prompts of several attributes: all of them"),
    Column("kept", "kept", 2, 1, "share of the other attributes that read as in the counterfactual"),
    Column("identity", "identity", 2, 1, "cosine with the counterfactual, identity network"),
    Column("counterfactual_gain", "gain, dB", 2, 1, "PSNR to the counterfactual, over the same editor's at strength 0"),
    Column("gain_over_input", "gain over input, dB", 2, 1, "PSNR to the counterfactual, over the input's"),
    Column("psnr", "PSNR, dB", 1, 1, "to the counterfactual; equal pictures count as 60"),
    Column("fid_oracle", "FID-oracle", 2, -1, "Frechet distance to the counterfactuals in the oracle's features"),
    Column(
        "fid",
        "FID",
        2,
        -1,
        "Frechet distance of all edits to all test pictures in Inception's features; biased up by few",
    ),
    Column("lpips_input", "LPIPS to input", 3, 0, "perceptual distance to the input (AlexNet)"),
    Column(
        "clip_direction",
        "CLIP direction",
        2,
        1,
        "cosine of the edit's step in CLIP space with the text's, as CLIP reads it",
    ),
    Column(
        "realism",
        "realism",
        2,
        0,
        "share that a linear discriminator of drawings and the generator's samples, which never saw an edit, takes for"
        " drawn: compare it with the same editor's unedited pictures",
    ),
    Column("realism_unedited", "of unedited", 2, 0, "the same of what the editor makes of people before it edits them"),
    Column("outside_psnr", "outside, dB", 1, 1, "PSNR to the input where the counterfactual does not differ from it"),
    Column("mask_iou", "mask IoU", 2, 1, "the editor's mask against where the counterfactual differs from the input"),
    Column("psnr_input", "PSNR to input, dB", 1, 0, "how far the edit moved from its input; the paper's protocol"),
    Column("identity_input", "identity to input", 2, 0, "cosine with the input, identity network"),
    Column("evaluations", "passes", 0, 0, "network evaluations per picture"),
    Column("people", "people", 0, 0, "test people whom at least one prompt concerns"),
)
FOUNDATIONS = (
    ("Oracle", ("oracle",), (("mean", "accuracy", 3), ("min", "weakest attribute", 3), ("chance", "chance", 3))),
    (
        "Second oracle, another architecture",
        ("oracle2",),
        (
            ("mean", "accuracy", 3),
            ("min", "weakest attribute", 3),
            ("largest_difference", "largest difference to the first, of any editor's share reached or kept", 3),
        ),
    ),
    (
        "Generator",
        ("generator",),
        (
            ("fid_oracle", "FID in the oracle's features", 2),
            ("fid_floor", "of one half of the renders to the other", 2),
            ("precision", "precision", 3),
            ("recall", "recall", 3),
            ("attribute_share_error", "largest relative error of a value's share", 2),
            ("told_apart", "told from renders by a linear discriminator, accuracy", 3),
        ),
    ),
    ("Identity network", ("identity",), (("auc", "verification, area under the curve", 3),)),
    (
        "CLIP",
        ("clip",),
        (
            ("zero_shot", "zero-shot accuracy", 3),
            ("zero_shot_min", "weakest attribute", 3),
            ("zero_shot_heldout", "in words kept out of training, as they are read", 3),
            ("zero_shot_literal", "in those words, read as they stand", 3),
            ("chance", "chance", 3),
            ("delta_cos_paired", "cos(image delta, own text delta)", 3),
            ("delta_cos_mismatched", "cos(image delta, another's)", 3),
            ("retrieval_raw", "image to text, top 1", 3),
            ("retrieval_delta", "image delta to text delta, top 1", 3),
            ("attribute_direction_cos", "cos(text delta, counterfactual step)", 3),
        ),
    ),
    (
        "Inversion",
        ("inversion",),
        (
            ("reached_inverted", "people whose codes were found: reached by DeltaEdit-G", 3),
            ("reached_sampled", "people made of codes: reached", 3),
            ("reached_gap", "the first less the second", 3),
        ),
    ),
    (
        "Delta Mapper",
        ("mapper",),
        (
            ("val_cos", "cosine, validation", 3),
            ("val_mse", "MSE, validation", 3),
            ("explained", "explained", 3),
            ("latent_explained", "explained, of the step to another's picture", 3),
            ("latent_mse", "led by another's picture: MSE of the s reached to theirs", 3),
            ("latent_mse_nothing", "without a step", 3),
            ("pixel_mse", "MSE, on [-1,1], of what is drawn to their picture (the paper: 0.17, units unstated)", 3),
            ("pixel_mse_nothing", "without a step", 3),
            ("pixel_mse_floor", "with their own s", 3),
        ),
    ),
    (
        "Diffusion",
        ("diffusion",),
        (
            ("style_matters", "attributes taken from another's style", 3),
            ("evaluations_per_edit", "network passes per edit", 0),
        ),
    ),
)
ALONE = "its codes alone, in W+"
GIVEN_BACK = (  # who gives unedited pictures back, and where in metrics.json (paper, table III)
    ("inversion, as people are edited", ("inversion",)),
    (ALONE, ("inversion", "codes")),
    ("inversion in s, by as many steps of descent (24 people)", ("inversion", "in_s")),
    ("the generator's own pictures (24), by their codes alone", ("inversion", "round_trip")),
    ("DDIM, the denoiser told the mean style", ("diffusion", "ddim_mean_style")),
    ("DDIM, told the picture's own style", ("diffusion", "ddim")),
    ("diffusion as people are edited", ("diffusion", "reconstruction")),
)
GIVEN_BACK_COLUMNS = (
    ("ssim", "SSIM", 3),
    ("mse", "MSE", 5),
    ("psnr", "PSNR, dB", 1),
    ("identity", "identity", 2),
    ("encoder_psnr", "encoder alone, dB", 1),
)


def write(domain: Domain, root: Path) -> Path:
    """Write reports/<domain>/index.html and return its path."""
    path = artefacts.Layout(domain, root).page
    files.write_bytes(path, page(domain, root).encode())
    return path


def page(domain: Domain, root: Path) -> str:
    """The page as HTML. Needs metrics, scores, edits and test pictures; shows curves and timings if there are any."""
    import jinja2

    layout = artefacts.Layout(domain, root)
    found = _json(layout.metrics)
    for row in found["editors"].values():
        for split in APART:
            if "reached" in row.get(split, {}):
                row[f"reached_{split}"] = row[split]["reached"]
    editors = sorted(found["editors"], key=_frame_order)
    settings, full = params.load_yaml(root), external_results.full(layout)
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    return environment.get_template("report.html.j2").render(
        domain=domain,
        editors=[_editor(name, found["editors"][name], i) for i, name in enumerate(editors)],
        columns=[c for c in EDITOR_COLUMNS if any(_measured(c.key, row) for row in found["editors"].values())],
        bests={column.key: _best(column, found["editors"]) for column in EDITOR_COLUMNS},
        notes=_notes(found["editors"]),
        tradeoff=charts.tradeoff(found["editors"], editors),
        story=summary.told(
            found, {prompt.text: prompt.split for prompt in domain.prompts}, domain.renderer is not None
        ),
        claims=paper_claims.table(found, full and full["metrics"]) if found.get("claims") else [],
        full=full,
        gpu=external_results.gpu(root),
        prompts=_prompts(found["editors"], editors, domain),
        foundations=_foundations(found),
        given_back=_given_back(found),
        given_back_columns=GIVEN_BACK_COLUMNS,
        detail_alone=ALONE,
        confirmed=_confirmed(found),
        attributes=_attributes(found),
        gallery=edit_grid.gallery(domain, layout, editors),
        figures=edit_grid.figures(layout),
        places=charts.places(layout.clip_map),
        curves=[curve for path in sorted(layout.curve("x").parent.glob("*.csv")) for curve in charts.curves(path)],
        chart=dag_figure.chart(params.read_mapping(root / "dvc.yaml")) if (root / "dvc.yaml").is_file() else None,
        settings=_flat(settings),
        networks=[_network(domain, name, root) for name in domain.networks],
        photographs=_photographs(layout.prepared),
        costs=_costs(layout),
        speed=_speed(root),
        trials=[found for path in sorted(layout.trials.glob("*.csv")) if (found := charts.trials(path))["rows"]],
    )


def _json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError(f"{path} is missing: {HINT}") from error
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read as JSON: {HINT}") from error


# ---------------------------------------------------------------- tables


def _frame_order(name: str) -> int:
    """The unedited input first, the counterfactual last, editors between, in the order of params.yaml."""
    return 2 * FRAMES.index(name) if name in FRAMES else 1


def _editor(name: str, found: Mapping[str, Any], index: int) -> dict[str, Any]:
    return {"name": name, "label": label(name), "frame": name in FRAMES, "color": index % charts.COLORS, "found": found}


def _measured(key: str, row: Mapping[str, Any]) -> bool:
    """Whether an editor's numbers have `key`, or it was at least tried."""
    return key in row and "note" not in row[key]


def _best(column: Column, found: Mapping[str, Any]) -> float | None:
    """The best value of a column among editors proper; None where none is better than another."""
    values = [row[column.key]["value"] for name, row in found.items() if name not in FRAMES and column.key in row]
    known = [value for value in values if value is not None]
    return max(known, key=lambda value: column.better * value) if known and column.better else None


def _notes(found: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(what is not in the table, why)"""
    reasons: dict[str, list[str]] = {}
    for column in EDITOR_COLUMNS:
        for note in dict.fromkeys(
            row[column.key]["note"] for row in found.values() if "note" in row.get(column.key, {})
        ):
            reasons.setdefault(note, []).append(column.title)
    return [(", ".join(titles), note) for note, titles in reasons.items()]


def _prompts(found: Mapping[str, Any], editors: Sequence[str], domain: Domain) -> dict[str, Any]:
    """One row per prompt; reached and kept of every editor proper."""
    proper = [name for name in editors if name not in FRAMES]
    measure = "reached" if any(_measured("reached", found[name]) for name in proper) else "clip_direction"
    rows = [
        {
            "text": prompt.text,
            "tag": TAGS.get(prompt.split),
            "people": max(
                found[name]["prompts"][prompt.text]["people"]["value"]
                for name in found
                if prompt.text in found[name]["prompts"]
            ),
            "cells": [found[name]["prompts"].get(prompt.text, {}) for name in proper],
        }
        for prompt in domain.prompts
        if any(prompt.text in found[name]["prompts"] for name in found)
    ]
    return {"editors": [label(name) for name in proper], "measure": measure, "rows": rows}


def _foundations(found: Mapping[str, Any]) -> list[dict[str, Any]]:
    tables = []
    for title, path, rows in FOUNDATIONS:
        node: Any = found
        for key in path:
            node = node.get(key, {})
        shown = [
            {"name": name, "leaf": node[key], "digits": digits}
            for key, name, digits in rows
            if node.get(key, {}).get("value") is not None or "note" in node.get(key, {})
        ]
        if shown:
            tables.append({"title": title, "rows": shown})
    return tables


def _given_back(found: Mapping[str, Any]) -> list[dict[str, Any]]:
    rows = []
    for title, path in GIVEN_BACK:
        node: Any = found
        for key in path:
            node = node.get(key, {})
        if node.get("psnr"):
            rows.append({"title": title, "found": node})
    return rows


def _attributes(found: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Per attribute: what the oracle and CLIP read of it."""
    oracle, clip = (found[network].get("attributes", {}) for network in ("oracle", "clip"))
    names = dict.fromkeys([*oracle, *clip])
    return [{"name": name.replace("_", " "), "oracle": oracle.get(name), "clip": clip.get(name)} for name in names]


def _confirmed(found: Mapping[str, Any]) -> dict[str, Any] | None:
    """Whether the second oracle's shares are within `WITHIN` of the first's; None where it was not asked."""
    leaf = found.get("oracle2", {}).get("largest_difference", {})
    if leaf.get("value") is None:
        return None
    return {"points": 100 * leaf["value"], "within": 100 * WITHIN, "holds": leaf["value"] <= WITHIN}


def _flat(node: Any, path: str = "") -> list[tuple[str, str]]:
    """Nested settings as (dotted name, value) rows."""
    if isinstance(node, Mapping):
        return [row for key, child in node.items() for row in _flat(child, f"{path}.{key}" if path else str(key))]
    return [(path, ", ".join(map(str, node)) if isinstance(node, list) else "default" if node is None else str(node))]


def _network(domain: Domain, name: str, root: Path) -> dict[str, Any]:
    weights = domain.weights(name)
    path = root / weights.path
    there = path.is_file()
    return {
        "name": name,
        "path": weights.path,
        "licence": weights.licence,
        "size": path.stat().st_size / 1e6 if there else None,
        "sha256": files.digest(path)[:12] if there else None,
    }


def _photographs(path: Path) -> dict[str, Any] | None:
    """What `prepare` tells of a source of photographs, with the first of the skipped ones; None for drawn pictures."""
    found = _json(path) if path.is_file() else {}
    if "skipped" not in found:
        return None
    return {**found, "skipped": found["skipped"][:SHOWN_SKIPPED], "skipped_count": len(found["skipped"])}


def _costs(layout: artefacts.Layout) -> list[dict[str, Any]]:
    """Seconds, with those of fitting apart, and peak memory of each stage's last run, in the order of the workflow."""
    rows = []
    for path in sorted(layout.timings.glob("*.json")):
        content = _json(path)
        seconds = {key: content.get(key) for key in ("seconds", "fit_seconds")}
        rows.append({"stage": path.stem, **seconds, "rss": content.get("peak_rss")})
    order = list(dag_figure.STAGES)
    return sorted(
        rows, key=lambda row: order.index(row["stage"].split("-")[0]) if row["stage"].split("-")[0] in order else 99
    )


def _speed(root: Path) -> dict[str, Any] | None:
    """What `make bench` wrote: machine and rows; None when it never ran."""
    path = root / "reports" / "bench.json"
    return _json(path) if path.is_file() else None
