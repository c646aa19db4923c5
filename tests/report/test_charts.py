"""Charts show the given numbers, in the same bytes every time; trials are grouped into lines."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import pytest

from pipeline.evaluation import TRIAL_METRICS
from pipeline.report import charts


def decoded(uri: str) -> str:
    """The SVG of a data URI."""
    return base64.b64decode(uri.removeprefix("data:image/svg+xml;base64,")).decode()


def test_the_mean_height_is_the_area_over_the_range_that_all_curves_cover() -> None:
    curves = {"flat": [(0.0, 2.0), (4.0, 2.0)], "slope": [(3.0, 3.0), (1.0, 1.0)], "point": [(2.0, 9.0)]}
    assert charts.mean_heights(curves) == {"flat": pytest.approx(2), "slope": pytest.approx(2)}
    assert charts.mean_heights({"slope": [(0.0, 0.0), (1.0, 1.0)]})["slope"] == pytest.approx(0.5)


@pytest.mark.parametrize(
    "curves",
    [
        {"left": [(0.0, 1.0), (1.0, 1.0)], "right": [(2.0, 1.0), (3.0, 1.0)]},
        {"point": [(0.0, 1.0)]},
        {"not monotonic": [(0.0, 0.0), (2.0, 1.0), (1.0, 5.0)]},
    ],
    ids=["no common range", "single point", "not monotonic"],
)
def test_curves_without_a_common_range_or_an_area_have_no_mean_height(curves: dict) -> None:
    assert charts.mean_heights(curves) == {}


def test_the_tradeoff_shows_every_editor_with_its_intervals_and_its_name() -> None:
    def editor(kept: float, reached: float) -> tuple[dict[str, Any], str]:
        metrics = {
            "kept": {"value": kept, "low": kept - 0.01, "high": kept + 0.02},
            "reached": {"value": reached, "low": None, "high": None},
        }
        return metrics, "#123456"

    figure = charts.tradeoff({"deltaedit_g": editor(0.92, 0.71), "stylemc": editor(0.9, 0.79), "photos": ({}, "red")})
    assert figure is not None
    (axes,) = figure.axes
    assert [text.get_text() for text in axes.texts] == ["StyleMC", "DeltaEdit-G"]  # by share reached
    stylemc, delta = axes.containers
    assert stylemc.lines[0].get_xydata().tolist() == [[0.9, 0.79]] and delta.lines[0].get_color() == "#123456"
    assert delta.lines[2][0].get_segments()[0].tolist() == [[pytest.approx(0.91), 0.71], [pytest.approx(0.94), 0.71]]
    assert charts.tradeoff({"photos": ({}, "red")}) is None


def test_the_same_chart_gives_the_same_bytes_and_text_in_the_colour_of_the_theme(tmp_path: Path) -> None:
    path = tmp_path / "mapper.csv"
    path.write_text("step,cosine,empty\n50,0.9,\n100,0.5,\n150,0.41,\n")
    (title, figure), (_, repeated) = *charts.curves(path), *charts.curves(path)
    assert title == "mapper: cosine, at the end 0.41"
    assert figure.axes[0].lines[0].get_xydata().tolist() == [[50, 0.9], [100, 0.5], [150, 0.41]]
    svg = decoded(charts.svg(figure))
    assert svg == decoded(charts.svg(repeated))
    assert "currentColor" in svg and charts.TEXT not in svg and charts.DARK in svg and "<dc:date>" not in svg


def test_lines_of_several_editors_follow_what_each_was_varied_in(tmp_path: Path) -> None:
    head = "editor,images,style,strength,beta," + ",".join(TRIAL_METRICS)
    scores = "0.5,0.9,20,0.1,0.2,0,0.1,0.01"
    rows = [f"deltaedit_g,8,painted,{s},,{scores}" for s in (2, 1)] + [
        f"styleclip_gd,8,painted,1,{b},{scores}" for b in (1, 2)
    ]
    (tmp_path / "both.csv").write_text("\n".join([head, *rows, "deltaedit_g,8,painted,3,,half a row"]))
    table = charts.trials(tmp_path / "both.csv")
    assert table["varied"] == ["editor", "strength", "beta"] and len(table["rows"]) == 4
    (chart,) = table["charts"]  # nothing else differs within a line
    assert chart["title"] == "PSNR to the counterfactual, dB against strength"
    assert sorted(name for name, _, _ in chart["lines"]) == ["DeltaEdit-G", "StyleCLIP-GD"]


def lines_of(path: Path, columns: str, rows: list[str]) -> dict[str, dict[str, list[float]]]:
    """Charts of a table by their x title: the x values of every line by its name."""
    path.write_text("\n".join([f"editor,images,style,{columns},{','.join(TRIAL_METRICS)}", *rows]) + "\n")
    lines_by_title = {}
    for chart in charts.trials(path)["charts"]:
        (axes,) = chart["figure"].axes
        names = [name for name, _, _ in chart["lines"]]
        lines_by_title[axes.get_xlabel()] = {
            name: [*line.get_xdata()] for name, line in zip(names, axes.lines, strict=True)
        }
    return lines_by_title


@pytest.mark.parametrize("shares", [(0.5, 0.8), (0.5, 0.8, ""), (0.5, 0.6, 0.7, 0.8)])
def test_a_line_follows_the_x_axis_and_other_settings_name_it(tmp_path: Path, shares: tuple) -> None:
    rows = [f"deltaedit_g,8,painted,{s},{share},{s / 4},.9,20,.1,.4,1,0,0" for share in shares for s in (1, 2, 3)]
    lines = lines_of(tmp_path / "grid.csv", "strength,top_share", rows)["strength"]
    assert set(lines) == {f"DeltaEdit-G top_share {share or 'null'}" for share in shares}
    assert all(points == [1, 2, 3] for points in lines.values())


def test_a_setting_that_is_a_function_of_the_x_axis_does_not_name_a_line(tmp_path: Path) -> None:
    rows = [f"deltaedit_g,8,painted,{s},{s / 10},{s / 4},.9,20,.1,.4,1,0,0" for s in (3, 1, 2)]
    assert lines_of(tmp_path / "both.csv", "strength,top_share", rows) == {"strength": {"DeltaEdit-G": [1, 2, 3]}}


def test_of_several_numbers_the_one_of_most_values_makes_the_line(tmp_path: Path) -> None:
    rows = [
        f"deltaedit_g,8,painted,{sigma},{share},{share / 4},{share / 2},20,.1,.4,1,0,0"
        for sigma in (2, 3)
        for share in (0.5, 0.75, 1)
    ]
    lines = lines_of(tmp_path / "kept.csv", "max_sigma,top_share", rows)["kept"]
    expected = [0.25, 0.375, 0.5]
    assert lines == {"DeltaEdit-G max_sigma 2": expected, "DeltaEdit-G max_sigma 3": expected}


def test_an_empty_table_has_no_charts(tmp_path: Path) -> None:
    (tmp_path / "none.csv").write_text("editor,images,reached\ndeltaedit_g,8,0.5\n")  # of another version
    assert charts.trials(tmp_path / "none.csv")["charts"] == []
