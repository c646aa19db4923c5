"""Supervised training of a generator on renders with known parameters, before any adversarial training. Ours.

A fixed orthonormal projection turns the parameters of a portrait into w, and the synthesis network learns to reproduce
the render from it. The mapping network is then fitted to turn normal noise into such w, and adversarial training can
start from both.

Every parameter belongs to one level of style convolutions (`PARAMETER_LEVELS`), and the convolutions of other levels do
not depend on it. Rows of w_plus can therefore be mixed as in StyleGAN: the coarse rows of one portrait, the medium rows
of a second and the fine rows of a third show a fourth, which the renderer can draw.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kernels.bias_act import GAIN
from pipeline import portraits, training
from pipeline.evaluation import metrics
from pipeline.models.stylegan2 import EqualLinear, Generator, build
from pipeline.runtime import files
from pipeline.runtime.errors import InputError
from pipeline.runtime.precision import lowered
from pipeline.storage import images as image_files
from pipeline.training import Ema, Metrics, fit
from pretrain import datasets
from pretrain.datasets import ImageChunks
from pretrain.perceptual_features import PerceptualFeatures
from pretrain.portrait_parameters import (
    continuous_count,
    mixed_parameters,
    parameter_count,
    parameter_gains,
    parameter_levels,
    parameters_of,
    parameters_of_noise,
    value_bounds,
)

POOLING = 1, 2, 4  # pixels per side that `difference` averages over
EDGE_WEIGHT, HUBER = 0.5, 0.25  # weight of the image gradients in `difference`; errors below HUBER are squared
SHIFT = 2.0  # mean of w; keeps the mapping network's last activation almost linear
# Units of the mapping network, see `fit_mapping`: slope of a step between two values of a trait, bound of a continuous
# parameter in deviations of z, and bias that keeps an activation linear.
STEP_SLOPE, CONTINUOUS_BOUND, LINEAR_BIAS = 10.0, 1.3, 16.0
REFRESH_EVERY = 500  # steps, after which chunks of renders finished since are read as well
HELD_OUT_IMAGES, GRID_COLUMNS = 256, 16  # portraits that no training uses; how many of them are written as images
LR_DECAY = 0.3  # last part of a training, in which the learning rate falls


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


@torch.no_grad()
def separate_levels(generator: Generator) -> None:
    """Make every style convolution depend on the parameters of its own level alone, by projecting its affine layer.

    Training on mixed rows would teach the same, slowly and with noise.
    """
    basis, level_of = projection(generator.style_dim), parameter_levels()
    for level, layer in zip(_row_levels(generator), generator.convolutions, strict=False):
        weight = layer.conv.modulation.weight
        columns = basis[:, level_of == level].to(weight.device)
        weight.copy_(weight @ columns @ columns.T)


def _row_levels(generator: Generator) -> list[int]:
    """Level of every row of w_plus; only the last toRGB layer reads the last row."""
    first, second = generator.layout.split
    return [int(row >= first) + int(row >= second) for row in range(generator.num_ws)]


def codes(generator: Generator, people: Sequence[portraits.Portrait], mixed: float = 0.0) -> Tensor:
    """w_plus [B,L,D] of portraits, with equal rows.

    mixed: fraction of the portraits, the first ones, whose rows are of `mixed_parameters` instead.
    """
    with torch.autocast("cpu", enabled=False):  # float32, like w of the mapping network
        w = mixed_parameters(parameters_of(people), mixed) @ projection(generator.style_dim).T + SHIFT
    return w[:, _row_levels(generator)].to(generator.w_mean.device)


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
    batch: int = 32,
    lr: float = 0.015,
    ema_images: float = 10_000,
    decay: bool = True,
    seconds: float | None = None,
    device: str = "cpu",
    smaller: Path | None = None,
    features: PerceptualFeatures | None = None,
    perceptual_weight: float = 0.0,
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
    features: network whose features are compared as well, with `perceptual_weight` times their difference.
    """
    torch.manual_seed(0)
    generator = build(model).to(device)
    freeze_to_rgb_styles(generator)
    separate_levels(generator)
    if smaller is not None and not state.exists():
        own, known = generator.state_dict(), torch.load(smaller, weights_only=True, map_location="cpu")["g"]
        generator.load_state_dict(own | {key: value for key, value in known.items() if own[key].shape == value.shape})
        nn.init.zeros_(generator.to_rgbs[-1].conv.weight)  # type: ignore[union-attr]
    ema = Ema(generator)
    synthesis = [p for name, p in generator.named_parameters() if p.requires_grad and not name.startswith("style.")]
    adam = torch.optim.Adam(synthesis, lr=lr, betas=(0.9, 0.99), fused=True)
    rank, local = training.local_batch(batch)
    if features is not None:
        features = features.to(device)

    def step(number: int) -> Metrics:
        torch.manual_seed(number * batch + rank)
        if number % REFRESH_EVERY == 0:
            data.refresh()
        rows = torch.randint(len(data), (local,))
        real = F.adaptive_avg_pool2d(data.images(rows).to(device), model["size"])
        remaining = 1 - number * batch / images
        factor = min(1.0, (number + 1) / 100) * (min(1.0, remaining / LR_DECAY + 0.03) if decay else 1.0)
        adam.param_groups[0]["lr"] = lr * factor
        with lowered(device):
            generated = generator(codes(generator, list(data.people(rows))), generator.random_noises(local))
        error = loss = difference(generated.float(), real)
        if features is not None:
            with lowered(device):
                loss = error + perceptual_weight * features.difference(generated, real)
        loss.backward()
        training.average_gradients(generator)
        adam.step()
        adam.zero_grad(set_to_none=True)
        separate_levels(generator)
        ema.update(generator, min(0.5 ** (batch / ema_images), (1 + number) / (10 + number)))
        return {"difference": error.item()}

    parts = {"g": generator, "ema": ema, "adam": adam}
    for done, losses in fit(step, parts, images // batch, state, every=500, seconds=seconds):
        yield done * batch, losses, ema.module  # type: ignore[misc]


def evaluate_held_out(
    resolution: int, count: int = HELD_OUT_IMAGES, grid: Path | None = None
) -> Callable[[nn.Module], Metrics]:
    """Return a function that measures how well a generator reproduces renders that no training uses.

    It returns the PSNR in dB, of codes with equal rows ("psnr") and with mixed ones ("psnr_mixed").

    resolution: of the generator, in pixels.
    grid: PNG in which it writes some of the renders, each above its reproduction from mixed rows.
    """
    people, real = datasets.unseen_portraits(count), datasets.unseen_renders(count, resolution)

    @torch.no_grad()
    def evaluate(generator: nn.Module) -> Metrics:
        assert isinstance(generator, Generator)
        with torch.random.fork_rng([]):
            torch.manual_seed(0)  # the same mixtures at every call
            inputs = {"psnr": codes(generator, people), "psnr_mixed": codes(generator, people, mixed=1.0)}
        values = {}
        for name, w_plus in inputs.items():
            generated = torch.cat([generator(part).cpu() for part in w_plus.split(32)])
            values[name] = metrics.psnr(generated, real).mean().item()
        if grid is not None:
            rows = [[*images[:GRID_COLUMNS].clamp(-1, 1)] for images in (real, generated)]
            image_files.save_png(grid, image_files.grid(rows))
        return values

    return evaluate


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
    for column, bounds in enumerate(value_bounds(), start=count):
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
