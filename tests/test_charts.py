"""Numbers become points of charts: the area under a curve, and which trials a line joins."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline import charts


def test_the_mean_height_is_the_area_over_the_range_that_all_curves_share() -> None:
    curves = {"flat": [(0.0, 2.0), (4.0, 2.0)], "slope": [(3.0, 3.0), (1.0, 1.0)], "point": [(2.0, 9.0)]}
    assert charts.mean_heights(curves) == {"flat": pytest.approx(2), "slope": pytest.approx(2)}
    assert charts.mean_heights({"slope": [(0.0, 0.0), (1.0, 1.0)]})["slope"] == pytest.approx(0.5)


def test_curves_with_nothing_in_common_have_no_heights() -> None:
    assert charts.mean_heights({"left": [(0.0, 1.0), (1.0, 1.0)], "right": [(2.0, 1.0), (3.0, 1.0)]}) == {}
    assert charts.mean_heights({"point": [(0.0, 1.0)]}) == {}


def test_a_table_of_several_editors_joins_what_differs_in_numbers_alone(tmp_path: Path) -> None:
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


def test_an_empty_table_has_no_charts(tmp_path: Path) -> None:
    (tmp_path / "none.csv").write_text("editor,people\n")
    assert charts.trials(tmp_path / "none.csv")["charts"] == []
