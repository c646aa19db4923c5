"""Training of e4e (Tov et al. 2021) for a frozen generator, on its samples and on images of the domain.

Samples have known w, a target for codes; of other images only the reconstruction is one. Features of the generator's
discriminator, which was trained on this domain, stand in for LPIPS, whose network was trained on photographs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline import training
from pipeline.models.e4e import Encoder
from pipeline.models.stylegan2 import EqualLinear, Generator
from pipeline.networks import Networks
from pipeline.runtime.precision import lowered
from pipeline.storage import weights
from pipeline.training import Ema, Metrics, fit
from pretrain import generator_supervised
from pretrain.common import Training
from pretrain.datasets import ImageChunks
from pretrain.discriminator import Discriminator

Embed = Callable[[Tensor], Tensor]


class LatentDiscriminator(nn.Sequential):
    """Discriminator between rows [N,D] of w+ from the mapping network and from the encoder; logits [N] (e4e, 3.2)."""

    def __init__(self, style_dim: int) -> None:
        hidden = (EqualLinear(style_dim, style_dim, activate=True) for _ in range(3))
        super().__init__(*hidden, EqualLinear(style_dim, 1))

    def forward(self, w: Tensor) -> Tensor:
        return super().forward(w)[:, 0]


def feature_maps(discriminator: Discriminator, images: Tensor) -> list[Tensor]:
    """Features of the discriminator at R/2, R/4 and R/8, of unit length per pixel."""
    x, maps = discriminator.from_rgb(images.contiguous(memory_format=torch.channels_last)), []
    for block in discriminator.blocks[:3]:
        x = block(x)
        maps.append(F.normalize(x.float(), dim=1))
    return maps


def steps(
    numbers: dict[str, Any],
    generator: Generator,
    discriminator: Discriminator,
    identity: Embed | None,
    data: ImageChunks,
    state: Path,
    images: int,
    batch: int = 32,
    lr: float = 1e-3,
    progressive: tuple[int, int] = (40_000, 4_000),
    weights: dict[str, float] | None = None,
    seconds: float | None = None,
    device: str = "cpu",
    known_codes: bool = False,
    codes_first: int = 0,
) -> Iterator[tuple[int, Metrics, Encoder]]:
    """Yield (images seen, losses, averaged encoder).

    Half of every batch are samples of the generator, half training images.

    numbers: that build the encoder.
    generator, discriminator: frozen; features of the latter compare images.
    identity: network of the identity loss; None for no such loss.
    data: training images.
    state: file that the training goes on from when it exists.
    images: images to see in all.
    progressive: images before the second row of w+ gets its own difference, then images per further row (e4e).
    weights: of the losses pixel, feature, latent, identity, delta, adversarial.
    seconds: time limit; None for no limit.
    known_codes: renders have known codes (`pretrain.generator_supervised`), which are a target as well.
    codes_first: images for which the known codes are the only target, which is far cheaper.
    """
    scale = {"pixel": 1.0, "feature": 1.0, "latent": 0.5, "identity": 0.1, "delta": 2e-4, "adversarial": 0.02}
    scale |= weights or {}
    scale["identity"] *= identity is not None
    torch.manual_seed(0)
    encoder = Encoder(**numbers).to(device)
    encoder.latent_avg.copy_(generator.w_mean.expand_as(encoder.latent_avg))
    critic = LatentDiscriminator(generator.style_dim).to(device)
    ema = Ema(encoder)
    for network in (generator, discriminator):
        network.eval().requires_grad_(False)
    adam = torch.optim.AdamW(encoder.parameters(), lr=lr, weight_decay=0.01, fused=True)
    adam_critic = torch.optim.Adam(critic.parameters(), lr=2e-4, betas=(0.0, 0.99), fused=True)
    with torch.no_grad():
        variance = generator.mapping(torch.randn(4096, generator.style_dim, device=device)).var(dim=0).mean()  # of w

    rank, local = training.local_batch(batch)

    def codes_step(rows: Tensor) -> Metrics:
        """Train on the known codes alone."""
        with lowered(device):
            codes = encoder(data.images(rows).to(device), 0).float()
        loss = F.mse_loss(codes, generator_supervised.codes(generator, list(data.people(rows)))) / variance
        loss.backward()
        training.average_gradients(encoder)
        adam.step()
        adam.zero_grad(set_to_none=True)
        return {"latent": loss.item()}

    def step(number: int) -> Metrics:
        torch.manual_seed(number * batch + rank)
        if number % 500 == 0:
            data.refresh()
        seen, half = number * batch, local // 2
        rate = lr * max(0.02, 1 - seen / images)
        adam.param_groups[0]["lr"] = rate
        if known_codes and seen < codes_first:
            metrics = codes_step(torch.randint(len(data), (local,)))
            ema.update(encoder, min(0.5 ** (batch / 10_000), (1 + number) / (10 + number)))
            return metrics
        stage = max(0, (seen - progressive[0]) // progressive[1] + 1) if seen >= progressive[0] else 0
        rows = torch.randint(len(data), (half,))
        real = data.images(rows).to(device)
        with torch.no_grad(), lowered(device):
            w = generator.mapping(torch.randn(half, generator.style_dim, device=device)).float()
            fakes = generator(generator.repeat(w)).float().clamp(-1, 1)
            known = generator.repeat(w)
            if known_codes:
                known = torch.cat([known, generator_supervised.codes(generator, list(data.people(rows)))])
        target = torch.cat([fakes, real])
        with lowered(device):
            codes = encoder(target, stage).float()
            output = generator(codes)
            maps = (feature_maps(discriminator, images) for images in (output, target))
            distances = [1 - (a * b).sum(1).mean() for a, b in zip(*maps, strict=True)]
            if identity is not None and scale["identity"]:
                similarity = (identity(output) * identity(target)).sum(1).mean()
            else:
                similarity = torch.ones(())
        differences = codes[:, 1:] - codes[:, :1]
        terms = {
            "pixel": F.mse_loss(output.float(), target) + F.l1_loss(output.float(), target),
            "feature": torch.stack(distances).sum(),
            "latent": F.mse_loss(codes[: len(known)], known) / variance,
            "identity": 1 - similarity,
            "delta": differences.norm(dim=2).sum(dim=1).mean(),
            "adversarial": F.softplus(-critic(codes.flatten(0, 1))).mean(),
        }
        sum(scale[name] * value for name, value in terms.items()).backward()  # type: ignore[union-attr]
        training.average_gradients(encoder)
        torch.nn.utils.clip_grad_norm_(encoder.parameters(), 5.0)
        adam.step()
        adam.zero_grad(set_to_none=True)
        critic.zero_grad(set_to_none=True)
        with torch.no_grad():
            mapped = generator.mapping(torch.randn(codes[:, :, 0].numel(), generator.style_dim, device=device))
        (F.softplus(critic(codes.detach().flatten(0, 1))).mean() + F.softplus(-critic(mapped)).mean()).backward()
        training.average_gradients(critic)
        adam_critic.step()
        adam_critic.zero_grad(set_to_none=True)
        ema.update(encoder, min(0.5 ** (batch / 10_000), (1 + number) / (10 + number)))
        psnr = -10 * torch.log10((output[half:].float().clamp(-1, 1) - real).div(2).square().mean(dim=(1, 2, 3))).mean()
        return {name: value.item() for name, value in terms.items()} | {"psnr_real": psnr.item()}

    parts = {"encoder": encoder, "critic": critic, "ema": ema, "adam": adam, "adam_critic": adam_critic}
    for done, metrics in fit(step, parts, images // batch, state, every=200, seconds=seconds):
        yield done * batch, metrics, ema.module  # type: ignore[misc]


def train(job: Training) -> None:
    """Train until `images` were seen or the time is over, going on from an earlier state, and promote the result."""
    plan = job.plan
    networks = Networks(job.domain, job.root, job.device)
    loop = steps(
        plan.model,
        networks.generator,
        discriminator_of(job).to(job.device),
        networks.identity if networks.path("identity").exists() else None,
        job.training_images(plan.renders),
        job.state({"encoder": "encoder", "ema": "encoder"}),
        plan.images,
        seconds=job.seconds,
        device=job.device,
        known_codes=weights.read_meta(networks.path("generator")).get("copied", False),
        **plan.options,
    )
    job.follow(loop, plan.images)
    if training.first_process():
        promote(job)


def discriminator_of(job: Training) -> Discriminator:
    """Discriminator that the generator was trained against; where it is missing, one of random weights.

    Random features measure edges and colours too, less well.
    """
    size, path = job.domain.resolution, job.promoted("discriminator")
    if path.exists():
        tensors, meta = weights.load(path)
        discriminator = Discriminator(size, _by_resolution(meta["model"]["discriminator"]))
        discriminator.load_state_dict(tensors)
        return discriminator
    print("the generator has no discriminator: images are compared by features of random weights")
    plan = job.domain.defaults.get("pretrain", {}).get("generator") or {}
    widths = {2**k: min(128, 2 ** (12 - k)) for k in range(2, size.bit_length())}  # for an imported generator
    torch.manual_seed(0)  # the same in every process, and after a restart
    return Discriminator(size, _by_resolution(plan.get("model", {}).get("discriminator", widths)))


def _by_resolution(widths: Mapping[Any, int]) -> dict[int, int]:
    """Widths with integer keys, which JSON and YAML turn into strings."""
    return {int(resolution): width for resolution, width in widths.items()}


@torch.no_grad()
def far_error(encoder: Encoder, generator: Generator, real: Tensor) -> float:
    """99th percentile of the inversion error (mean squared, pixels in [0,1]) over unseen images [N,3,R,R]."""
    output = torch.cat([generator(encoder(part)) for part in real.split(64)]).clamp(-1, 1)
    return ((output - real) / 2).square().mean(dim=(1, 2, 3)).quantile(0.99).item()


def promote(job: Training) -> Path:
    """Write the averaged network to the domain's weights, with the error above which an image counts as far."""
    tensors, _ = job.averaged()
    encoder = Encoder(**job.plan.model).eval()
    encoder.load_state_dict(tensors)
    far = round(far_error(encoder, Networks(job.domain, job.root).generator, job.unseen_images()), 5)
    return job.publish_average(far_error=far)
