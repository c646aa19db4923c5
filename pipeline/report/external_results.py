"""Results of other runs on the page: the evaluation at the paper's scale, times on a GPU, and `make bench`.

No stage writes these files, and DVC does not track them: `dvc repro -f -s report@DOMAIN` shows new ones. They are
committed in reports/<domain>/full/, reports/gpu/ and reports/bench.json, with the machine they were measured on.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.editors import label
from pipeline.runtime.errors import InputError
from pipeline.storage import artefacts

SHAPES = (  # title, path in ffhq_shapes.json, unit, its divisor, the paper's value
    ("DeltaEdit-G, an edit at 1024 px", "deltaedit_g.ours.median_ms", "ms", 1, "73 ms"),
    ("DeltaEdit-D at 256 px, as shipped: 28 passes", "deltaedit_d_shipped.whole.median_ms", "s", 1000, "14.6 s"),
    ("DeltaEdit-D at 256 px, as published: 200 passes", "deltaedit_d_ddim.whole.median_ms", "s", 1000, "14.6 s"),
    ("200,000 fakes rendered and embedded", "sample_cache.batch 32.projected_200000_images_h", "h", 1, None),
    ("mapper, 201,562 steps of 64", "mapper_float32.projected_201562_steps_min", "min", 1, None),
    *(
        (
            f"relevance, 6,048 channels on 100 images, by {method}",
            f"relevance_{key}.projected_all_channels_100_pictures_min",
            *("min", 1, None),
        )
        for key, method in (("reverse", "derivatives"), ("finite", "finite differences"))
    ),
)
COLUMNS = ("reached", "kept", "identity", "counterfactual_gain", "psnr", "images")


def full(layout: artefacts.DomainPaths) -> dict[str, Any] | None:
    """{metrics, rows: an editor's label and metrics, run: command and machine}; None without such a result."""
    metrics = read_json(layout.full)
    if metrics is None:
        return None
    editors = metrics["editors"].items()
    rows = [{"label": label(name), **{key: row.get(key) for key in COLUMNS}} for name, row in editors]
    return {"metrics": metrics, "rows": rows, "run": read_json(layout.full.with_name("run.json"))}


def gpu(root: Path) -> dict[str, Any] | None:
    """{device, torch, shapes, kernels: rows} of `python -m benchmarks ffhq` and `kernels`; None without either file."""
    folder = root / "reports" / "gpu"
    shapes, kernels = (read_json(folder / name) or {} for name in ("ffhq_shapes.json", "kernels.json"))
    either = shapes or kernels
    if not either:
        return None
    rows = []
    for title, path, unit, divisor, paper in SHAPES:
        if (value := _at(shapes.get("items"), path)) is not None:
            projected = "projected" in path  # from a part of the work, which the file states
            rows.append({"what": title, "value": value / divisor, "unit": unit, "projected": projected, "paper": paper})
    return {
        "device": either["device"]["name"],
        "torch": either["versions"]["torch"],
        "shapes": rows,
        "kernels": [row for name, item in kernels.get("items", {}).items() if (row := _kernel(name, item))],
    }


def speed(root: Path) -> dict[str, Any] | None:
    """Machine and rows of `make bench`; None without its file."""
    return read_json(root / "reports" / "bench.json")


def read_json(path: Path) -> Any:
    """Content of a file, or None without it. Raises InputError when it is damaged."""
    if not path.is_file():
        return None
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(
            f"{path} cannot be read as JSON: remove it, and restore it from git or by `dvc repro`"
        ) from error


def _kernel(name: str, item: Mapping[str, Any]) -> dict[str, Any] | None:
    """A row of kernels.json; float16 is left out."""
    parts = [part.strip().replace("_", " ") for part in name.split("|")]
    if len(parts) != 3 or "forward" not in item or parts[1] == "float16":
        return None
    row: dict[str, Any] = dict(zip(("case", "dtype", "layout"), parts))
    for direction in ("forward", "backward"):
        if times := item.get(direction):
            row[direction] = {
                "us": times["ours"]["gpu_us"],
                "share": times["ours"]["share"],
                "gain": times.get("ref_over_ours"),
            }
    return row


def _at(node: Any, path: str) -> float | None:
    for key in path.split("."):
        node = node.get(key) if isinstance(node, Mapping) else None
    return node
