"""Supervised training of a generator on renders with known parameters, before any adversarial training. Ours.

A fixed orthonormal projection turns the parameters of a portrait into w, and the synthesis network learns to reproduce
the render from it. The mapping network is then fitted to turn normal noise into such w, and adversarial training can
start from both.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import astuple
from functools import cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kernels.bias_act import GAIN
from pipeline import portraits, training
from pipeline.models.stylegan2 import EqualLinear, Generator, build, pixel_norm
from pipeline.portraits.traits import FREQUENCIES
from pipeline.runtime import files
from pipeline.runtime.errors import InputError, nearest
from pipeline.runtime.precision import lowered
from pipeline.training import Ema, Metrics, fit
from pretrain.datasets import ImageChunks

POOLING = 1, 2, 4  # pixels per side that `difference` averages over
EDGE_WEIGHT, HUBER = 0.5, 0.25  # weight of the image gradients in `difference`; errors below HUBER are squared
SHIFT = 2.0  # mean of w; keeps the mapping network's last activation almost linear
# Units of the mapping network, see `fit_mapping`: slope of a step between two values of a trait, bound of a continuous
# parameter in deviations of z, and bias that keeps an activation linear.
STEP_SLOPE, CONTINUOUS_BOUND, LINEAR_BIAS = 10.0, 1.3, 16.0
LR_DECAY = 0.3  # last part of a training, in which the learning rate falls


@cache
def parameter_count() -> int:
    """Number of parameters of a portrait, P: the continuous ones, and a one-hot group per trait."""
    return sum(map(len, FREQUENCIES.values())) + continuous_count()


@cache
def continuous_count() -> int:
    """Number of continuous parameters of a portrait."""
    return len(_continuous(portraits.sample(0)))


def _continuous(person: portraits.Portrait) -> list[float]:
    """Continuous parameters of a portrait, each 0..1."""
    traits = (getattr(person.traits, name).u for name in FREQUENCIES)
    return [*astuple(person.identity), *astuple(person.look), *traits]


def parameters_of(people: Sequence[portraits.Portrait]) -> Tensor:
    """Parameters [B,P] of portraits, each of mean 0 and variance 1 over the renderer's distribution."""
    continuous = torch.tensor([_continuous(person) for person in people])
    values = [
        [portraits.ATTRIBUTES[n].index(getattr(person.traits, n).value) for n in FREQUENCIES] for person in people
    ]
    return _standardised(continuous, torch.tensor(values))


def parameters_of_noise(z: Tensor) -> Tensor:
    """Parameters [B,P] of the portraits that normal noise z [B,D] is mapped to, distributed as the renderer's.

    One coordinate of z decides one continuous parameter by its quantile, or one trait by the interval that it lies in.
    As in a mapping network, only the direction of z counts.
    """
    z, count, values = pixel_norm(z), continuous_count(), []
    for column, bounds in zip(z.T[count:], _value_bounds(), strict=False):
        values.append(torch.bucketize(column.contiguous(), bounds.to(z.device)))
    return _standardised(torch.special.ndtr(z[:, :count]), torch.stack(values, dim=1))


def _value_bounds() -> list[Tensor]:
    """Per trait, quantiles of the normal distribution that separate its values."""
    return [
        torch.special.ndtri(torch.tensor(list(chances.values())).cumsum(0)[:-1]) for chances in FREQUENCIES.values()
    ]


def _standardised(continuous: Tensor, values: Tensor) -> Tensor:
    """Parameters [B,P] of continuous ones in 0..1 and indices of traits' values [B,traits]."""
    parts = [(continuous - 0.5) * math.sqrt(12)]
    for column, frequencies in zip(values.T, FREQUENCIES.values(), strict=True):
        chance = torch.tensor(list(frequencies.values()), device=continuous.device)
        parts.append((F.one_hot(column, len(frequencies)) - chance) / (chance * (1 - chance)).sqrt())
    return torch.cat(parts, dim=1)


@cache
def projection(dim: int) -> Tensor:
    """Orthonormal columns [dim,P] that turn parameters into w; always the same, so no file holds them.

    Raises InputError where `dim` is below P: noise of so few dimensions cannot decide every parameter.
    """
    if parameter_count() > dim:
        raise InputError(f"style_dim is {dim}: portraits need at least {parameter_count()}")
    return nn.init.orthogonal_(torch.empty(dim, parameter_count()), generator=torch.Generator().manual_seed(1))


