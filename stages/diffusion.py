"""Pictures and their codes -> data/<domain>/diffusion.safetensors: the denoiser that a style code steers."""

from __future__ import annotations

from pipeline import artefacts, denoiser, diffusion, progress, sampling, training
from stages._run import Stage, run

CHECKPOINT_EVERY, ROW_EVERY = 100, 10  # steps
BY_TIME, JUDGED = 64, 256  # unseen pictures that the loss is told on, time by time, and by which weights are chosen


def pairs(stage: Stage, split: str, images: str, most: int | None = None) -> tuple[diffusion.Batches, int]:
    """The pictures of a split with their codes, the first `most`, and how many these are."""
    files, nets = stage.files, stage.networks.load()
    ids = tuple(artefacts.read(files.images, "images", ["id"], {"split": split})["id"].tolist()[:most])
    s = artefacts.read(files.codes, "codes", ["s"], {"source": "real", "id": ids})["s"]
    if images == "photo":
        pictures = sampling.pixels(artefacts.read(files.images, "images", ["image"], {"id": ids})["image"])
    else:
        w_plus = artefacts.read(files.reals, "reals", ["w_plus"], {"id": ids})["w_plus"]
        pictures = sampling.rendered(nets.generator, s, w_plus.unflatten(1, (nets.generator.num_ws, -1)))
    return diffusion.in_memory(pictures, s, nets.s_mean.cpu(), nets.s_std.cpu()), len(s)


def main(stage: Stage) -> None:
    params, files, nets = stage.params(diffusion.DiffusionParams), stage.files, stage.networks.load()
    shipped, curve, by_time = stage.root / stage.domain.denoiser.path, training.Curve(ROW_EVERY), training.Curve(1)
    unseen, val = None, artefacts.count(files.images, "images", {"split": "val"})
    if val:
        unseen, val = pairs(stage, "val", params.images, JUDGED)
    with stage.tracked(params) as tracked, stage.work(params) as unit:
        if params.init == diffusion.PRETRAINED and not params.steps:
            diffusion.hand_on(shipped, unit.path("diffusion"))
        else:
            plan = stage.domain.defaults.get("pretrain", {}).get("denoiser", {})
            numbers = {**plan.get("model", {}), **diffusion.sizes(nets.generator)}
            network = diffusion.first_weights(params, shipped, numbers)
            batches, count = pairs(stage, "train", params.images)
            fit = diffusion.steps(
                network,
                params,
                batches,
                count,
                unit.path("checkpoint.pt"),
                CHECKPOINT_EVERY,
                device=nets.device,
                curve=curve,
                judge=unseen and (lambda one: diffusion.validation_loss(one, unseen, val)),
            )
            for _, _, averaged in progress.track(fit, params.steps, "diffusion", unit="steps"):
                network = averaged
            meta = stage.meta(params, "generator", "clip")
            denoiser.save(unit.path("diffusion"), network, **meta)
        unit.mark("diffusion")
        stage.save_curve(unit, curve)
        if unseen:
            network = denoiser.load(unit.path("diffusion"), nets.device)
            by_time = diffusion.loss_by_time(network, unseen, min(BY_TIME, val))
        stage.save_curve(unit, by_time, "by_time")
        stage.log_curve(tracked, curve)
        curves = {"curve": files.curve("diffusion"), "by_time": files.curve("diffusion_by_time")}
        unit.publish({"diffusion": files.diffusion, **curves})


if __name__ == "__main__":
    run(main)
