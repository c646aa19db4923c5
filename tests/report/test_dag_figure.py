"""The figure of the workflow: dependencies between stages, and the places of their boxes."""

from __future__ import annotations

from pathlib import Path

from finished_stages import WORKFLOW

from pipeline.report import dag_figure


def test_a_stage_depends_on_those_whose_outputs_it_reads() -> None:
    dag = dag_figure.graph(WORKFLOW)
    assert {name: set(dag.predecessors(name)) for name in dag} == {
        "prepare": set(),
        "sample": set(),
        "cache": {"prepare", "sample"},
        "edit_latent": {"cache", "prepare"},
        "evaluate": {"edit_latent", "prepare"},
    }


def test_boxes_are_right_of_their_dependencies_and_do_not_overlap() -> None:
    dag = dag_figure.graph(WORKFLOW)
    places = dag_figure.positions(dag)
    assert all(places[start][0] + dag_figure.WIDTH < places[end][0] for start, end in dag.edges)
    assert len(set(places.values())) == len(places) == 5


def test_dependencies_that_follow_from_others_have_no_arrow() -> None:
    (axes,) = dag_figure.figure(dag_figure.graph(WORKFLOW)).axes
    arrows = [patch for patch in axes.patches if type(patch).__name__ == "FancyArrowPatch"]
    assert len(arrows) == 4  # not prepare -> edit_latent, nor prepare -> evaluate
    words = [text.get_text() for text in axes.texts]
    assert {"prepare", "images", "cache", "codes", "evaluate", "metrics.json"} <= set(words)


def test_the_workflow_of_this_project_can_be_drawn() -> None:
    from pipeline.storage import params

    workflow = params.read_mapping(Path(__file__).parents[2] / "dvc.yaml")
    dag = dag_figure.graph(workflow)
    (axes,) = dag_figure.figure(dag).axes
    assert len(axes.texts) == 2 * len(workflow["stages"]) and dag.has_edge("evaluate", "report")
