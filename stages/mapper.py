"""Codes -> data/<domain>/mapper.safetensors: the Delta Mapper, trained on pairs of pictures only."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from torch import Tensor

from pipeline import delta_mapper, training
from pipeline.models.stylespace import StyleLayout
from pipeline.runtime import progress
from pipeline.storage import artefacts, params, weights
from stages._stage import Stage, run

CHECKPOINT_EVERY, ROW_EVERY = 500, 50  # steps


def train(
    stage: Stage,
    layout: StyleLayout,
    codes: Callable[[str, tuple[str, ...]], tuple[Tensor, Tensor]],
    made: Path,
) -> None:
    """Train a mapper on codes(split, sources) -> codes [N,S] of `layout` and clip [N,E]; write it to `made`."""
    section = params.section(delta_mapper.MapperParams, stage.root, "mapper", domain=stage.domain)
    with stage.tracked(section) as tracked, stage.work(section) as unit:
        (s, clip), unseen = (codes(split, section.sources) for split in ("train", "val"))
        curve = training.Curve(ROW_EVERY)
        siblings = delta_mapper.siblings(stage.files.codes, section, params.load_yaml(stage.root)["sample"]["redrawn"])
        trainer = delta_mapper.Trainer(s, clip, layout, section, stage.networks.device, siblings)
        checkpoint = unit.path("checkpoint.pt")
        fit = training.fit(trainer.step, trainer.parts, section.steps, checkpoint, CHECKPOINT_EVERY, curve=curve)
        for _ in progress.track(fit, section.steps, stage.name, unit="steps"):
            pass
        found = delta_mapper.validate(trainer.mapper.eval(), *unseen)
        stage.save_curve(unit, curve)
        numbers = delta_mapper.numbers(layout, clip.shape[1])
        meta = {**stage.meta(section, "generator", "clip"), "model": numbers, "validation": found}
        weights.save(unit.path("mapper"), trainer.mapper.state_dict(), meta)
        unit.mark("mapper")
        stage.log_curve(tracked, curve)
        stage.log(tracked, found)
        unit.publish({"mapper": made, "curve": stage.files.curve(stage.name)})


def main(stage: Stage) -> None:
    def codes(split: str, sources: tuple[str, ...]) -> tuple[Tensor, Tensor]:
        found = artefacts.read(stage.files.codes, "codes", ["s", "clip"], {"source": sources, "split": split})
        return found["s"], found["clip"]

    train(stage, stage.networks.load().generator.layout, codes, stage.files.mapper)


if __name__ == "__main__":
    run(main)
