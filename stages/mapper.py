"""Codes -> data/<domain>/mapper.safetensors: the Delta Mapper, trained on pairs of images only."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from torch import Tensor

from pipeline import delta_mapper, sampling, training
from pipeline.models.stylespace import StyleLayout
from pipeline.runtime import progress
from pipeline.storage import artefacts, weights
from stages._stage import Stage, run

CHECKPOINT_EVERY, ROW_EVERY = 500, 50  # steps


def train(
    stage: Stage,
    layout: StyleLayout,
    codes: Callable[[str, tuple[str, ...]], tuple[Tensor, Tensor]],
    out: Path,
) -> None:
    """Train a mapper with section `mapper` and write it to `out`.

    layout: of the codes. codes: (split, sources) -> codes [N,S] and CLIP embeddings [N,E].
    """
    section = stage.params(delta_mapper.MapperParams, "mapper")
    with stage.tracked(section) as tracked, stage.work(section) as work:
        (s, clip), validation = (codes(split, section.sources) for split in ("train", "val"))
        curve, redrawn = training.Curve(ROW_EVERY), stage.params(sampling.SampleParams, "sample").redrawn
        siblings = delta_mapper.siblings(stage.paths.codes, section, redrawn)
        trainer = delta_mapper.Trainer(s, clip, layout, section, stage.networks.device, siblings)
        checkpoint = work.path("checkpoint.pt")
        fit = training.fit(trainer.step, trainer.parts, section.steps, checkpoint, CHECKPOINT_EVERY, curve=curve)
        for _ in progress.track(fit, section.steps, stage.name, unit="steps"):
            pass
        metrics = delta_mapper.validate(trainer.mapper.eval(), *validation)
        stage.save_curve(work, curve)
        model = delta_mapper.numbers(layout, clip.shape[1])
        meta = {**stage.meta(section, "generator", "clip"), "model": model, "validation": metrics}
        weights.save(work.path("mapper"), trainer.mapper.state_dict(), meta)
        work.mark("mapper")
        stage.log_curve(tracked, curve)
        stage.log(tracked, metrics)
        work.publish({"mapper": out, "curve": stage.paths.curve(stage.name)})


def main(stage: Stage) -> None:
    """Train the mapper of s."""

    def codes(split: str, sources: tuple[str, ...]) -> tuple[Tensor, Tensor]:
        table = artefacts.read(stage.paths.codes, "codes", ["s", "clip"], {"source": sources, "split": split})
        return table["s"], table["clip"]

    train(stage, stage.networks.load().generator.layout, codes, stage.paths.mapper)


if __name__ == "__main__":
    run(main)
