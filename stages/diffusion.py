"""Pictures and their codes -> data/<domain>/diffusion.safetensors: the denoiser that a style code steers."""

from __future__ import annotations

import tempfile

import numpy as np
import torch
from torch import Tensor

from pipeline import denoiser_training, sampling, training
from pipeline.models import unet
from pipeline.networks import Backbones
from pipeline.runtime import progress
from pipeline.storage import artefacts
from stages._stage import Stage, run

CHECKPOINT_EVERY, ROW_EVERY = 100, 10  # steps
BATCH, AT_ONCE = 64, 1024  # pictures that the encoder sees, and that are read or drawn, at a time
BY_TIME, JUDGED = 64, 256  # unseen pictures that the loss is told on, time by time, and by which weights are chosen


def pairs(
    stage: Stage, split: str, params: denoiser_training.DiffusionParams, most: int | None = None
) -> tuple[denoiser_training.Batches, int]:
    """The pictures of a split, the first `most`, with the codes that the denoiser is told; how many these are.

    Pictures are on disk, so that memory does not grow by theirs.
    """
    files, nets, size = stage.files, stage.networks.load(), stage.domain.resolution
    ids = tuple(artefacts.read(files.images, "images", ["id"], {"split": split})["id"].tolist()[:most])
    with tempfile.TemporaryFile() as file:  # nameless: gone with the process, however that ends
        room = np.memmap(file, np.uint8, "w+", shape=(len(ids) * (1 + params.mirror), 3, size, size))
    pictures, done = torch.from_numpy(room), 0
    for part in artefacts.iterate(files.images, "images", ["image"], AT_ONCE, {"id": ids}):
        read = sampling.pixels(part["image"])
        pictures[done : done + len(read)] = read
        done += len(read)
    s = artefacts.read(files.codes, "codes", ["s"], {"source": "real", "id": ids})["s"]
    w_plus = torch.empty(len(s), nets.generator.num_ws, 0)  # where nothing is drawn or told of it
    if params.space == "w_plus" or params.images == "reconstruction":
        read = artefacts.read(files.reals, "reals", ["w_plus"], {"id": ids})["w_plus"]
        w_plus = read.unflatten(1, (nets.generator.num_ws, -1))
    if params.mirror:
        for rows in _parts(done):
            pictures[done:][rows] = pictures[:done][rows].flip(3)
        more_s, more = seen(nets, pictures[done:])
        s, w_plus = torch.cat([s, more_s]), torch.cat([w_plus, more[..., : w_plus.shape[2]]])
    if params.images == "reconstruction":
        for rows in _parts(len(s)):
            pictures[rows] = sampling.rendered(nets.generator, s[rows], w_plus[rows])
    codes, spread = s if params.space == "s" else w_plus.flatten(1), nets.spread(params.space)
    return denoiser_training.in_memory(pictures, codes, *(part.cpu() for part in spread)), len(codes)


def _parts(count: int) -> list[slice]:
    return [slice(start, start + AT_ONCE) for start in range(0, count, AT_ONCE)]


def seen(nets: Backbones, pictures: Tensor) -> tuple[Tensor, Tensor]:
    """What the encoder reads from pictures uint8 [N,3,R,R]: s [N,S] and w_plus [N,L,D]."""

    def step(shown: Tensor) -> tuple[Tensor, Tensor]:
        w_plus = nets.encoder(shown.to(nets.device).float() / 127.5 - 1)
        return nets.generator.styles(w_plus).half().cpu(), w_plus.cpu()

    with torch.no_grad():
        return sampling.fixed_batches(step, BATCH, pictures)


def main(stage: Stage) -> None:
    params, files, nets = stage.params(denoiser_training.DiffusionParams), stage.files, stage.networks.load()
    shipped, curve, by_time = stage.root / stage.domain.denoiser.path, training.Curve(ROW_EVERY), training.Curve(1)
    unseen, val = None, artefacts.count(files.images, "images", {"split": "val"})
    if val:
        unseen, val = pairs(stage, "val", params, JUDGED)
    with stage.tracked(params) as tracked, stage.work(params) as unit:
        if params.init == denoiser_training.PRETRAINED and not params.steps:
            denoiser_training.hand_on(shipped, unit.path("diffusion"))
        else:
            plan = stage.domain.defaults.get("pretrain", {}).get("denoiser", {})
            numbers = {**plan.get("model", {}), **denoiser_training.sizes(nets.generator, params.space)}
            network = denoiser_training.first_weights(params, shipped, numbers)
            batches, count = pairs(stage, "train", params)
            fit = denoiser_training.steps(
                network,
                params,
                batches,
                count,
                unit.path("checkpoint.pt"),
                CHECKPOINT_EVERY,
                device=nets.device,
                curve=curve,
                judge=unseen and (lambda one: denoiser_training.validation_loss(one, unseen, val)),
            )
            for _, _, averaged in progress.track(fit, params.steps, "diffusion", unit="steps"):
                network = averaged
            meta = stage.meta(params, "generator", "clip")
            unet.save(unit.path("diffusion"), network, **meta)
        unit.mark("diffusion")
        stage.save_curve(unit, curve)
        if unseen:
            network = unet.load(unit.path("diffusion"), nets.device)
            by_time = denoiser_training.loss_by_time(network, unseen, min(BY_TIME, val))
        stage.save_curve(unit, by_time, "by_time")
        stage.log_curve(tracked, curve)
        curves = {"curve": files.curve("diffusion"), "by_time": files.curve("diffusion_by_time")}
        unit.publish({"diffusion": files.diffusion, **curves})


if __name__ == "__main__":
    run(main)
