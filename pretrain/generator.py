"""Trains StyleGAN2: non-saturating loss, lazy R1, style mixing, moving average (Karras et al. 2020)."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kernels.upfirdn2d import binomial_kernel, upfirdn2d
from pipeline import training
from pipeline.models.stylegan2 import EqualLinear, Generator, build
from pipeline.runtime.errors import InputError
from pipeline.runtime.precision import lowered
from pipeline.storage.domains import Domain
from pipeline.training import Ema, Metrics, fit
from pretrain import common
from pretrain import generator_supervised as copies
from pretrain.ada import Augment, mirrored
from pretrain.pictures import Pictures

R1_EVERY = 16
FEW = 20_000  # photographs, below which they are augmented


class EqualConv(nn.Module):
    """Convolution with equalised learning rate, optional activation, optional blur and stride 2."""

    kernel: Tensor

    def __init__(self, inputs: int, outputs: int, size: int, down: bool = False, activate: bool = True):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs, size, size))
        self.bias = nn.Parameter(torch.zeros(outputs)) if activate else None
        self.scale, self.down, self.pad = 1 / math.sqrt(inputs * size**2), down, size // 2
        self.register_buffer("kernel", binomial_kernel(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        weight = (self.weight * self.scale).to(x.dtype)
        if self.down:
            grow = 2 + weight.shape[-1] - 1  # four filter taps; the output is half the size
            x = upfirdn2d(x, self.kernel, pad=((grow + 1) // 2, grow // 2))
            x = F.conv2d(x, weight, stride=2)
        else:
            x = F.conv2d(x, weight, padding=self.pad)
        if self.bias is None:
            return x
        return F.leaky_relu(x + self.bias.to(x.dtype)[:, None, None], 0.2) * math.sqrt(2)


class ResidualBlock(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv1 = EqualConv(inputs, inputs, 3)
        self.conv2 = EqualConv(inputs, outputs, 3, down=True)
        self.skip = EqualConv(inputs, outputs, 1, down=True, activate=False)

    def forward(self, x: Tensor) -> Tensor:
        return (self.conv2(self.conv1(x)) + self.skip(x)) / math.sqrt(2)


class Discriminator(nn.Module):
    """Residual discriminator with the spread of the batch as one more channel. widths: resolution -> channels."""

    def __init__(self, size: int, widths: dict[int, int], group: int = 4) -> None:
        super().__init__()
        resolutions = [2**k for k in range(int(math.log2(size)), 2, -1)]
        self.from_rgb = EqualConv(3, widths[size], 1)
        self.blocks = nn.Sequential(*(ResidualBlock(widths[r], widths[r // 2]) for r in resolutions))
        self.conv = EqualConv(widths[4] + 1, widths[4], 3)
        self.linear = EqualLinear(widths[4] * 16, widths[4], activate=True)
        self.out = EqualLinear(widths[4], 1)
        self.group = group

    def forward(self, images: Tensor) -> Tensor:
        """images [B,3,R,R] -> logits [B]."""
        x = self.blocks(self.from_rgb(images.contiguous(memory_format=torch.channels_last))).float()
        group = math.gcd(len(x), self.group)
        spread = x.view(group, -1, *x.shape[1:]).var(dim=0, unbiased=False).add(1e-8).sqrt().mean(dim=(1, 2, 3))
        x = torch.cat([x, spread.repeat(group)[:, None, None, None].expand(-1, 1, *x.shape[2:])], dim=1)
        return self.out(self.linear(self.conv(x).float().flatten(1)))[:, 0]


def grow(smaller: dict[str, Any], generator: Generator, discriminator: Discriminator) -> None:
    """Take over what networks of half the size have learnt; only the new resolution starts from nothing.

    The new toRGB starts at zero, so that the first pictures are the smaller ones, enlarged.
    """
    own = generator.state_dict()
    own.update({key: value for key, value in smaller["ema"].items() if key in own and value.shape == own[key].shape})
    generator.load_state_dict(own)
    nn.init.zeros_(generator.to_rgbs[-1].conv.weight)  # type: ignore[union-attr]
    below = {key: value for key, value in smaller["d"].items() if not key.startswith(("from_rgb.", "blocks."))}
    for key, value in smaller["d"].items():
        if key.startswith("blocks."):
            _, index, rest = key.split(".", 2)
            below[f"blocks.{int(index) + 1}.{rest}"] = value
    discriminator.load_state_dict({**discriminator.state_dict(), **below})


def steps(
    numbers: dict,
    data: Pictures,
    state: Path,
    images: int,
    batch: int = 16,
    lr: float = 0.0025,
    r1: float = 0.1,
    mixing: float = 0.5,
    ema_images: float = 10_000,
    seconds: float | None = None,
    device: str = "cpu",
    smaller: Path | None = None,
    settle: int = 6_000,
    copied: bool = False,
    copying: float = 20.0,
    mirror: bool = False,
    augment: str | None = None,
) -> Iterator[tuple[int, Metrics, Generator]]:
    """Yield (images seen, losses, averaged generator); goes on from `state` when it exists.

    numbers: size, style_dim, widths, n_mlp, discriminator (widths); pictures of `data` are averaged down to size.
    r1: gamma of gamma/2 |grad D(real)|^2. ema_images: half life of the average, in images.
    smaller: the state of the same networks at half the size, to grow from. settle: images that the discriminator
    learns from alone where the generator knows more than it does. copied: the generator comes from a copier; half of
    every batch are then copies of the real half, which also count by their `copying` times difference.
    mirror: show half of the pictures from right to left. augment: "ada" for what few pictures need (`pretrain.ada`).
    """
    if augment not in (None, "ada"):
        raise InputError(f"augment is {augment!r}: null or ada is expected")
    torch.manual_seed(0)
    generator = build(numbers).to(device)
    widths = {int(k): int(v) for k, v in numbers["discriminator"].items()}
    discriminator = Discriminator(numbers["size"], widths).to(device)
    if copied:
        copies.colour_by_features(generator)
    alone = settle // batch if smaller is not None or copied else 0
    ada = Augment()  # which does nothing until it has watched
    if smaller is not None and not state.exists():
        below = torch.load(smaller, weights_only=True, map_location="cpu")
        grow(below, generator, discriminator)
        ada.load_state_dict(below.get("ada", {}) if augment else {})
    ema = Ema(generator)
    lazy = R1_EVERY / (R1_EVERY + 1)  # fewer, larger regularisation steps: the optimiser's rates follow (section 3.1)
    learnt = [p for p in generator.parameters() if p.requires_grad]
    adam_g = torch.optim.Adam(learnt, lr=lr, betas=(0.0, 0.99), fused=True)
    adam_d = torch.optim.Adam(discriminator.parameters(), lr=lr * lazy, betas=(0.0, 0.99**lazy), fused=True)
    rank, share = training.share(batch)
    told = share // 2 if copied else 0

    def fake(count: int) -> Tensor:
        w = generator.mapping(torch.randn(2 * count, generator.style_dim, device=device)).view(2, count, -1)
        cut = torch.randint(1, generator.num_ws, (count, 1, 1), device=device)
        cut = torch.where(torch.rand(count, 1, 1, device=device) < mixing, cut, generator.num_ws)
        first = torch.arange(generator.num_ws, device=device)[None, :, None] < cut
        return torch.where(first, w[0][:, None], w[1][:, None])

    def step(number: int) -> Metrics:
        torch.manual_seed(number * batch + rank)
        if number % 500 == 0:
            data.refresh()
        rows = torch.randint(len(data), (share,))
        real = F.adaptive_avg_pool2d(data.images(rows).to(device), numbers["size"])
        if mirror:
            real = mirrored(real)
        seen = ada(real)
        discriminator.requires_grad_(True)
        with lowered(device):
            w_plus = fake(share - told)
            if copied:
                w_plus = torch.cat([copies.codes(generator, list(data.people(rows[:told]))), w_plus])
            fakes = generator(w_plus, generator.random_noises(share))  # one forward pass serves both steps
            of_fakes, of_real = discriminator(ada(fakes.detach())), discriminator(seen)
            loss_d = F.softplus(of_fakes).mean() + F.softplus(-of_real).mean()
        loss_d.backward()
        if number % R1_EVERY == 0:
            watched = seen.clone().requires_grad_(True)  # as changed: a resampling has no second derivative
            with lowered(device):
                logits = discriminator(watched)
            (gradient,) = torch.autograd.grad(logits.sum(), watched, create_graph=True)
            (gradient.square().sum(dim=(1, 2, 3)).mean() * (r1 / 2 * R1_EVERY)).backward()
        training.average_gradients(discriminator)
        adam_d.step()
        adam_d.zero_grad(set_to_none=True)
        metrics = {"loss_d": loss_d.item()}
        if number >= alone:
            discriminator.requires_grad_(False)
            with lowered(device):
                loss_g = F.softplus(-discriminator(ada(fakes))).mean()
            metrics["loss_g"] = loss_g.item()
            if copied:
                wrong = copies.difference(fakes[:told].float(), real[:told])
                metrics["difference"] = wrong.item()
                loss_g = loss_g + copying * wrong
            loss_g.backward()
            training.average_gradients(generator)
            adam_g.step()
            adam_g.zero_grad(set_to_none=True)
        ema.update(generator, min(0.5 ** (batch / ema_images), (1 + number) / (10 + number)))
        if augment:
            ada.watch(of_real, batch)
            metrics["augmented"] = ada.p
        return metrics

    parts: dict[str, Any] = {"g": generator, "d": discriminator, "ema": ema, "adam_g": adam_g, "adam_d": adam_d}
    if augment:
        parts["ada"] = ada
    for done, metrics in fit(step, parts, images // batch, state, every=500, seconds=seconds):
        yield done * batch, metrics, ema.module  # type: ignore[misc]


@torch.no_grad()
def mean_w(generator: Generator, count: int = 4096, seed: int = 0) -> Tensor:
    """The average of `count` mapped codes [D], the centre of truncation."""
    z = torch.randn(count, generator.style_dim, generator=torch.Generator().manual_seed(seed))
    return generator.mapping(z.to(generator.w_mean.device)).mean(dim=0)


def train(
    domain: Domain,
    root: Path,
    minutes: float | None = None,
    images: int | None = None,
    resume: bool = True,
    device: str = "cpu",
) -> None:
    """Train until `images` were seen or `minutes` are over; promote.

    Half the size comes first, `images_half_size` of the plan. Where pictures are drawn, both sizes first copy the
    renderer (`images_copied` at full size). Photographs are mirrored and, where there are few, augmented, unless the
    plan says otherwise. A grid of samples is drawn beside the state every 32,000 images.
    """
    plan = common.plan(domain, "generator", images)
    data = common.pictures(domain, root, plan.renders)
    if domain.renderer is None:
        few = "ada" if len(data) < FEW else None
        plan.options.update({"mirror": True, "augment": few, **plan.options})
    half, copied = plan.options.pop("images_half_size", 0), plan.options.pop("images_copied", 0)
    amplified = plan.options.pop("amplified", {})
    begun, batch = time.monotonic(), plan.options.get("batch", 16)
    parts = {"g": "generator", "ema": "generator", "d": "discriminator"}
    full = common.state(domain, root, "generator", resume, parts)
    at_half = common.state(domain, root, "generator-half", resume)

    def left() -> float | None:
        return None if minutes is None else max(0.0, 60 * minutes - (time.monotonic() - begun))

    if not full.exists() and half:
        part, label = halved(plan.model), "generator at half size"
        if copied:
            loop = copies.steps(part, data, at_half, half, batch, fade=False, seconds=left(), device=device)
        else:
            loop = steps(part, data, at_half, half, seconds=left(), device=device, **plan.options)
        common.follow(loop, half, label, at_half)
        if common.progress_of(at_half) < half // batch:
            return  # out of time; the next call goes on
    if not full.exists() and copied:
        state = common.state(domain, root, "generator-copy", resume)
        smaller = at_half if half else None
        loop = copies.steps(plan.model, data, state, copied, batch, seconds=left(), device=device, smaller=smaller)
        common.follow(loop, copied, "generator copying", state)
        if common.progress_of(state) < copied // batch:
            return
        if training.first_process():
            copies.hand_over(plan.model, state, full, amplified)
        training.wait_for_first()
    loop = steps(
        plan.model,
        data,
        full,
        plan.images,
        seconds=left(),
        device=device,
        smaller=at_half if half and not copied else None,
        copied=bool(copied),
        **plan.options,
    )
    common.follow(loop, plan.images, "generator", full)
    if training.first_process():
        promote(domain, root)


def halved(model: dict[str, Any]) -> dict[str, Any]:
    """The numbers of the same networks for pictures of half the size."""
    size = model["size"] // 2
    below = {
        key: {int(resolution): width for resolution, width in model[key].items() if int(resolution) <= size}
        for key in ("widths", "discriminator")
    }
    return {**model, **below, "size": size}


def promote(domain: Domain, root: Path) -> Path:
    """Write the averaged generator, with its mean w, to the domain's weights, and its discriminator beside it."""
    tensors, done = common.averaged(domain, root, "generator")
    plan = common.plan(domain, "generator")
    generator = build(plan.model)
    generator.load_state_dict(tensors)
    tensors["w_mean"] = mean_w(generator)
    model = {key: value for key, value in plan.model.items() if key != "discriminator"}
    judge = {"size": plan.model["size"], "discriminator": plan.model["discriminator"]}
    common.publish(domain, root, "discriminator", common.part(domain, root, "generator", "d"), judge, steps=done)
    copied = bool(plan.options.get("images_copied"))  # then people have known codes, which an encoder can learn
    return common.publish(domain, root, "generator", tensors, model, steps=done, copied=copied)
