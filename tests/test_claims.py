"""Claims are decided by paired differences, and say so when they are not decided."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest

from pipeline import claims, metrics
from pipeline.editors import names

PEOPLE, PROMPTS = 40, ("taught", "held out")
DRAWS = metrics.Draws(200, 0)


def scores(**editors: float) -> pl.DataFrame:
    """Every editor's `kept` and `reached`: what is peculiar to a person, and the editor's own share."""
    person = np.random.default_rng(0).normal(size=(PEOPLE, len(PROMPTS)))
    rows = [
        {"editor": name, "id": row, "prompt": prompt, "kept": person[row, j] + share, "reached": person[row, j] - share}
        for name, share in editors.items()
        for row in range(PEOPLE)
        for j, prompt in enumerate(PROMPTS)
    ]
    return pl.DataFrame(rows)


def test_a_difference_is_of_the_same_cases_so_that_people_cancel() -> None:
    frame = scores(deltaedit_gr=0.2, deltaedit_g=0.1)
    leaf = claims.paired(frame, "deltaedit_gr", "deltaedit_g", "kept", DRAWS)
    assert leaf == {"value": pytest.approx(0.1), "low": pytest.approx(0.1), "high": pytest.approx(0.1)}
    fewer = frame.filter((pl.col("editor") == "deltaedit_g") | (pl.col("id") < 3))  # the dear one edits fewer people
    assert claims.paired(fewer, "deltaedit_gr", "deltaedit_g", "kept", DRAWS)["value"] == pytest.approx(0.1)


def test_one_claim_may_hold_by_one_measure_and_fail_by_another() -> None:
    differences = claims.tested({}, scores(deltaedit_gr=0.2, deltaedit_g=0.1), {"taught"}, DRAWS)
    assert set(differences) == {"agreement"}  # the only claim with both sides there
    verdicts = {name: claims.verdict(leaf) for name, leaf in differences["agreement"].items()}
    assert verdicts == {"kept": claims.HOLDS, "reached": claims.FAILS}


def test_a_claim_of_new_words_is_decided_by_them_alone() -> None:
    frame = scores(deltaedit_g=0.0, identity_editor=0.0).with_columns(
        reached=pl.when((pl.col("prompt") == "held out") & (pl.col("editor") == "deltaedit_g")).then(1.0).otherwise(0.0)
    )
    assert claims.tested({}, frame, {"taught"}, DRAWS)["new_words"]["reached"]["value"] == 1
    assert claims.tested({}, frame, set(PROMPTS), DRAWS)["new_words"]["reached"]["value"] is None


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [(0.1, 0.3, "holds"), (-0.3, -0.1, "does not hold"), (-0.1, 0.3, "undecided"), (None, None, "undecided")],
)
def test_an_interval_decides(low: float | None, high: float | None, verdict: str) -> None:
    assert claims.verdict(metrics.leaf(0.1, low, high)) == verdict


def test_two_numbers_without_common_cases_are_apart_when_their_intervals_are() -> None:
    found = {"clip": {"delta_cos_paired": metrics.leaf(0.4, 0.3, 0.5), "delta_cos_mismatched": metrics.leaf(0.1)}}
    leaf = claims.tested(found, pl.DataFrame(), set(), DRAWS)["deltas_aligned"]["difference"]
    assert leaf == {"value": pytest.approx(0.3), "low": pytest.approx(0.2), "high": pytest.approx(0.4)}


def test_the_table_names_what_did_not_run() -> None:
    table = {row["claim"].name: row for row in claims.table({"editors": {"deltaedit_g": {}}})}
    assert len(table) == len(claims.CLAIMS)
    assert table["delta_condition"]["note"] == "straightforward did not run"
    assert table["deltas_aligned"]["note"] == "not computed"


def test_claims_name_editors_that_there_are() -> None:
    sides = {side for claim in claims.CLAIMS if claim.measures for side in (claim.better, claim.worse)}
    assert sides <= set(names())
