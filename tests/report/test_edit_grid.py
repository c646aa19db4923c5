"""The grid of edits, from artefacts with known colours."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
from finished_stages import PROMPTS, SIZE, colour, test_people, write_edits

from pipeline.evaluation import counterfactuals
from pipeline.report import edit_grid
from pipeline.storage import images


def test_prompts_of_different_attributes_come_first() -> None:
    ids, texts = edit_grid.choose(test_people(), PROMPTS, rows=3, columns=2)
    assert texts == [PROMPTS[0].text, PROMPTS[1].text]
    assert len(ids) == 3 and ids == sorted(ids)


def test_images_are_those_to_which_most_prompts_apply() -> None:
    test = test_people()
    ids, texts = edit_grid.choose(test, PROMPTS[:2], rows=4, columns=2)
    prompts_by_text = {prompt.text: prompt for prompt in PROMPTS}
    count = {i: len(counterfactuals.cases(test, [(i, text) for text in texts], prompts_by_text)) for i in test.ids}
    assert min(count[i] for i in ids) >= max((count[i] for i in test.ids if i not in ids), default=0)


def test_only_images_that_every_editor_edited_are_shown(tmp_path: Path) -> None:
    test = test_people()
    few = test.ids[3:6]
    write_edits(tmp_path / "a", test)
    write_edits(tmp_path / "b", test, few)
    grid = edit_grid.gather(test, PROMPTS, {"a": tmp_path / "a", "b": tmp_path / "b"}, 8, 3)
    assert grid.ids == few
    assert set(grid.edits["b"]) == {(i, text) for i in few for text in grid.prompts}


def test_the_grid_has_the_edit_and_the_counterfactual_side_by_side(tmp_path: Path) -> None:
    test = test_people()
    assert test.people is not None
    write_edits(tmp_path / "g", test)
    grid = edit_grid.gather(test, PROMPTS[:2], {"g": tmp_path / "g"}, 3, 2)
    sheet = np.asarray(edit_grid.draw(grid, "g"))
    tile, row_id = 128, grid.ids[0]
    top = sheet.shape[0] - 14 - 3 * tile - 2 * 3
    left = 14 + tile + 14
    edit, beside = sheet[top : top + tile, left : left + tile], sheet[top : top + tile, left + tile + 3 :][:, :tile]
    assert tuple(edit[64, 64]) == tuple(images.to_uint8(colour(row_id, 0))[0, 0])
    goal = grid.counterfactuals.get((row_id, PROMPTS[0].text))
    expected = np.full((SIZE, SIZE, 3), 236.0) if goal is None else goal.astype(float)
    assert abs(beside.reshape(SIZE, 8, SIZE, 8, 3).mean((1, 3)) - expected).mean() < 12
    assert (sheet[: top - 4] < 128).any()  # words above


def test_saving_the_grid_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    test = test_people()
    write_edits(tmp_path / "g", test)
    grid = edit_grid.gather(test, PROMPTS, {"g": tmp_path / "g"}, 2, 2)
    for name in ("one.png", "two.png"):
        edit_grid.save(tmp_path / name, edit_grid.draw(grid, "g"))
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "two.png").read_bytes()


def test_a_long_prompt_fills_two_lines_at_most_and_keeps_the_size(tmp_path: Path) -> None:
    test = test_people()
    write_edits(tmp_path / "g", test)
    grid = edit_grid.gather(test, PROMPTS[:1], {"g": tmp_path / "g"}, 1, 1)
    long = "a face with " + "very " * 40 + "long hair"
    edits = {"g": {(row_id, long): pixels for (row_id, _), pixels in grid.edits["g"].items()}}
    sheet = edit_grid.draw(replace(grid, prompts=(long,), counterfactuals={}, edits=edits), "g")
    head = np.asarray(sheet)[: sheet.height - 14 - 128]
    assert (head[:14] == 255).all() and (head[14:] < 128).any()


def test_a_difference_is_white_where_nothing_changed_and_black_where_a_channel_changed_fully() -> None:
    before, after = np.zeros((2, 2, 3), np.uint8), np.zeros((2, 2, 3), np.uint8)
    after[0, 0, 1], after[0, 1] = 255, 128
    assert edit_grid.difference(after, before).tolist() == [[0, 119], [255, 255]]
    assert edit_grid.difference(before, after).tolist() == [[0, 119], [255, 255]]
