"""The first paragraphs say what the numbers say, and nothing about what was not measured."""

from __future__ import annotations

import finished_stages
import pytest

from pipeline.evaluation import metrics
from pipeline.report import summary

SPLITS = {prompt.text: prompt.split for prompt in finished_stages.PROMPTS}


def test_three_paragraphs_tell_what_was_asked_what_came_out_and_how_sure_that_is() -> None:
    found = finished_stages.numbers()
    found["claims"] = {"relevance_mask": {"kept": metrics.leaf(0.2, 0.1, 0.3)}}
    told = dict(summary.told(found, SPLITS))
    assert list(told) == ["What was asked", "What came out", "How sure that is"]
    count = len(finished_stages.PROMPTS)
    assert (
        told["What was asked"].startswith(f"1 editor followed {count} sentences")
        and "on 12 pictures of people" in told["What was asked"]
    )
    assert (
        "DeltaEdit-G did what was asked in 44 % (43 to 45) of its edits, and left 88 % (86 to 88)"
        in told["What came out"]
    )
    assert "In words that no network was taught it reached 12 %." in told["What came out"]
    assert "1 hold, 0 do not hold, 0 undecided" in told["How sure that is"]
    assert "98.0 %" in told["How sure that is"]


@pytest.mark.parametrize(
    ("psnr", "sentence"),
    [
        (20.0, "It also comes nearest to the right pictures, at 20.0 dB (12 people)."),
        (5.0, "Nearest to the right pictures comes DeltaEdit-D, at 10.0 dB (7 people): it did what was asked in 50 %"),
    ],
)
def test_who_comes_nearest_to_the_right_pictures_is_named_once(psnr: float, sentence: str) -> None:
    found = finished_stages.numbers()
    found["editors"]["deltaedit_g"]["psnr"] = metrics.leaf(psnr)
    found["editors"]["deltaedit_d"] = {
        **{name: metrics.leaf(0.5) for name in ("reached", "kept")},
        **{"psnr": metrics.leaf(10.0), "people": metrics.leaf(7), "prompts": {}},
    }
    assert sentence in dict(summary.told(found, SPLITS))["What came out"]


def test_several_things_at_once_are_no_new_words() -> None:
    found = finished_stages.numbers()
    found["editors"]["deltaedit_g"]["combined"] = {"reached": metrics.leaf(0.321)}
    told = dict(summary.told(found, SPLITS | {"face with grey hair": "combined"}))
    assert "4 sentences, 1 of them in words that no network was taught, and 1 that ask" in told["What was asked"]
    assert "Asked for several things at once, it reached all of them in 32 %." in told["What came out"]
    assert "new words" not in told["What was asked"]


def test_photographs_have_no_right_answer_and_none_is_told() -> None:
    row = {"clip_direction": metrics.leaf(0.3), "people": metrics.leaf(5), "prompts": {"face": {}}}
    found = {"editors": {"deltaedit_g": row}, "oracle": {}}
    assert [heading for heading, _ in summary.told(found, {"face": "seen"})] == ["What was asked"]


def test_without_editors_there_is_no_story() -> None:
    assert summary.told({"editors": {}}, {}) == []
