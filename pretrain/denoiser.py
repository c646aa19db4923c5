"""Training of DeltaEdit-D's denoiser on images, each with the style code that the encoder reads from it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipeline import denoiser_training, sampling, training
from pipeline.models.e4e import StyleEncoder
from pipeline.models.ode_solvers import standardise
from pipeline.models.stylegan2 import Generator
from pipeline.models.unet import Denoiser
from pipeline.networks import Networks
from pipeline.runtime.errors import InputError
from pipeline.training import Metrics
from pretrain import generator_supervised
from pretrain.common import Training
from pretrain.datasets import ImageChunks


def encoded_batches(
    data: ImageChunks,
    encoder: StyleEncoder,
    generator: Generator,
    mean: Tensor,
    std: Tensor,
    device: str = "cpu",
    known_code_share: float = 0.0,
    generated_share: float = 0.0,
    show_original: bool = False,
) -> denoiser_training.Batches:
    """Batches of images and the standardised s of their inversions.

    Codes are computed when they are needed, so they are never older than the encoder.

    mean, std: of s, [S].
    known_code_share: share of every batch with the codes that the generator was trained to render these images from.
    generated_share: share of every batch that is generated from two samples' codes, each channel from either, as after
        an edit, which moves some channels.
    show_original: let the generated image of the first sample show through the noise (`denoiser_training.loss`).
        Batches then have a third part, which for real images is the image itself.
    """
    mean, std = mean.to(device), std.to(device)

    def draw(count: int, chance: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """(images, s, images before the change) of `count` samples with up to half of another's channels each."""
        w = generator.mapping(torch.randn(2 * count, generator.style_dim, generator=chance).to(device))
        w_plus = generator.repeat(w)
        own, other = generator.styles(w_plus).chunk(2)
        probability = torch.rand(count, 1, generator=chance) / 2
        moved = (torch.rand(own.shape, generator=chance) < probability).to(device)
        s, w_plus = torch.where(moved, other, own), w_plus[:count]
        before = generator.synthesis(own, w_plus).clamp(-1, 1) if show_original else torch.zeros(0)
        return generator.synthesis(s, w_plus).clamp(-1, 1), s, before

    @torch.no_grad()
    def batch(rows: Tensor, chance: torch.Generator) -> tuple[Tensor, ...]:
        real = len(rows) - round(generated_share * len(rows))
        known = min(real, round(known_code_share * len(rows)))
        images = data.images(rows[:real]).to(device)
        codes = [generator_supervised.codes(generator, list(data.people(rows[:known])))] if known else []
        if known < real:
            codes.append(encoder(images[known:]))
        s = generator.styles(torch.cat(codes))
        if real == len(rows):
            return images, standardise(s, mean, std)
        fakes, fake_s, before = draw(len(rows) - real, chance)
        whole, s = torch.cat([images, fakes.float()]), standardise(torch.cat([s, fake_s]), mean, std)
        return (whole, s, torch.cat([images, before.float()])) if show_original else (whole, s)

    return batch


def steps(
    numbers: dict[str, Any],
    data: ImageChunks,
    encoder: StyleEncoder,
    generator: Generator,
    mean: Tensor,
    std: Tensor,
    state: Path,
    images: int,
    batch: int = 32,
    lr: float = 5e-4,
    ema: float = 0.999,
    seed: int = 0,
    known_code_share: float = 0.0,
    generated_share: float = 0.0,
    show_original: bool = False,
    seconds: float | None = None,
    device: str = "cpu",
) -> Iterator[tuple[int, Metrics, Denoiser]]:
    """Yield (images seen, {"loss"}, averaged denoiser).

    numbers: of `Denoiser`, except resolution and style_sizes, which the generator decides.
    data: training images; rows that are there at the start are used.
    encoder, generator: frozen, on `device`.
    state: file that the training goes on from when it exists.
    images: images to see in all.
    """
    params = denoiser_training.DiffusionParams(images // batch, "s", "random", batch, lr, 0.01, 1.0, ema, seed)
    network = denoiser_training.initial_network(params, None, {**numbers, **denoiser_training.network_sizes(generator)})
    if show_original and network.objective != "flow":
        raise InputError(f"show_original needs a flow, this denoiser predicts {network.objective}: set it to false")
    batches = encoded_batches(
        data, encoder, generator, mean, std, device, known_code_share, generated_share, show_original
    )
    for done, metrics, average in denoiser_training.train(
        network, params, batches, len(data), state, 250, seconds, device
    ):
        yield done * batch, metrics, average


def train(job: Training) -> None:
    """Train until `images` were seen or the time is over, going on from an earlier state, and promote the result."""
    plan = job.plan
    networks = Networks(job.domain, job.root, job.device)
    loop = steps(
        plan.model,
        job.training_images(plan.renders),
        networks.encoder,
        networks.generator,
        *sampling.measured_stats(networks.generator),
        job.state({"network": "denoiser", "ema": "denoiser"}),
        plan.images,
        seconds=job.seconds,
        device=job.device,
        **plan.options,
    )
    job.follow(loop, plan.images)
    if training.first_process():
        promote(job)


def promote(job: Training) -> Path:
    """Write the averaged network to the domain's weights."""
    tensors, done = job.averaged()
    generator = Networks(job.domain, job.root).generator
    network = Denoiser(**job.plan.model, **denoiser_training.network_sizes(generator))
    network.load_state_dict(tensors)
    path = job.promoted()
    denoiser_training.save(path, network, network="denoiser", domain=job.domain.name, steps=done)
    return path
