"""Trains the denoiser of DeltaEdit-D on pictures, each with the style code that the encoder reads from it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipeline import denoiser_training, sampling, training
from pipeline.models import unet
from pipeline.models.e4e import StyleEncoder
from pipeline.models.ode_solvers import standardise
from pipeline.models.stylegan2 import Generator
from pipeline.models.unet import Denoiser
from pipeline.networks import Backbones
from pipeline.runtime.errors import InputError
from pipeline.storage.domains import Domain
from pipeline.training import Metrics
from pretrain import common, generator_supervised
from pretrain.pictures import Pictures


def coded(
    data: Pictures,
    encoder: StyleEncoder,
    generator: Generator,
    mean: Tensor,
    std: Tensor,
    device: str = "cpu",
    told: float = 0.0,
    made: float = 0.0,
    led: bool = False,
) -> denoiser_training.Batches:
    """Batches of pictures and the standardised s of their inversions, as `invert` and `cache` make the dataset's.

    Codes are computed as they are needed, so they are never older than the encoder. mean, std [S].
    told: the share of every batch whose codes are those that the generator learnt to copy them by, where it did.
    made: the share that is not pictures but what the generator makes of codes between two people's: each channel is
    either's, as after an edit, which moves some. With `led`, what it makes of the first of the two shows through the
    noise (`pipeline.denoiser_training.loss`): batches have a third part then, which is the pictures themselves elsewhere.
    """
    mean, std = mean.to(device), std.to(device)

    def draw(count: int, chance: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """(images, s, images before) of `count` people, each with up to half of the channels of another."""
        w = generator.mapping(torch.randn(2 * count, generator.style_dim, generator=chance).to(device))
        w_plus = generator.repeat(w)
        own, other = generator.styles(w_plus).chunk(2)
        often = torch.rand(count, 1, generator=chance) / 2
        moved = (torch.rand(own.shape, generator=chance) < often).to(device)
        s, w_plus = torch.where(moved, other, own), w_plus[:count]
        before = generator.synthesis(own, w_plus).clamp(-1, 1) if led else torch.zeros(0)
        return generator.synthesis(s, w_plus).clamp(-1, 1), s, before

    @torch.no_grad()
    def batch(rows: Tensor, chance: torch.Generator) -> tuple[Tensor, ...]:
        pictures = len(rows) - round(made * len(rows))
        known = min(pictures, round(told * len(rows)))
        images = data.images(rows[:pictures]).to(device)
        codes = [generator_supervised.codes(generator, list(data.people(rows[:known])))] if known else []
        if known < pictures:
            codes.append(encoder(images[known:]))
        s = generator.styles(torch.cat(codes))
        if pictures == len(rows):
            return images, standardise(s, mean, std)
        fakes, fake_s, before = draw(len(rows) - pictures, chance)
        whole, s = torch.cat([images, fakes.float()]), standardise(torch.cat([s, fake_s]), mean, std)
        return (whole, s, torch.cat([images, before.float()])) if led else (whole, s)

    return batch


def steps(
    numbers: dict[str, Any],
    data: Pictures,
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
    told: float = 0.0,
    made: float = 0.0,
    led: bool = False,
    seconds: float | None = None,
    device: str = "cpu",
) -> Iterator[tuple[int, Metrics, Denoiser]]:
    """Yield (images seen, {"loss"}, averaged denoiser); goes on from `state` when it exists.

    numbers: those of the Denoiser but for resolution and style_sizes, which the generator decides. `encoder` and
    `generator` are frozen and on `device`. The rows of `data` are those that are there at the start.
    """
    params = denoiser_training.DiffusionParams(
        images // batch, "photo", "s", False, "random", batch, lr, 0.01, 1.0, ema, seed
    )
    network = denoiser_training.first_weights(params, None, {**numbers, **denoiser_training.sizes(generator)})
    if led and network.objective != "flow":
        raise InputError(f"only flows can be led, this denoiser tells {network.objective}: set led to false")
    batches = coded(data, encoder, generator, mean, std, device, told, made, led)
    for done, metrics, average in denoiser_training.steps(
        network, params, batches, len(data), state, 250, seconds, device
    ):
        yield done * batch, metrics, average


def train(
    domain: Domain,
    root: Path,
    minutes: float | None = None,
    images: int | None = None,
    resume: bool = True,
    device: str = "cpu",
) -> None:
    """Train until `images` were seen or `minutes` are over, going on from an earlier state, then promote the result."""
    plan = common.plan(domain, "denoiser", images)
    networks = Backbones(domain, root, device)
    data = common.pictures(domain, root, plan.renders)
    state = common.state(domain, root, "denoiser", resume, {"network": "denoiser", "ema": "denoiser"})
    loop = steps(
        plan.model,
        data,
        networks.encoder,
        networks.generator,
        *sampling.spread(networks.generator),
        state,
        plan.images,
        seconds=common.seconds(minutes),
        device=device,
        **plan.options,
    )
    common.follow(loop, plan.images, "denoiser")
    if training.first_process():
        promote(domain, root)


def promote(domain: Domain, root: Path) -> Path:
    """Write the averaged network to the domain's weights."""
    tensors, done = common.averaged(domain, root, "denoiser")
    generator = Backbones(domain, root).generator
    network = Denoiser(**common.plan(domain, "denoiser").model, **denoiser_training.sizes(generator))
    network.load_state_dict(tensors)
    path = Path(root) / domain.denoiser.path
    unet.save(path, network, network="denoiser", domain=domain.name, steps=done)
    return path
