"""Pictures and their codes -> data/<domain>/diffusion.safetensors: the denoiser that a style code steers."""

from __future__ import annotations

from pipeline import artefacts, denoiser, diffusion, progress, sampling, training
from stages._run import Stage, run

CHECKPOINT_EVERY, ROW_EVERY = 100, 10  # steps


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
            train = {"split": "train"}
            photos = sampling.pixels(artefacts.read(files.images, "images", ["image"], train)["image"])
            s = artefacts.read(files.codes, "codes", ["s"], {"source": "real", **train})["s"]
            batches = diffusion.in_memory(photos, s, nets.s_mean.cpu(), nets.s_std.cpu())
            fit = diffusion.steps(
                network, params, batches, len(s), unit.path("checkpoint.pt"), CHECKPOINT_EVERY, None, nets.device, curve
            )
            for _, _, averaged in progress.track(fit, params.steps, "diffusion", unit="steps"):
                network = averaged
            meta = stage.meta(params, "generator", "clip")
            denoiser.save(unit.path("diffusion"), network, **meta)
        unit.mark("diffusion")
        stage.save_curve(unit, curve)
        stage.log_curve(tracked, curve)
        unit.publish({"diffusion": files.diffusion, "curve": files.curve("diffusion")})


if __name__ == "__main__":
    run(main)
