"""Results of other runs: read from the committed files, absent without them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import finished_stages
import pytest

from pipeline.evaluation import bootstrap, paper_claims
from pipeline.report import external_results
from pipeline.runtime.errors import InputError
from pipeline.storage import artefacts

GPU = {
    "device": {"name": "A GPU"},
    "versions": {"torch": "9.9"},
    "items": {
        "deltaedit_g": {"ours": {"median_ms": 18.2}},
        "deltaedit_d_shipped": {"whole": {"median_ms": 812.0}},
        "relevance_reverse": {"error": "out of memory"},
    },
}
KERNELS = {
    **GPU,
    "items": {
        "copy": {"bytes_per_s": 4e12},
        "bias_act 64 px | float32 | planes": {
            "forward": {"ours": {"gpu_us": 50.0, "share": 0.3}, "ref_over_ours": 1.5},
            "backward": None,
        },
        "bias_act 64 px | float16 | planes": {"forward": {"ours": {"gpu_us": 50.0, "share": 0.3}}},
        "bias_act 32 px | float32 | planes": {"error": "out of memory"},
    },
}


def put(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def test_without_files_there_are_no_results(tmp_path: Path) -> None:
    assert external_results.full(artefacts.DomainPaths("portraits", tmp_path)) is None
    assert external_results.gpu(tmp_path) is None and external_results.speed(tmp_path) is None


def test_full_scale_results_come_with_the_machine_they_ran_on(tmp_path: Path) -> None:
    layout = artefacts.DomainPaths("portraits", tmp_path)
    put(layout.full, finished_stages.numbers())
    put(layout.full.with_name("run.json"), {"device": {"name": "A GPU"}, "command": "dvc"})
    results = external_results.full(layout)
    assert results is not None and results["run"]["command"] == "dvc"
    first = next(row for row in results["rows"] if row["label"] == "DeltaEdit-G")
    assert first["reached"]["value"] == 0.444 and first["psnr"] is None


def test_gpu_times_are_those_of_the_files_without_failed_items(tmp_path: Path) -> None:
    put(tmp_path / "reports/gpu/ffhq_shapes.json", GPU)
    put(tmp_path / "reports/gpu/kernels.json", KERNELS)
    results = external_results.gpu(tmp_path)
    assert results is not None and results["device"] == "A GPU"
    assert [(row["value"], row["unit"]) for row in results["shapes"]] == [(18.2, "ms"), (0.812, "s")]
    (row,) = results["kernels"]
    assert row["forward"] == {"us": 50.0, "share": 0.3, "gain": 1.5} and "backward" not in row


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "reports/gpu").mkdir(parents=True)
    (tmp_path / "reports/gpu/kernels.json").write_text("{")
    with pytest.raises(InputError, match=r"kernels.json cannot be read as JSON"):
        external_results.gpu(tmp_path)


def test_every_published_shape_is_in_the_file_that_was_committed() -> None:
    root = Path(__file__).resolve().parents[2]
    results = external_results.gpu(root)
    assert results is not None and [row["what"] for row in results["shapes"]] == [
        shape[0] for shape in external_results.SHAPES
    ]


def test_a_claim_shows_what_either_scale_tested() -> None:
    leaf, less = bootstrap.metric(0.2, 0.1, 0.3), bootstrap.metric(-0.2, -0.3, -0.1)
    default_run = {"editors": {}, "claims": {"relevance_mask": {"kept": leaf}}}
    full_run = {"claims": {"relevance_mask": {"kept": less}, "against_stylemc": {"reached": leaf}}}
    rows = {row["claim"].name: row for row in paper_claims.table(default_run, full_run)}
    (kept,) = rows["relevance_mask"]["rows"]
    assert (kept["verdict"], kept["full_verdict"]) == (paper_claims.HOLDS, paper_claims.FAILS)
    (reached,) = rows["against_stylemc"]["rows"]
    assert (reached["verdict"], reached["full_verdict"]) == (None, paper_claims.HOLDS)
    assert "did not run" in rows["against_stylemc"]["note"] and rows["relevance_mask"]["note"] is None
    assert rows["style_space"]["rows"] == []
