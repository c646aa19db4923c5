"""Training of StyleGAN2: non-saturating loss, lazy R1, style mixing, moving average (Karras et al. 2020)."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline import training
from pipeline.models.stylegan2 import Generator, build
from pipeline.runtime.errors import InputError
from pipeline.runtime.precision import lowered
from pipeline.training import Ema, Metrics, fit
from pretrain import generator_supervised, perceptual_features
from pretrain.augment import AdaptiveAugment, mirrored
from pretrain.common import Plan, Training
from pretrain.datasets import ImageChunks
from pretrain.discriminator import Discriminator

BATCH = 16
R1_EVERY = 16  # steps
FEW_IMAGES = 20_000  # photographs; fewer are augmented


def grow(smaller: dict[str, Any], generator: Generator, discriminator: Discriminator) -> None:
    """Copy the weights of networks of half the size; only layers of the new resolution keep random ones.

    The new toRGB starts at zero, so that the first images are the smaller ones, enlarged.

    smaller: state of the smaller networks, "ema" and "d".
    generator, discriminator: changed in place.
    """
    initial = generator.state_dict()
    same = (item for item in smaller["ema"].items() if item[0] in initial and item[1].shape == initial[item[0]].shape)
    generator.load_state_dict({**initial, **dict(same)})
    nn.init.zeros_(generator.to_rgbs[-1].conv.weight)  # type: ignore[union-attr]
    copied = {key: value for key, value in smaller["d"].items() if not key.startswith(("from_rgb.", "blocks."))}
    for key, value in smaller["d"].items():
        if key.startswith("blocks."):
            _, index, rest = key.split(".", 2)
            copied[f"blocks.{int(index) + 1}.{rest}"] = value
    discriminator.load_state_dict({**discriminator.state_dict(), **copied})


def steps(
    numbers: dict,
    data: ImageChunks,
    state: Path,
    images: int,
    batch: int = BATCH,
    lr: float = 0.0025,
    r1: float = 0.1,
    mixing: float = 0.5,
    ema_images: float = 10_000,
    seconds: float | None = None,
    device: str = "cpu",
    smaller: Path | None = None,
    settle: int = 6_000,
    supervised: bool = False,
    supervised_weight: float = 20.0,
    mirror: bool = False,
    augment: str | None = None,
) -> Iterator[tuple[int, Metrics, Generator]]:
    """Yield (images seen, losses, averaged generator).

    numbers: that build the networks: size, style_dim, widths, n_mlp, discriminator (widths).
    data: training images, averaged down to `size`.
    state: file that the training goes on from when it exists.
    images: images to see in all.
    r1: gamma of the penalty gamma/2 |grad D(real)|^2.
    mixing: probability of style mixing.
    ema_images: half life of the weight average, in images.
    seconds: time limit; None for no limit.
    smaller: state of the same networks at half the size, to grow from.
    settle: images that train the discriminator alone, where the generator is ahead of it.
    supervised: the generator was trained by `generator_supervised`; half of every batch then reproduces the real half,
        with `supervised_weight` times the difference as a further loss, and styles are mixed between levels only.
    mirror: mirror half of the images.
    augment: "ada" for adaptive augmentation (`pretrain.augment`), None for none.
    """
    if augment not in (None, "ada"):
        raise InputError(f"augment is {augment!r}: null or ada is expected")
    torch.manual_seed(0)
    generator = build(numbers).to(device)
    widths = {int(k): int(v) for k, v in numbers["discriminator"].items()}
    discriminator = Discriminator(numbers["size"], widths).to(device)
    if supervised:
        generator_supervised.freeze_to_rgb_styles(generator)
        generator_supervised.separate_levels(generator)
    discriminator_only = settle // batch if smaller is not None or supervised else 0  # steps
    ada = AdaptiveAugment()  # p is 0 until `watch` raises it
    if smaller is not None and not state.exists():
        smaller_state = torch.load(smaller, weights_only=True, map_location="cpu")
        grow(smaller_state, generator, discriminator)
        ada.load_state_dict(smaller_state.get("ada", {}) if augment else {})
    ema = Ema(generator)
    lazy = R1_EVERY / (R1_EVERY + 1)  # fewer, larger regularisation steps: the optimiser's rates follow (section 3.1)
    trained = [p for p in generator.parameters() if p.requires_grad]
    adam_g = torch.optim.Adam(trained, lr=lr, betas=(0.0, 0.99), fused=True)
    adam_d = torch.optim.Adam(discriminator.parameters(), lr=lr * lazy, betas=(0.0, 0.99**lazy), fused=True)
    rank, local = training.local_batch(batch)
    known = local // 2 if supervised else 0
    crossovers = torch.tensor(generator.layout.split if supervised else range(1, generator.num_ws), device=device)

    def random_w_plus(count: int) -> Tensor:
        """w_plus [count,L,D], some rows of two samples (style mixing)."""
        w = generator.mapping(torch.randn(2 * count, generator.style_dim, device=device)).view(2, count, -1)
        crossover = crossovers[torch.randint(len(crossovers), (count, 1, 1), device=device)]
        crossover = torch.where(torch.rand(count, 1, 1, device=device) < mixing, crossover, generator.num_ws)
        first = torch.arange(generator.num_ws, device=device)[None, :, None] < crossover
        return torch.where(first, w[0][:, None], w[1][:, None])

    def step(number: int) -> Metrics:
        torch.manual_seed(number * batch + rank)
        if number % 500 == 0:
            data.refresh()
        rows = torch.randint(len(data), (local,))
        real = F.adaptive_avg_pool2d(data.images(rows).to(device), numbers["size"])
        if mirror:
            real = mirrored(real)
        augmented = ada(real)
        discriminator.requires_grad_(True)
        with lowered(device):
            w_plus = random_w_plus(local - known)
            if supervised:
                w_plus = torch.cat([generator_supervised.codes(generator, list(data.people(rows[:known]))), w_plus])
            fakes = generator(w_plus, generator.random_noises(local))  # one forward pass serves both steps
            fake_logits, real_logits = discriminator(ada(fakes.detach())), discriminator(augmented)
            loss_d = F.softplus(fake_logits).mean() + F.softplus(-real_logits).mean()
        loss_d.backward()
        if number % R1_EVERY == 0:
            inputs = augmented.clone().requires_grad_(True)  # a resampling has no second derivative
            with lowered(device):
                logits = discriminator(inputs)
            (gradient,) = torch.autograd.grad(logits.sum(), inputs, create_graph=True)
            (gradient.square().sum(dim=(1, 2, 3)).mean() * (r1 / 2 * R1_EVERY)).backward()
        training.average_gradients(discriminator)
        adam_d.step()
        adam_d.zero_grad(set_to_none=True)
        metrics = {"loss_d": loss_d.item()}
        if number >= discriminator_only:
            discriminator.requires_grad_(False)
            with lowered(device):
                loss_g = F.softplus(-discriminator(ada(fakes))).mean()
            metrics["loss_g"] = loss_g.item()
            if supervised:
                error = generator_supervised.difference(fakes[:known].float(), real[:known])
                metrics["difference"] = error.item()
                loss_g = loss_g + supervised_weight * error
            loss_g.backward()
            training.average_gradients(generator)
            adam_g.step()
            adam_g.zero_grad(set_to_none=True)
            if supervised:
                generator_supervised.separate_levels(generator)
        ema.update(generator, min(0.5 ** (batch / ema_images), (1 + number) / (10 + number)))
        if augment:
            ada.watch(real_logits, batch)
            metrics["augmented"] = ada.p
        return metrics

    parts: dict[str, Any] = {"g": generator, "d": discriminator, "ema": ema, "adam_g": adam_g, "adam_d": adam_d}
    if augment:
        parts["ada"] = ada
    for done, metrics in fit(step, parts, images // batch, state, every=500, seconds=seconds):
        yield done * batch, metrics, ema.module  # type: ignore[misc]


@torch.no_grad()
def mean_w(generator: Generator, count: int = 4096, seed: int = 0) -> Tensor:
    """Mean [D] of w over `count` samples, the centre of truncation."""
    z = torch.randn(count, generator.style_dim, generator=torch.Generator().manual_seed(seed))
    return generator.mapping(z.to(generator.w_mean.device)).mean(dim=0)


def train(job: Training) -> None:
    """Train until `images` were seen or the time is over, and promote the result.

    Half the size comes first (`images_half_size` of the plan). With a renderer, both sizes first learn to reproduce it
    (`images_supervised` at full size; `perceptual` adds the loss of `pretrain.perceptual_features`). Photographs are
    mirrored and, where there are few, augmented, unless the plan says otherwise. Grids of images are written beside
    the states.
    """
    plan = job.plan
    data = job.training_images(plan.renders)
    if job.domain.renderer is None:
        few = "ada" if len(data) < FEW_IMAGES else None
        plan.options.update({"mirror": True, "augment": few, **plan.options})
    half, supervised = plan.options.pop("images_half_size", 0), plan.options.pop("images_supervised", 0)
    trait_gain, perceptual = plan.options.pop("trait_gain", {}), plan.options.pop("perceptual", None)
    start = time.monotonic()
    full = job.state({"g": "generator", "ema": "generator", "d": "discriminator"})
    half_job, supervised_job = job.named("generator-half"), job.named("generator-copy")
    at_half = half_job.state()

    def seconds_left() -> float | None:
        return None if job.seconds is None else max(0.0, job.seconds - (time.monotonic() - start))

    needs_half = half and not full.exists()
    if needs_half and not _train_half_size(half_job, plan, data, half, bool(supervised), seconds_left()):
        return  # out of time; the next call goes on
    if not full.exists() and supervised:
        options: dict[str, Any] = {"smaller": at_half if half else None}
        if perceptual:
            features_job = job.named("features")
            if not _train_features(features_job, data, perceptual["images"], seconds_left()):
                return
            features = perceptual_features.frozen(features_job.state_path)
            options |= {"features": features, "perceptual_weight": perceptual["weight"]}
        if not _train_supervised(supervised_job, plan, data, supervised, seconds_left(), options):
            return
        if training.first_process():
            generator_supervised.write_adversarial_state(plan.model, supervised_job.state_path, full, trait_gain)
        training.wait_for_first()
    loop = steps(
        plan.model,
        data,
        full,
        plan.images,
        seconds=seconds_left(),
        device=job.device,
        smaller=at_half if half and not supervised else None,
        supervised=bool(supervised),
        **plan.options,
    )
    job.follow(loop, plan.images, grids=full)
    if training.first_process():
        promote(job)


def _train_half_size(
    job: Training, plan: Plan, data: ImageChunks, images: int, supervised: bool, seconds: float | None
) -> bool:
    """Train at half the size; return whether `images` were seen. The state file is ready (`job.state`)."""
    model, state, batch = halved(plan.model), job.state_path, plan.options.get("batch", BATCH)
    if supervised:
        loop = generator_supervised.steps(
            model, data, state, images, batch, decay=False, seconds=seconds, device=job.device
        )
    else:
        loop = steps(model, data, state, images, seconds=seconds, device=job.device, **plan.options)
    job.follow(loop, images, "generator at half size", state)
    return job.finished_steps() >= images // batch


def _train_features(job: Training, data: ImageChunks, images: int, seconds: float | None) -> bool:
    """Train the network of the perceptual loss; return whether `images` were seen."""
    loop = perceptual_features.steps(data, job.state(), images, seconds=seconds, device=job.device)
    job.follow(loop, images, "perceptual features")
    return job.finished_steps() >= images // perceptual_features.BATCH


def _train_supervised(
    job: Training, plan: Plan, data: ImageChunks, images: int, seconds: float | None, options: dict[str, Any]
) -> bool:
    """Train on renders with known parameters at full size; return whether `images` were seen.

    options: further arguments of `generator_supervised.steps`.
    """
    state, batch = job.state(), plan.options.get("batch", BATCH)
    loop = generator_supervised.steps(
        plan.model, data, state, images, batch, seconds=seconds, device=job.device, **options
    )
    # Samples would show nothing before the mapping network is fitted; reproductions of unseen renders are written.
    evaluate = generator_supervised.evaluate_held_out(plan.model["size"], grid=state.with_suffix(".png"))
    job.follow(loop, images, "supervised generator", evaluate=evaluate)
    return job.finished_steps() >= images // batch


def halved(model: dict[str, Any]) -> dict[str, Any]:
    """Numbers that build the same networks for images of half the size."""
    size = model["size"] // 2
    widths = {
        key: {int(resolution): width for resolution, width in model[key].items() if int(resolution) <= size}
        for key in ("widths", "discriminator")
    }
    return {**model, **widths, "size": size}


def promote(job: Training) -> Path:
    """Write the averaged generator, with its mean w, to the domain's weights, and its discriminator beside it."""
    tensors, done = job.averaged()
    plan = job.plan
    generator = build(plan.model)
    generator.load_state_dict(tensors)
    tensors["w_mean"] = mean_w(generator)
    model = {key: value for key, value in plan.model.items() if key != "discriminator"}
    sizes = {"size": plan.model["size"], "discriminator": plan.model["discriminator"]}
    job.publish(job.part("d"), sizes, "discriminator", steps=done)
    known_codes = bool(plan.options.get("images_supervised"))  # renders have codes, which an encoder can learn
    return job.publish(tensors, model, steps=done, copied=known_codes)
