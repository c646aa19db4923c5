"""The chart of the workflow: which stage needs which, and where its box stands."""

from __future__ import annotations

from pathlib import Path

from finished_stages import WORKFLOW

from pipeline.report import dag_figure


def test_a_stage_needs_those_whose_outputs_it_reads() -> None:
    assert dag_figure.edges(WORKFLOW) == {
        "prepare": set(),
        "sample": set(),
        "cache": {"prepare", "sample"},
        "edit_latent": {"cache", "prepare"},
        "evaluate": {"edit_latent", "prepare"},
    }


def test_boxes_stand_after_what_they_need_and_never_on_each_other() -> None:
    chart = dag_figure.chart(WORKFLOW)
    place = {box.name: (box.x, box.y) for box in chart.boxes}
    for name, needed in dag_figure.edges(WORKFLOW).items():
        assert all(place[other][0] < place[name][0] for other in needed)
    assert len(set(place.values())) == len(place)
    assert all(x + dag_figure.WIDTH <= chart.width and y + dag_figure.HEIGHT <= chart.height for x, y in place.values())


def test_arrows_that_follow_from_others_are_left_out() -> None:
    assert len(dag_figure.chart(WORKFLOW).arrows) == 4  # not prepare -> edit_latent, nor prepare -> evaluate


def test_the_projects_own_workflow_can_be_drawn() -> None:
    from pipeline.storage import params

    workflow = params.read_mapping(Path(__file__).parents[2] / "dvc.yaml")
    assert {box.name for box in dag_figure.chart(workflow).boxes} == set(workflow["stages"]) == set(dag_figure.STAGES)
