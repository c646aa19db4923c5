"""Numbers become points of charts: the area under a curve, and which trials a line joins."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.report import charts


def test_the_mean_height_is_the_area_over_the_range_that_all_curves_share() -> None:
    curves = {"flat": [(0.0, 2.0), (4.0, 2.0)], "slope": [(3.0, 3.0), (1.0, 1.0)], "point": [(2.0, 9.0)]}
    assert charts.mean_heights(curves) == {"flat": pytest.approx(2), "slope": pytest.approx(2)}
    assert charts.mean_heights({"slope": [(0.0, 0.0), (1.0, 1.0)]})["slope"] == pytest.approx(0.5)


def test_editors_lie_within_axes_that_hold_their_intervals_and_names_stand_in_rows_of_their_own() -> None:
    def editor(kept: float, reached: float) -> dict[str, dict[str, float]]:
        return {
            "kept": {"value": kept, "low": kept - 0.01, "high": kept + 0.01},
            "reached": {"value": reached, "low": reached, "high": reached},
        }

    found = {"low": editor(0.92, 0.71), "high": editor(0.92, 0.79), "identity_editor": editor(0.99, 0.0)}
    drawn = charts.tradeoff(found, list(found))
    assert drawn is not None and drawn["across"] == [0.9, 0.95] and drawn["up"] == [0.7, 0.75, 0.8]
    low, high = drawn["points"]  # the frames would only squeeze them
    assert (low["x"], low["y"]) == (pytest.approx(0.4), pytest.approx(0.9)) and high["y"] < low["y"]
    assert low["whiskers"][:2] == [pytest.approx(0.2), pytest.approx(0.6)]
    assert (high["slot"], low["slot"]) == (0, 1)
    assert charts.tradeoff({"identity_editor": editor(0.99, 0.0)}, ["identity_editor"]) is None


def test_curves_with_nothing_in_common_have_no_heights() -> None:
    assert charts.mean_heights({"left": [(0.0, 1.0), (1.0, 1.0)], "right": [(2.0, 1.0), (3.0, 1.0)]}) == {}
    assert charts.mean_heights({"point": [(0.0, 1.0)]}) == {}


def test_a_curve_that_turns_back_has_no_area_under_it() -> None:
    assert charts.mean_heights({"fold": [(0.0, 0.0), (2.0, 1.0), (1.0, 5.0)]}) == {}


def test_lines_of_several_editors_go_along_what_each_was_varied_in(tmp_path: Path) -> None:
    head = "editor,people,style,strength,beta," + ",".join(charts.MEASURED)
    scores = "0.5,0.9,20,0.1,0.2,0,0.1,0.01"
    rows = [f"deltaedit_g,8,painted,{s},,{scores}" for s in (2, 1)] + [
        f"styleclip_gd,8,painted,1,{b},{scores}" for b in (1, 2)
    ]
    (tmp_path / "both.csv").write_text("\n".join([head, *rows, "deltaedit_g,8,painted,3,,half a row"]))
    table = charts.trials(tmp_path / "both.csv")
    assert table["varied"] == ["editor", "strength", "beta"] and len(table["rows"]) == 4
    assert [chart["x_title"] for chart in table["charts"]] == ["strength"]  # nothing else differs within a line
    names = [line["name"] for line in table["charts"][0]["lines"]]
    assert sorted(names) == ["DeltaEdit-G", "StyleCLIP-GD"]


def lines_of(path: Path, columns: str, rows: list[str]) -> dict[str, dict[str, list[float]]]:
    """The charts of a table by what lies across: the places across of every line by name."""
    path.write_text("\n".join([f"editor,people,style,{columns},{','.join(charts.MEASURED)}", *rows]) + "\n")
    found = charts.trials(path)["charts"]
    return {c["x_title"]: {line["name"]: [x for x, _ in line["points"]] for line in c["lines"]} for c in found}


@pytest.mark.parametrize("shares", [(0.5, 0.8), (0.5, 0.8, ""), (0.5, 0.6, 0.7, 0.8)])
def test_a_line_goes_along_what_lies_across_and_other_settings_name_it(tmp_path: Path, shares: tuple) -> None:
    rows = [f"deltaedit_g,8,painted,{s},{share},{s / 4},.9,20,.1,.4,1,0,0" for share in shares for s in (1, 2, 3)]
    lines = lines_of(tmp_path / "grid.csv", "strength,share", rows)["strength"]
    assert set(lines) == {f"DeltaEdit-G share {share or 'null'}" for share in shares}
    assert all(points == [0, 160, 320] for points in lines.values())


def test_what_follows_from_the_number_along_a_line_does_not_name_it(tmp_path: Path) -> None:
    rows = [f"deltaedit_g,8,painted,{s},{s / 10},{s / 4},.9,20,.1,.4,1,0,0" for s in (3, 1, 2)]
    assert lines_of(tmp_path / "both.csv", "strength,share", rows) == {
        "strength": {"DeltaEdit-G": [0, 160, 320]},
    }


def test_of_several_numbers_the_one_of_most_values_makes_the_line(tmp_path: Path) -> None:
    rows = [
        f"deltaedit_g,8,painted,{within},{share},{share / 4},{share / 2},20,.1,.4,1,0,0"
        for within in (2, 3)
        for share in (0.5, 0.75, 1)
    ]
    lines = lines_of(tmp_path / "kept.csv", "within,share", rows)["kept"]
    assert lines == {"DeltaEdit-G within 2": [0, 160, 320], "DeltaEdit-G within 3": [0, 160, 320]}


def test_an_empty_table_has_no_charts(tmp_path: Path) -> None:
    (tmp_path / "none.csv").write_text("editor,people,reached\ndeltaedit_g,8,0.5\n")  # of another version
    assert charts.trials(tmp_path / "none.csv")["charts"] == []
