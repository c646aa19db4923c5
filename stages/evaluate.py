"""Edits of the editors that params.yaml names, test pictures -> reports/<domain>/: every number, and the grid."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from pipeline import sources
from pipeline.editors import deltaedit_d, deltaedit_d_wplus, deltaedit_g
from pipeline.editors._edit_direction import clip_direction
from pipeline.evaluation import benchmark, counterfactuals, inversion_quality
from pipeline.evaluation.counterfactuals import TestSet
from pipeline.evaluation.metrics import Draws
from pipeline.networks import Backbones
from pipeline.report import edit_grid, figures
from pipeline.runtime.errors import InputError
from pipeline.storage import artefacts, params, weights
from pipeline.values import TextPair
from stages._stage import Stage, run

DIFFUSED = {"deltaedit_d": deltaedit_d, "deltaedit_d_wplus": deltaedit_d_wplus}  # what gives back by diffusion
SHOWN = {"deltaedit_g": deltaedit_g, **DIFFUSED}
# Of the generator at most, of the first shard; of drawn pictures besides the test's, whose shares it should have.
SAMPLES, DRAWN = 4096, 12_000
GRID_PEOPLE, GRID_PROMPTS, GRID_COLOURS = 3, 6, 256  # every version of it stays in git


def main(stage: Stage) -> None:
    section, files, nets = stage.params(sources.EvaluateParams), stage.files, stage.networks.load()
    groups = params.load_yaml(stage.root)["editors"]
    edits = {name: files.edits(name) for group in groups.values() for name in group}
    test, mapper = counterfactuals.test_set(files.images), weights.read_meta(files.mapper)["validation"]
    reals = artefacts.read(files.reals, "reals", ["id", "w_plus"], {"split": "test"})
    ids, edited = reals["id"].tolist(), sources.PEOPLE[section.scale]["latent"]
    w_plus = reals["w_plus"][:edited].unflatten(1, (nets.generator.num_ws, -1))
    detail = sources.details(nets, ids[:edited])
    ran: dict[str, Any] = {  # these editors, with the settings that their edits were made by
        name: params.build(module.Params, artefacts.metadata(edits[name], "edits")["params"], str(edits[name]))
        for name, module in SHOWN.items()
        if name in edits
    }
    fakes, drawn, diffused = None, [], next((name for name in ran if name in DIFFUSED), None)
    if test.people is not None:
        fakes = artefacts.read(artefacts.shards(files.fakes)[0], "fakes", ["w"])["w"][:SAMPLES]
        drawn = artefacts.read(files.images, "images", ["image"], {"split": "train"})["image"][:DRAWN]
    if tuple(ids) != test.ids:
        raise InputError(f"{files.reals} holds other people than {files.images}: run `dvc repro`")
    with stage.tracked(section) as tracked:
        found = benchmark.evaluate(
            nets,
            test,
            edits,
            mapper,
            w_plus=w_plus,
            detail=detail,
            refine=artefacts.metadata(files.reals, "reals")["params"]["refine"],
            fakes=fakes,
            drawn=drawn,
            reconstructor=diffused,
            walk=ran[diffused].walk if diffused else None,
            repeats=section.repeats,
            seed=section.seed,
            batch=section.batch,
            half=section.precision == "bfloat16",
        )
        if "deltaedit_g" in ran and fakes is not None:
            settings, draws = ran["deltaedit_g"], Draws(section.repeats, section.seed)
            found.metrics["inversion"] |= inversion_quality.reached_on_samples(
                nets, deltaedit_g.build(nets, settings), settings.strength, w_plus, detail, fakes, draws
            )
        benchmark.save(found, files)
        seen = [prompt for prompt in stage.domain.prompts if prompt.split == "seen"]
        if len(w_plus) >= figures.PEOPLE:
            draw(nets, test, w_plus, detail, ran, files)
        if test.people is not None and len(test.ids) >= figures.PEOPLE:
            figures.save_map(files, figures.clip_map(nets, test, section.batch, section.seed))
        for name in groups["latent"][:1]:
            shown = edit_grid.gather(test, seen, {name: files.edits(name)}, GRID_PEOPLE, GRID_PROMPTS)
            sheet = edit_grid.draw(shown, name, edit_grid.label(name))
            edit_grid.save(files.grid, sheet, None if test.people is None else GRID_COLOURS)
        stage.log(tracked, found.summary)
        tracked.figure("grid", files.grid)


def draw(
    nets: Backbones,
    test: TestSet,
    w_plus: Tensor,
    detail: Tensor | None,
    ran: dict[str, Any],
    layout: artefacts.Layout,
) -> None:
    """Draw and save the figures of the editors that ran, on the first people and two prompts."""
    first = slice(figures.PEOPLE)
    lacking = None if detail is None else detail[first]
    people = sources.source(nets, test.images[first], w_plus[first], lacking)
    prompts = figures.asked(test, [prompt for prompt in nets.domain.prompts if prompt.split == "seen"])
    pairs, grids = [TextPair(nets.domain.neutral, prompt.text) for prompt in prompts], {}
    directions = [clip_direction(nets, pair) for pair in pairs]
    if prompts and "deltaedit_g" in ran:
        grids |= zip(("strong", "kept"), figures.swept(nets, people, directions, ran["deltaedit_g"]), strict=True)
    if "deltaedit_d" in ran:
        settings = ran["deltaedit_d"]
        drawn = figures.blends(deltaedit_d.build(nets, settings), people, directions, settings.strength)
        grids |= zip(("between", "mixed"), drawn, strict=True)
    told = {"prompts": [prompt.text for prompt in prompts], "levels": list(nets.generator.layout.levels)}
    figures.save(layout, grids, **told)


if __name__ == "__main__":
    run(main)
