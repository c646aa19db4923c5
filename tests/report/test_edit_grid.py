"""The grid, from artefacts made by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from finished_stages import PROMPTS, SIZE, colour, test_people, write_edits

from pipeline.evaluation import counterfactuals
from pipeline.report import edit_grid
from pipeline.storage import images


def test_prompts_of_different_attributes_come_first() -> None:
    ids, texts = edit_grid.choose(test_people(), PROMPTS, people=3, columns=2)
    assert texts == [PROMPTS[0].text, PROMPTS[1].text]
    assert len(ids) == 3 and ids == sorted(ids)


def test_people_are_those_whom_most_prompts_concern() -> None:
    test = test_people()
    ids, texts = edit_grid.choose(test, PROMPTS[:2], people=4, columns=2)
    known = {prompt.text: prompt for prompt in PROMPTS}
    count = {i: len(counterfactuals.cases(test, [(i, text) for text in texts], known)) for i in test.ids}
    assert min(count[i] for i in ids) >= max((count[i] for i in test.ids if i not in ids), default=0)


def test_only_people_whom_every_editor_edited_are_shown(tmp_path: Path) -> None:
    test = test_people()
    few = test.ids[3:6]
    write_edits(tmp_path / "a", test)
    write_edits(tmp_path / "b", test, few)
    shown = edit_grid.gather(test, PROMPTS, {"a": tmp_path / "a", "b": tmp_path / "b"}, 8, 3)
    assert shown.ids == few
    assert set(shown.edits["b"]) == {(i, text) for i in few for text in shown.prompts}


def test_the_grid_has_the_edit_and_the_truth_side_by_side(tmp_path: Path) -> None:
    test = test_people()
    assert test.people is not None
    write_edits(tmp_path / "g", test)
    shown = edit_grid.gather(test, PROMPTS[:2], {"g": tmp_path / "g"}, 3, 2)
    sheet = np.asarray(edit_grid.draw(shown, "g", "DeltaEdit-G"))
    tile, row_id = 128, shown.ids[0]
    top = sheet.shape[0] - 14 - 3 * tile - 2 * 3
    left = 14 + tile + 14
    edit, beside = sheet[top : top + tile, left : left + tile], sheet[top : top + tile, left + tile + 3 :][:, :tile]
    assert tuple(edit[64, 64]) == tuple(images.to_uint8(colour(row_id, 0))[0, 0])
    goal = shown.truth.get((row_id, PROMPTS[0].text))
    expected = np.full((SIZE, SIZE, 3), 236.0) if goal is None else goal.astype(float)
    assert abs(beside.reshape(SIZE, 8, SIZE, 8, 3).mean((1, 3)) - expected).mean() < 12
    assert (sheet[: top - 4] < 128).any()  # words above


def test_saving_the_grid_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    test = test_people()
    write_edits(tmp_path / "g", test)
    shown = edit_grid.gather(test, PROMPTS, {"g": tmp_path / "g"}, 2, 2)
    for name in ("one.png", "two.png"):
        edit_grid.save(tmp_path / name, edit_grid.draw(shown, "g", "DeltaEdit-G"))
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "two.png").read_bytes()


def test_a_long_prompt_stays_within_two_lines() -> None:
    lines = edit_grid._wrapped("a face with " + "very " * 40 + "long hair", lambda line: len(line) <= 30)
    assert len(lines) == 2 and all(len(line) <= 30 for line in lines) and lines[1].endswith("...")
    assert edit_grid._wrapped("x" * 100, lambda line: len(line) <= 30)[0].endswith("...")


@pytest.mark.parametrize(
    ("name", "text"),
    [("deltaedit_g", "DeltaEdit-G"), ("styleclip_gd", "StyleCLIP-GD"), ("counterfactual", "counterfactual")],
)
def test_editors_are_called_as_in_print(name: str, text: str) -> None:
    assert edit_grid.label(name) == text
