"""Edits of the editors that params.yaml names, test pictures -> reports/<domain>/: every number, and the grid."""

from __future__ import annotations

from pipeline import artefacts, editing, evaluation, params, sampler, showcase, truth, weights
from pipeline.values import InputError
from stages._run import Stage, run

GRID_PEOPLE, GRID_PROMPTS = 6, 6


def main(stage: Stage) -> None:
    section, files, nets = stage.params(editing.EvaluateParams), stage.files, stage.networks.load()
    editors = params.load_yaml(stage.root)["editors"]
    edits = {name: files.edits(name) for group in editors.values() for name in group}
    test, mapper = truth.test_set(files.images), weights.read_meta(files.mapper)["validation"]
    inverted = artefacts.read(files.reals, "reals", ["id", "w_plus"], {"split": "test"})
    edited = slice(editing.PEOPLE[section.scale]["latent"])
    w_plus = inverted["w_plus"][edited].unflatten(1, (nets.generator.num_ws, -1))
    fakes, walk = None, None
    if "deltaedit_d" in edits:
        made = artefacts.metadata(edits["deltaedit_d"], "edits")["params"]
        walk = sampler.Walk(made["steps"], made["solver"], made["refine"])
    if test.people is not None:
        fakes = artefacts.read(artefacts.shards(files.fakes)[0], "fakes", ["w"])["w"][: len(test.ids)]
    if tuple(inverted["id"].tolist()) != test.ids:
        raise InputError(f"{files.reals} holds other people than {files.images}: run `dvc repro`")
    with stage.tracked(section) as tracked:
        found = evaluation.evaluate(
            nets,
            test,
            edits,
            mapper,
            w_plus=w_plus,
            fakes=fakes,
            walk=walk,
            repeats=section.repeats,
            seed=section.seed,
            batch=section.batch,
        )
        evaluation.save(found, files)
        seen = [prompt for prompt in stage.domain.prompts if prompt.split == "seen"]
        for name in editors["latent"][:1]:
            shown = showcase.gather(test, seen, {name: files.edits(name)}, GRID_PEOPLE, GRID_PROMPTS)
            showcase.save(files.grid, showcase.draw(shown, name, showcase.label(name)))
        stage.log(tracked, found.summary)
        tracked.figure("grid", files.grid)


if __name__ == "__main__":
    run(main)
