"""Images and their codes -> data/<domain>/diffusion.safetensors: the denoiser that is conditioned on style codes."""

from __future__ import annotations

from pathlib import Path

from pipeline import denoiser_data, denoiser_training, training
from pipeline.denoiser_training import Batches, DiffusionParams
from pipeline.models import unet
from pipeline.runtime import progress
from pipeline.storage import artefacts
from stages._stage import Stage, run

CHECKPOINT_EVERY, ROW_EVERY = 100, 10  # steps
BY_TIME, VALIDATION = 64, 256  # validation images: of the loss by time, and of the loss that chooses the weights


def train(
    stage: Stage, params: DiffusionParams, checkpoint: Path, curve: training.Curve, unseen: tuple[Batches, int] | None
) -> unet.Denoiser:
    """Train the denoiser; returns the weight average with the lowest loss on `unseen`, or the last without.

    checkpoint: file that the training resumes from.
    curve: takes in the losses.
    unseen: validation data and its number of rows.
    """
    networks, shipped = stage.networks.load(), stage.root / stage.domain.denoiser.path
    sizes = stage.domain.defaults.get("pretrain", {}).get("denoiser", {}).get("model", {})
    numbers = {**sizes, **denoiser_training.network_sizes(networks.generator, params.space)}
    network = denoiser_training.initial_network(params, shipped, numbers)
    batches, count = denoiser_data.load(networks, "train", params.space)
    fit = denoiser_training.train(
        network,
        params,
        batches,
        count,
        checkpoint,
        CHECKPOINT_EVERY,
        device=networks.device,
        curve=curve,
        validate=unseen and (lambda average: denoiser_training.validation_loss(average, *unseen)),
    )
    for _, _, average in progress.track(fit, params.steps, "diffusion", unit="steps"):
        network = average
    return network


def main(stage: Stage) -> None:
    """Train the denoiser, or copy the shipped one where no steps are asked for, and measure its loss by time."""
    params, paths, networks = stage.params(DiffusionParams), stage.paths, stage.networks.load()
    curve, by_time, unseen = training.Curve(ROW_EVERY), training.Curve(1), None
    if artefacts.count(paths.images, "images", {"split": "val"}):
        unseen = denoiser_data.load(networks, "val", params.space, VALIDATION)
    with stage.tracked(params) as tracked, stage.work(params) as work:
        if params.init == denoiser_training.PRETRAINED and not params.steps:
            denoiser_training.copy_pretrained(stage.root / stage.domain.denoiser.path, work.path("diffusion"))
        else:
            network = train(stage, params, work.path("checkpoint.pt"), curve, unseen)
            denoiser_training.save(work.path("diffusion"), network, **stage.meta(params, "generator", "clip"))
        work.mark("diffusion")
        stage.save_curve(work, curve)
        if unseen:
            network = denoiser_training.load(work.path("diffusion"), networks.device)
            by_time = denoiser_training.loss_by_time(network, unseen[0], min(BY_TIME, unseen[1]))
        stage.save_curve(work, by_time, "by_time")
        stage.log_curve(tracked, curve)
        curves = {"curve": paths.curve("diffusion"), "by_time": paths.curve("diffusion_by_time")}
        work.publish({"diffusion": paths.diffusion, **curves})


if __name__ == "__main__":
    run(main)