def freeze_to_rgb_styles(generator: Generator) -> None:
    """Make the toRGB layers independent of w.

    An edit of s could not change what they learn of w, since they are given the unedited w_plus: hair stayed blond.
    """
    for layer in (generator.to_rgb1, *generator.to_rgbs):
        nn.init.zeros_(layer.conv.modulation.weight.requires_grad_(False))  # type: ignore[union-attr]


def codes(generator: Generator, people: Sequence[portraits.Portrait]) -> Tensor:
    """w_plus [B,L,D] of portraits, with equal rows."""
    with torch.autocast("cpu", enabled=False):  # float32, like w of the mapping network
        w = parameters_of(people) @ projection(generator.style_dim).T + SHIFT
    return generator.repeat(w.to(generator.w_mean.device))


def difference(generated: Tensor, real: Tensor) -> Tensor:
    """Smooth L1 loss between images [B,3,R,R] at several scales and of their gradients.

    Small errors are squared: with absolute errors, tiny ones of wide areas outweigh the eyes.
    """
    levels = (F.smooth_l1_loss(F.avg_pool2d(generated, k), F.avg_pool2d(real, k), beta=HUBER) for k in POOLING)
    edges = (F.smooth_l1_loss(generated.diff(dim=axis), real.diff(dim=axis), beta=HUBER) for axis in (2, 3))
    return torch.stack([*levels]).mean() + EDGE_WEIGHT * torch.stack([*edges]).sum()


