"""Edits of the editors in params.yaml, test images -> reports/<domain>/: every metric, figures and the grid."""

from __future__ import annotations

from typing import Any

from pipeline import sources
from pipeline.editors import deltaedit_d, deltaedit_d_wplus, deltaedit_g
from pipeline.evaluation import benchmark, counterfactuals, figures
from pipeline.evaluation.bootstrap import Bootstrap
from pipeline.evaluation.context import EvaluationInputs
from pipeline.report import edit_grid
from pipeline.runtime.errors import InputError
from pipeline.storage import artefacts, params, weights
from stages._stage import Stage, run

DIFFUSION = {"deltaedit_d": deltaedit_d, "deltaedit_d_wplus": deltaedit_d_wplus}  # their reconstruction is measured
FIGURE_EDITORS = {"deltaedit_g": deltaedit_g, **DIFFUSION}
# Samples at most, of the first shard; training images beside the test's, for the shares of attribute values.
SAMPLES, TRAIN_IMAGES = 4096, 12_000
GRID_ROWS, GRID_COLUMNS, GRID_COLOURS = 3, 6, 256  # every version of the grid stays in git


def main(stage: Stage) -> None:
    """Evaluate the edits of a domain."""
    section, paths = stage.params(sources.EvaluateParams), stage.paths
    inputs, settings = read(stage, section)
    with stage.tracked(section) as tracked:
        evaluation = benchmark.run(inputs)
        benchmark.save(evaluation, paths)
        draw(stage, inputs, settings)
        stage.log(tracked, evaluation.summary)
        tracked.figure("grid", paths.grid)


def read(stage: Stage, section: sources.EvaluateParams) -> tuple[EvaluationInputs, dict[str, Any]]:
    """Inputs of the benchmark, and the settings behind the edits of each editor in FIGURE_EDITORS.

    Raises InputError where inversions and test images are of different runs.
    """
    paths, networks = stage.paths, stage.networks.load()
    names = [name for group in params.load_yaml(stage.root)["editors"].values() for name in group]
    edits = {name: paths.edits(name) for name in names}
    test = counterfactuals.test_set(paths.images)
    ids = artefacts.read(paths.reals, "reals", ["id"], {"split": "test"})["id"].tolist()
    if tuple(ids) != test.ids:
        raise InputError(f"{paths.reals} has other rows than {paths.images}: run `dvc repro`")
    settings: dict[str, Any] = {
        name: params.build(module.Params, artefacts.metadata(edits[name], "edits")["params"], str(edits[name]))
        for name, module in FIGURE_EDITORS.items()
        if name in edits
    }
    diffusion = next((name for name in settings if name in DIFFUSION), None)
    fakes, train, latent = None, [], settings.get("deltaedit_g")
    if test.people is not None:
        fakes = artefacts.read(artefacts.shards(paths.fakes)[0], "fakes", ["w"])["w"][:SAMPLES]
        train = artefacts.read(paths.images, "images", ["image"], {"split": "train"})["image"][:TRAIN_IMAGES]
    inputs = EvaluationInputs(
        networks=networks,
        test=test,
        edits=edits,
        inversion=sources.inversions(networks, ids[: sources.TEST_IMAGES[section.scale]["latent"]]),
        fakes=fakes,
        train_images=train,
        mapper_validation=weights.read_meta(paths.mapper)["validation"],
        diffusion_editor=diffusion,
        trajectory=settings[diffusion].trajectory if diffusion else None,
        latent_editor=(deltaedit_g.build(networks, latent), latent.strength) if latent else None,
        bootstrap=Bootstrap(section.repeats, section.seed),
        batch=section.batch,
        half=section.precision == "bfloat16",
    )
    return inputs, settings


def draw(stage: Stage, inputs: EvaluationInputs, settings: dict[str, Any]) -> None:
    """Draw the page's figures and the grid of the first latent editor."""
    paths, networks, test, inversion = stage.paths, inputs.networks, inputs.test, inputs.inversion
    if inversion is not None and len(inversion) >= figures.IMAGES:
        figures.draw(networks, test, inversion, settings, paths)
    if test.people is not None and len(test.ids) >= figures.IMAGES:
        figures.save_map(paths, figures.clip_map(networks, test, inputs.batch, inputs.bootstrap.seed))
    prompts = [prompt for prompt in stage.domain.prompts if prompt.split == "seen"]
    for name in params.load_yaml(stage.root)["editors"]["latent"][:1]:
        grid = edit_grid.gather(test, prompts, {name: paths.edits(name)}, GRID_ROWS, GRID_COLUMNS)
        edit_grid.save(paths.grid, edit_grid.draw(grid, name), None if test.people is None else GRID_COLOURS)


if __name__ == "__main__":
    run(main)
