"""What the report shows beside this run: the same evaluation at the paper's scale, and a GPU's times.

No stage makes these files, nor does DVC watch them: `dvc repro -f -s report@DOMAIN`. They are committed in
reports/<domain>/full/ and reports/gpu/, with the command and the machine they were measured by.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.report.edit_grid import label
from pipeline.runtime.errors import InputError
from pipeline.storage import artefacts

SHAPES = (  # what, where in ffhq_shapes.json, unit, how many of it in the file make one, the paper's
    ("DeltaEdit-G, an edit at 1024 px", "deltaedit_g.ours.median_ms", "ms", 1, "73 ms"),
    ("DeltaEdit-D at 256 px, as shipped: 28 passes", "deltaedit_d_shipped.whole.median_ms", "s", 1000, "14.6 s"),
    ("DeltaEdit-D at 256 px, as published: 200 passes", "deltaedit_d_ddim.whole.median_ms", "s", 1000, "14.6 s"),
    ("200,000 fakes rendered and embedded", "sample_cache.batch 32.projected_200000_images_h", "h", 1, None),
    ("mapper, 201,562 steps of 64", "mapper_float32.projected_201562_steps_min", "min", 1, None),
    (
        "relevance, 6,048 channels on 100 pictures, by derivatives",
        "relevance_reverse.projected_all_channels_100_pictures_min",
        "min",
        1,
        None,
    ),
    (
        "relevance, 6,048 channels on 100 pictures, by finite differences",
        "relevance_finite.projected_all_channels_100_pictures_min",
        "min",
        1,
        None,
    ),
)
COLUMNS = ("reached", "kept", "identity", "counterfactual_gain", "psnr", "people")


def full(layout: artefacts.Layout) -> dict[str, Any] | None:
    """{metrics, rows: an editor's label and leaves, run: where and when it ran}; None where there is no such result."""
    found = _read(layout.full)
    if found is None:
        return None
    rows = [{"label": label(name), **{key: row.get(key) for key in COLUMNS}} for name, row in found["editors"].items()]
    return {"metrics": found, "rows": rows, "run": _read(layout.full.with_name("run.json"))}


def gpu(root: Path) -> dict[str, Any] | None:
    """{device, torch, shapes, kernels}: rows of what was measured on a GPU; None where nothing was."""
    folder = root / "reports" / "gpu"
    shapes, kernels = (_read(folder / name) for name in ("ffhq_shapes.json", "kernels.json"))
    told = shapes or kernels
    if told is None:
        return None
    rows = []
    for what, path, unit, per, paper in SHAPES:
        if (value := _at((shapes or {}).get("items", {}), path)) is not None:
            projected = "projected" in path  # from a part of the work: the file says which
            rows.append({"what": what, "value": value / per, "unit": unit, "projected": projected, "paper": paper})
    return {
        "device": told["device"]["name"],
        "torch": told["versions"]["torch"],
        "shapes": rows,
        "kernels": [row for name, item in (kernels or {}).get("items", {}).items() if (row := _kernel(name, item))],
    }


def _kernel(name: str, item: Mapping[str, Any]) -> dict[str, Any] | None:
    """A row of kernels.json: of every case the two usual types."""
    parts = [part.strip() for part in name.split("|")]
    if len(parts) != 3 or "forward" not in item or parts[1] == "float16":
        return None
    passes = {way: item[way] for way in ("forward", "backward") if "ours" in (item.get(way) or ())}
    cells = {
        way: {"us": found["ours"]["gpu_us"], "share": found["ours"]["share"], "gain": found.get("ref_over_ours")}
        for way, found in passes.items()
    }
    return {"case": parts[0].replace("_", " "), "dtype": parts[1], "layout": parts[2].replace("_", " "), **cells}


def _at(node: Any, path: str) -> float | None:
    for key in path.split("."):
        node = node.get(key) if isinstance(node, Mapping) else None
    return node


def _read(path: Path) -> Any:
    if not path.is_file():
        return None
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read as JSON: remove it, or take it from git again") from error