def steps(
    model: dict[str, Any],
    data: ImageChunks,
    state: Path,
    images: int,
    batch: int = 16,
    lr: float = 0.004,
    ema_images: float = 10_000,
    decay: bool = True,
    seconds: float | None = None,
    device: str = "cpu",
    smaller: Path | None = None,
) -> Iterator[tuple[int, Metrics, Generator]]:
    """Yield (images seen, {"difference"}, averaged generator).

    model: numbers that build the generator.
    data: renders, averaged down to the generator's size.
    state: file that the training goes on from when it exists.
    images: images to see in all.
    ema_images: half life of the weight average, in images.
    decay: let the learning rate fall over the last part.
    seconds: time limit; None for no limit.
    smaller: state of the same training at half the size, to start from; the toRGB layer of the new resolution starts at
        zero.
    """
    torch.manual_seed(0)
    generator = build(model).to(device)
    freeze_to_rgb_styles(generator)
    if smaller is not None and not state.exists():
        own, known = generator.state_dict(), torch.load(smaller, weights_only=True, map_location="cpu")["g"]
        generator.load_state_dict(own | {key: value for key, value in known.items() if own[key].shape == value.shape})
        nn.init.zeros_(generator.to_rgbs[-1].conv.weight)  # type: ignore[union-attr]
    ema = Ema(generator)
    synthesis = [p for name, p in generator.named_parameters() if p.requires_grad and not name.startswith("style.")]
    adam = torch.optim.Adam(synthesis, lr=lr, betas=(0.9, 0.99), fused=True)
    rank, local = training.local_batch(batch)

    def step(number: int) -> Metrics:
        torch.manual_seed(number * batch + rank)
        rows = torch.randint(len(data), (local,))
        real = F.adaptive_avg_pool2d(data.images(rows).to(device), model["size"])
        remaining = 1 - number * batch / images
        factor = min(1.0, (number + 1) / 100) * (min(1.0, remaining / LR_DECAY + 0.03) if decay else 1.0)
        adam.param_groups[0]["lr"] = lr * factor
        with lowered(device):
            generated = generator(codes(generator, list(data.people(rows))), generator.random_noises(local))
        loss = difference(generated.float(), real)
        loss.backward()
        training.average_gradients(generator)
        adam.step()
        adam.zero_grad(set_to_none=True)
        ema.update(generator, min(0.5 ** (batch / ema_images), (1 + number) / (10 + number)))
        return {"difference": loss.item()}

    parts = {"g": generator, "ema": ema, "adam": adam}
    for done, metrics in fit(step, parts, images // batch, state, every=500, seconds=seconds):
        yield done * batch, metrics, ema.module  # type: ignore[misc]


def parameter_gains(trait_gain: Mapping[str, float]) -> Tensor:
    """Factors [P] on the parameters. trait_gain: trait -> factor. Raises InputError for unknown traits."""
    if unknown := sorted(set(trait_gain) - set(FREQUENCIES)):
        raise InputError(f"trait_gain: there is no trait {', '.join(unknown)}{nearest(unknown[0], FREQUENCIES)}")
    factors = [torch.full((len(values),), float(trait_gain.get(name, 1.0))) for name, values in FREQUENCIES.items()]
    return torch.cat([torch.ones(continuous_count()), *factors])


@torch.no_grad()
def fit_mapping(generator: Generator, trait_gain: Mapping[str, float] | None = None, count: int = 50_000) -> float:
    """Set the mapping network so that noise becomes w of `parameters_of_noise`; return the error, in variances of w.

    The first two layers clamp one coordinate of z each: softly for a continuous parameter, as a steep step between two
    values of a trait; traits' coordinates also pass through unclamped. Layers in between are the identity. The last one
    is solved by least squares.

    trait_gain: trait -> factor on its parameters, above 1 where the synthesis network renders it too weakly.
    count: samples of the least squares.
    Raises InputError where the network has fewer than three layers, or too few units.
    """
    layers: list[Any] = [*generator.style[1:]]
    if len(layers) < 3:
        raise InputError(f"n_mlp is {len(layers)}: a mapping network of portraits needs three layers or more")
    first, second, *others, last = layers
    dim, device = generator.style_dim, generator.w_mean.device
    units = _mapping_units()
    if len(units) > dim:
        raise InputError(f"style_dim is {dim}: a mapping network of portraits needs at least {len(units)}")
    weights, biases = torch.zeros(2, dim, dim), torch.zeros(2, dim)
    for unit, (column, slope, bias, clamped) in enumerate(units):
        weights[0, unit, column], biases[0, unit] = slope, bias
        upper = 2 * (CONTINUOUS_BOUND if slope == 1 else 1.0)
        weights[1, unit, unit], biases[1, unit] = (-1 / GAIN, upper) if clamped else (1 / GAIN, 0.0)
    _set(first, weights[0], biases[0])
    _set(second, weights[1], biases[1])
    for layer in others:
        _set(layer, torch.eye(dim) / GAIN, torch.full((dim,), LINEAR_BIAS))
    z = torch.randn(count, dim, generator=torch.Generator().manual_seed(0)).to(device)
    hidden = generator.style[:-1](z)
    hidden = torch.cat([hidden, torch.ones_like(hidden[:, :1])], dim=1)
    w = (parameters_of_noise(z) * parameter_gains(trait_gain or {}).to(device)) @ projection(dim).T.to(device) + SHIFT
    solved = torch.linalg.lstsq(hidden.double().cpu(), w.double().cpu() / GAIN, driver="gelsd").solution.T.float()
    _set(last, solved[:, :-1], solved[:, -1])
    return ((generator.style(z) - w).square().mean() / w.var(dim=0).mean()).item()


def _mapping_units() -> list[tuple[int, float, float, bool]]:
    """(coordinate of z, slope, bias, whether clamped) of each unit of the first layer."""
    count = continuous_count()
    units = [(column, 1.0, CONTINUOUS_BOUND, True) for column in range(count)]
    for column, bounds in enumerate(_value_bounds(), start=count):
        steps_between = ((column, STEP_SLOPE, 1 - STEP_SLOPE * bound, True) for bound in bounds.tolist())
        units += [(column, 1.0, LINEAR_BIAS, False), *steps_between]
    return units


def _set(layer: EqualLinear, weight: Tensor, bias: Tensor) -> None:
    """Set weight and bias as they act, without their learning-rate factors."""
    layer.weight.copy_(weight / layer.scale)
    layer.bias.copy_(bias / layer.lr_mul)


def write_adversarial_state(
    model: dict[str, Any], state: Path, out: Path, trait_gain: Mapping[str, float] | None = None
) -> None:
    """Fit the mapping network, and write the state that adversarial training starts from.

    model: numbers that build the generator.
    state: finished state of `steps`.
    out: file to write.
    trait_gain: as in `fit_mapping`.
    """
    generator = build(model)
    generator.load_state_dict(torch.load(state, weights_only=True, map_location="cpu")["ema"])
    print(f"mapping: {fit_mapping(generator, trait_gain):.3f} of the variance of w is not reproduced", flush=True)
    tensors = generator.state_dict()
    with files.replacing(out) as partial:
        torch.save({"g": tensors, "ema": tensors, "step": 0, "whole": False}, partial)
