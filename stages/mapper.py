"""Codes -> data/<domain>/mapper.safetensors: the Delta Mapper, trained on pairs of pictures only."""

from __future__ import annotations

from pipeline import artefacts, mapper, progress, training, weights
from stages._run import Stage, run

CHECKPOINT_EVERY, ROW_EVERY = 500, 50  # steps


def main(stage: Stage) -> None:
    params, files = stage.params(mapper.MapperParams), stage.files
    layout = stage.networks.load().generator.layout
    chosen = {"fake": ("fake",), "real": ("real",), "both": ("fake", "real")}[params.source]

    def rows(split: str) -> dict:
        return artefacts.read(files.codes, "codes", ["s", "clip"], {"source": chosen, "split": split})

    with stage.tracked(params) as tracked, stage.work(params) as unit:
        codes, unseen, curve = rows("train"), rows("val"), training.Curve(ROW_EVERY)
        trainer = mapper.Trainer(codes["s"][: params.rows], codes["clip"][: params.rows], layout, params)
        checkpoint = unit.path("checkpoint.pt")
        fit = training.fit(trainer.step, trainer.parts, params.steps, checkpoint, CHECKPOINT_EVERY, curve=curve)
        for _ in progress.track(fit, params.steps, "mapper", unit="steps"):
            pass
        found = mapper.validate(trainer.mapper.eval(), unseen["s"], unseen["clip"])
        stage.save_curve(unit, curve)
        numbers = mapper.numbers(layout, codes["clip"].shape[1])
        meta = {**stage.meta(params, "generator", "clip"), "model": numbers, "validation": found}
        weights.save(unit.path("mapper"), trainer.mapper.state_dict(), meta)
        unit.mark("mapper")
        stage.log_curve(tracked, curve)
        stage.log(tracked, found)
        unit.publish({"mapper": files.mapper, "curve": files.curve("mapper")})


if __name__ == "__main__":
    run(main)
