"""Claims are decided by the intervals of paired differences."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest

from pipeline.editors import names
from pipeline.evaluation import bootstrap, paper_claims

IMAGES, PROMPTS = 40, ("seen words", "new words")
SPLITS = {"seen words": "seen", "new words": "heldout"}
BOOTSTRAP = bootstrap.Bootstrap(200, 0)


def scores(**editors: float) -> pl.DataFrame:
    """`kept` and `reached` of each editor: a number of the image, with the editor's own number added or subtracted."""
    person = np.random.default_rng(0).normal(size=(IMAGES, len(PROMPTS)))
    rows = [
        {"editor": name, "id": row, "prompt": prompt, "kept": person[row, j] + share, "reached": person[row, j] - share}
        for name, share in editors.items()
        for row in range(IMAGES)
        for j, prompt in enumerate(PROMPTS)
    ]
    return pl.DataFrame(rows)


def test_differences_are_of_the_same_cases() -> None:
    frame = scores(deltaedit_gr=0.2, deltaedit_g=0.1)
    leaf = paper_claims.paired(frame, "deltaedit_gr", "deltaedit_g", "kept", BOOTSTRAP)
    assert leaf == {"value": pytest.approx(0.1), "low": pytest.approx(0.1), "high": pytest.approx(0.1)}
    fewer = frame.filter((pl.col("editor") == "deltaedit_g") | (pl.col("id") < 3))  # the slower editor has fewer images
    assert paper_claims.paired(fewer, "deltaedit_gr", "deltaedit_g", "kept", BOOTSTRAP)["value"] == pytest.approx(0.1)


def test_a_claim_may_hold_by_one_measure_and_fail_by_another() -> None:
    frame = scores(deltaedit_gr=0.2, deltaedit_g=0.1).rename({"reached": "psnr"})
    differences = paper_claims.differences({}, frame, SPLITS, BOOTSTRAP)
    assert set(differences) == {"measured_effect"}  # the only claim whose two editors ran
    verdicts = {name: paper_claims.verdict(leaf) for name, leaf in differences["measured_effect"].items()}
    assert verdicts == {"kept": paper_claims.HOLDS, "psnr": paper_claims.FAILS}


def test_a_claim_about_new_words_is_decided_by_those_prompts_alone() -> None:
    frame = scores(deltaedit_g=0.0, identity_editor=0.0).with_columns(
        reached=pl.when((pl.col("prompt") == "new words") & (pl.col("editor") == "deltaedit_g"))
        .then(1.0)
        .otherwise(0.0)
    )
    assert paper_claims.differences({}, frame, SPLITS, BOOTSTRAP)["new_words"]["reached"]["value"] == 1
    assert "new_words" not in paper_claims.differences(
        {}, frame, dict.fromkeys(PROMPTS, "seen"), BOOTSTRAP
    )  # no prompt of that split


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [(0.1, 0.3, "holds"), (-0.3, -0.1, "does not hold"), (-0.1, 0.3, "undecided"), (None, None, "undecided")],
)
def test_the_interval_decides(low: float | None, high: float | None, verdict: str) -> None:
    assert paper_claims.verdict(bootstrap.metric(0.1, low, high)) == verdict


def test_a_difference_of_another_measure_is_copied() -> None:
    numbers = {
        "clip": {"delta_cos_gap": bootstrap.metric(0.3, 0.2, 0.4)},
        "diffusion": {"ddim": {"psnr": bootstrap.absent("-")}},
    }
    assert paper_claims.differences(numbers, pl.DataFrame(), {}, BOOTSTRAP) == {
        "deltas_aligned": {"difference": bootstrap.metric(0.3, 0.2, 0.4)}
    }


def test_the_table_names_editors_that_did_not_run() -> None:
    table = {row["claim"].name: row for row in paper_claims.table({"editors": {"deltaedit_g": {}}})}
    assert len(table) == len(paper_claims.CLAIMS)
    assert table["measured_effect"]["note"] == "DeltaEdit-GR did not run"
    assert table["deltas_aligned"]["note"] == "not computed"


def test_claims_name_existing_editors() -> None:
    sides = {side for claim in paper_claims.CLAIMS if claim.measures for side in (claim.better, claim.worse)}
    assert all(not claim.worse for claim in paper_claims.CLAIMS if not claim.measures)
    assert sides <= set(names())
