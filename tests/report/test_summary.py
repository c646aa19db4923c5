"""The introduction states the numbers of metrics.json, and omits what was not measured."""

from __future__ import annotations

import finished_stages
import pytest

from pipeline.evaluation import bootstrap
from pipeline.report import summary

SPLITS = {prompt.text: prompt.split for prompt in finished_stages.PROMPTS}


def test_three_paragraphs_state_evaluation_results_and_reliability() -> None:
    numbers = finished_stages.numbers()
    numbers["claims"] = {"relevance_mask": {"kept": bootstrap.metric(0.2, 0.1, 0.3)}}
    text = dict(summary.paragraphs(numbers, SPLITS))
    assert list(text) == ["Evaluation", "Results", "Reliability"]
    assert text["Evaluation"].startswith(f"1 editor applied {len(finished_stages.PROMPTS)} prompts")
    assert "on 12 test images of portraits" in text["Evaluation"]
    assert "DeltaEdit-G reached the requested attribute in 44 % (43 to 45) of its edits" in text["Results"]
    assert "kept 88 % (86 to 88) of the other attributes" in text["Results"]
    assert "For prompts in words that no network was trained on, it reached 12 %." in text["Results"]
    assert "1 hold, 0 do not hold, 0 are undecided" in text["Reliability"] and "98.0 %" in text["Reliability"]


@pytest.mark.parametrize(
    ("psnr", "sentence"),
    [
        (20.0, "It is also the closest to the counterfactuals, at 20.0 dB PSNR (12 images)."),
        (5.0, "DeltaEdit-D is the closest to the counterfactuals, at 10.0 dB PSNR (7 images): it reached 50 %"),
    ],
)
def test_the_editor_closest_to_the_counterfactuals_is_named_once(psnr: float, sentence: str) -> None:
    numbers = finished_stages.numbers()
    numbers["editors"]["deltaedit_g"]["psnr"] = bootstrap.metric(psnr)
    numbers["editors"]["deltaedit_d"] = {
        **{name: bootstrap.metric(0.5) for name in ("reached", "kept")},
        **{"psnr": bootstrap.metric(10.0), "images": bootstrap.metric(7), "prompts": {}},
    }
    assert sentence in dict(summary.paragraphs(numbers, SPLITS))["Results"]


def test_prompts_of_several_attributes_are_counted_apart_from_new_words() -> None:
    numbers = finished_stages.numbers()
    numbers["editors"]["deltaedit_g"]["combined"] = {"reached": bootstrap.metric(0.321)}
    text = dict(summary.paragraphs(numbers, SPLITS | {"face with grey hair": "combined"}))
    assert "4 prompts, 1 of them in words that no network was trained on, and 1 that ask" in text["Evaluation"]
    assert "For prompts for several attributes, it reached 32 %." in text["Results"]


def test_photographs_have_no_counterfactual_and_no_results_paragraph() -> None:
    row = {"clip_direction": bootstrap.metric(0.3), "images": bootstrap.metric(5), "prompts": {"face": {}}}
    numbers = {"editors": {"deltaedit_g": row}, "oracle": {}}
    assert [heading for heading, _ in summary.paragraphs(numbers, {"face": "seen"})] == ["Evaluation"]


def test_without_editors_there_is_no_introduction() -> None:
    assert summary.paragraphs({"editors": {}}, {}) == []
