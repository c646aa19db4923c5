"""Pictures and their codes -> data/<domain>/diffusion.safetensors: the denoiser that a style code steers."""

from __future__ import annotations

from pipeline import artefacts, denoiser, diffusion, progress, sampling, training
from stages._run import Stage, run

CHECKPOINT_EVERY, ROW_EVERY = 100, 10  # steps
JUDGED = 64  # unseen pictures that the loss is told on, by time


def pairs(stage: Stage, split: str) -> tuple[diffusion.Batches, int]:
    """The pictures of a split with their codes, and how many there are."""
    files, nets = stage.files, stage.networks.load()
    photos = sampling.pixels(artefacts.read(files.images, "images", ["image"], {"split": split})["image"])
    s = artefacts.read(files.codes, "codes", ["s"], {"source": "real", "split": split})["s"]
    return diffusion.in_memory(photos, s, nets.s_mean.cpu(), nets.s_std.cpu()), len(s)


def by_time(stage: Stage, network: denoiser.Denoiser) -> training.Curve:
    """The loss on some unseen pictures, time by time; nothing where there are none."""
    if not artefacts.count(stage.files.images, "images", {"split": "val"}):
        return training.Curve(1)
    unseen, count = pairs(stage, "val")
    return diffusion.loss_by_time(network, unseen, min(JUDGED, count))


def main(stage: Stage) -> None:
    params, files, nets = stage.params(diffusion.DiffusionParams), stage.files, stage.networks.load()
    shipped, curve = stage.root / stage.domain.denoiser.path, training.Curve(ROW_EVERY)
    with stage.tracked(params) as tracked, stage.work(params) as unit:
        if params.init == diffusion.PRETRAINED and not params.steps:
            diffusion.hand_on(shipped, unit.path("diffusion"))
        else:
            plan = stage.domain.defaults.get("pretrain", {}).get("denoiser", {})
            numbers = {**plan.get("model", {}), **diffusion.sizes(nets.generator)}
            network = diffusion.first_weights(params, shipped, numbers)
            batches, count = pairs(stage, "train")
            fit = diffusion.steps(
                network, params, batches, count, unit.path("checkpoint.pt"), CHECKPOINT_EVERY, None, nets.device, curve
            )
            for _, _, averaged in progress.track(fit, params.steps, "diffusion", unit="steps"):
                network = averaged
            meta = stage.meta(params, "generator", "clip")
            denoiser.save(unit.path("diffusion"), network, **meta)
        unit.mark("diffusion")
        stage.save_curve(unit, curve)
        stage.save_curve(unit, by_time(stage, denoiser.load(unit.path("diffusion"), nets.device)), "by_time")
        stage.log_curve(tracked, curve)
        curves = {"curve": files.curve("diffusion"), "by_time": files.curve("diffusion_by_time")}
        unit.publish({"diffusion": files.diffusion, **curves})


if __name__ == "__main__":
    run(main)
