"""Teaches a generator to copy a renderer, before it meets a discriminator.

Where pictures are drawn from known numbers, pairs of numbers and picture can teach what a discriminator must find out.
The numbers enter where w does, turned by a fixed rotation; once the synthesis draws what it is told, the mapping
network is set to turn normal noise into such w. An adversarial training can follow.
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
from pipeline.portraits.traits import SHARES
from pipeline.runtime import files
from pipeline.runtime.errors import InputError, nearest
from pipeline.runtime.precision import lowered
from pipeline.training import Ema, Metrics, fit
from pretrain.pictures import Pictures

SCALES = 1, 2, 4  # the pictures are compared as they are, and averaged over so many pixels each way
EDGES, SMALL = 0.5, 0.25  # weight of the differences between neighbouring pixels; an error that counts as small
SHIFT = 2.0  # of every w, so that the mapping network's last activation hardly bends them
STEEP, LEFT, CARRY = 10.0, 1.3, 16.0  # of the mapping network's units, see `map_noise`
FADE = 0.3  # the last part of a training, in which its rate falls


@cache
def width() -> int:
    """How many numbers describe a drawn person: a one-hot group per trait, and the places in between."""
    return sum(map(len, SHARES.values())) + len(_places(portraits.sample(0)))


def _places(person: portraits.Portrait) -> list[float]:
    """All numbers in 0..1 that a portrait is drawn from, but for the values of its traits."""
    traits = (getattr(person.traits, name).u for name in SHARES)
    return [*astuple(person.identity), *astuple(person.look), *traits]


def numbers(people: Sequence[portraits.Portrait]) -> Tensor:
    """What `people` are drawn from, every column of mean 0 and variance 1 over all people: [B,width]."""
    places = torch.tensor([_places(person) for person in people])
    values = [[portraits.ATTRIBUTES[n].index(getattr(person.traits, n).value) for n in SHARES] for person in people]
    return _standardised(places, torch.tensor(values))


def of_noise(z: Tensor) -> Tensor:
    """The people that normal noise z [B,D] stands for, in their true shares: [B,width], as `numbers` gives them.

    One number of the noise gives one place, or cuts a trait's values apart where their shares end. Like a mapping
    network, this looks only at the direction of z.
    """
    z, count, values = pixel_norm(z), len(_places(portraits.sample(0))), []
    for column, ends in zip(z.T[count:], _ends(), strict=False):
        values.append(torch.bucketize(column.contiguous(), ends.to(z.device)))
    return _standardised(torch.special.ndtr(z[:, :count]), torch.stack(values, dim=1))


def _ends() -> list[Tensor]:
    """Per trait, the normal numbers at which the share of one value ends and the next begins."""
    return [torch.special.ndtri(torch.tensor(list(shares.values())).cumsum(0)[:-1]) for shares in SHARES.values()]


def _standardised(places: Tensor, values: Tensor) -> Tensor:
    parts = [(places - 0.5) * math.sqrt(12)]
    for column, shares in zip(values.T, SHARES.values(), strict=True):
        share = torch.tensor(list(shares.values()), device=places.device)
        parts.append((F.one_hot(column, len(shares)) - share) / (share * (1 - share)).sqrt())
    return torch.cat(parts, dim=1)


@cache
def turn(dim: int) -> Tensor:
    """What turns people into w: orthonormal columns [dim,width], always the same, so that nobody has to keep them."""
    if width() > dim:  # noise of so few dimensions could not name every person
        raise InputError(f"style_dim is {dim}: drawn people need at least {width()}")
    return nn.init.orthogonal_(torch.empty(dim, width()), generator=torch.Generator().manual_seed(1))


def colour_by_features(generator: Generator) -> None:
    """Let the layers that turn features into colours be the same for everybody.

    What they would learn of w no edit of s could change (a decoder gives them the unedited w_plus): hair stayed blond.
    """
    for layer in (generator.to_rgb1, *generator.to_rgbs):
        nn.init.zeros_(layer.conv.modulation.weight.requires_grad_(False))  # type: ignore[union-attr]


def codes(generator: Generator, people: Sequence[portraits.Portrait]) -> Tensor:
    """w_plus [B,L,D] by which `people` are entered, with equal rows."""
    with torch.autocast("cpu", enabled=False):  # as the mapping network's are
        w = numbers(people) @ turn(generator.style_dim).T + SHIFT
    return generator.repeat(w.to(generator.w_mean.device))


def difference(made: Tensor, real: Tensor) -> Tensor:
    """How far pictures [B,3,R,R] are apart, at several scales and in their edges.

    Errors below `SMALL` count by their square: with absolute errors, ever smaller ones of wide areas outweigh the eyes.
    """
    levels = (F.smooth_l1_loss(F.avg_pool2d(made, k), F.avg_pool2d(real, k), beta=SMALL) for k in SCALES)
    edges = (F.smooth_l1_loss(made.diff(dim=axis), real.diff(dim=axis), beta=SMALL) for axis in (2, 3))
    return torch.stack([*levels]).mean() + EDGES * torch.stack([*edges]).sum()


def steps(
    model: dict[str, Any],
    data: Pictures,
    state: Path,
    images: int,
    batch: int = 16,
    lr: float = 0.004,
    ema_images: float = 10_000,
    fade: bool = True,
    seconds: float | None = None,
    device: str = "cpu",
    smaller: Path | None = None,
) -> Iterator[tuple[int, Metrics, Generator]]:
    """Yield (images seen, {"difference"}, averaged generator); goes on from `state` when it exists.

    model: the generator's numbers; pictures of `data` are averaged down to its size. smaller: the state of the same
    training at half the size, to start from; the new resolution's colours start at zero. fade: let the rate fall at
    the end.
    """
    torch.manual_seed(0)
    generator = build(model).to(device)
    colour_by_features(generator)
    if smaller is not None and not state.exists():
        own, known = generator.state_dict(), torch.load(smaller, weights_only=True, map_location="cpu")["g"]
        generator.load_state_dict(own | {key: value for key, value in known.items() if own[key].shape == value.shape})
        nn.init.zeros_(generator.to_rgbs[-1].conv.weight)  # type: ignore[union-attr]
    ema = Ema(generator)
    drawing = [p for name, p in generator.named_parameters() if p.requires_grad and not name.startswith("style.")]
    adam = torch.optim.Adam(drawing, lr=lr, betas=(0.9, 0.99), fused=True)
    rank, share = training.share(batch)

    def step(number: int) -> Metrics:
        torch.manual_seed(number * batch + rank)
        rows = torch.randint(len(data), (share,))
        real = F.adaptive_avg_pool2d(data.images(rows).to(device), model["size"])
        left = 1 - number * batch / images
        slow = min(1.0, (number + 1) / 100) * (min(1.0, left / FADE + 0.03) if fade else 1.0)
        adam.param_groups[0]["lr"] = lr * slow
        with lowered(device):
            made = generator(codes(generator, list(data.people(rows))), generator.random_noises(share))
        wrong = difference(made.float(), real)
        wrong.backward()
        training.average_gradients(generator)
        adam.step()
        adam.zero_grad(set_to_none=True)
        ema.update(generator, min(0.5 ** (batch / ema_images), (1 + number) / (10 + number)))
        return {"difference": wrong.item()}

    parts = {"g": generator, "ema": ema, "adam": adam}
    for done, metrics in fit(step, parts, images // batch, state, every=500, seconds=seconds):
        yield done * batch, metrics, ema.module  # type: ignore[misc]


def loudness(amplified: Mapping[str, float]) -> Tensor:
    """trait -> factor on its numbers, as one factor for each of the [width] numbers. InputError for unknown traits."""
    if strange := sorted(set(amplified) - set(SHARES)):
        raise InputError(f"amplified: there is no trait {', '.join(strange)}{nearest(strange[0], SHARES)}")
    factors = [torch.full((len(shares),), float(amplified.get(name, 1.0))) for name, shares in SHARES.items()]
    return torch.cat([torch.ones(len(_places(portraits.sample(0)))), *factors])


@torch.no_grad()
def map_noise(generator: Generator, amplified: Mapping[str, float] | None = None, count: int = 50_000) -> float:
    """Set the mapping network, which needs three layers or more, so that noise becomes the w of the people it stands
    for; the error that is left, as a share of w's variance.

    amplified: trait -> factor on its numbers, more than 1 for what the synthesis learnt to draw too faintly.

    Its first two layers cut every number off at both ends, softly at the edges of a place, steeply where a trait's
    values meet, and keep the traits' own numbers; the last puts w together by least squares.
    """
    layers: list[Any] = [*generator.style[1:]]
    if len(layers) < 3:
        raise InputError(f"n_mlp is {len(layers)}: a mapping network of drawn people needs three layers or more")
    first, second, *others, last = layers
    places, dim, device = len(_places(portraits.sample(0))), generator.style_dim, generator.w_mean.device
    rows = [(column, 1.0, LEFT, True) for column in range(places)]  # of noise, factor, bias, and whether it is cut off
    for column, ends in enumerate(_ends(), start=places):
        rows += [(column, 1.0, CARRY, False), *((column, STEEP, 1 - STEEP * end, True) for end in ends.tolist())]
    if len(rows) > dim:
        raise InputError(f"style_dim is {dim}: a mapping network of drawn people needs at least {len(rows)}")
    weights, biases = torch.zeros(2, dim, dim), torch.zeros(2, dim)
    for unit, (column, factor, bias, cut) in enumerate(rows):
        weights[0, unit, column], biases[0, unit] = factor, bias
        upper = 2 * (LEFT if factor == 1 else 1.0)
        weights[1, unit, unit], biases[1, unit] = (-1 / GAIN, upper) if cut else (1 / GAIN, 0.0)
    _set(first, weights[0], biases[0])
    _set(second, weights[1], biases[1])
    for layer in others:
        _set(layer, torch.eye(dim) / GAIN, torch.full((dim,), CARRY))
    z = torch.randn(count, dim, generator=torch.Generator().manual_seed(0)).to(device)
    hidden = generator.style[:-1](z)
    hidden = torch.cat([hidden, torch.ones_like(hidden[:, :1])], dim=1)
    w = (of_noise(z) * loudness(amplified or {}).to(device)) @ turn(dim).T.to(device) + SHIFT
    solved = torch.linalg.lstsq(hidden.double().cpu(), w.double().cpu() / GAIN, driver="gelsd").solution.T.float()
    _set(last, solved[:, :-1], solved[:, -1])
    return ((generator.style(z) - w).square().mean() / w.var(dim=0).mean()).item()


def _set(layer: EqualLinear, weight: Tensor, bias: Tensor) -> None:
    layer.weight.copy_(weight / layer.scale)
    layer.bias.copy_(bias / layer.lr_mul)


def hand_over(model: dict[str, Any], state: Path, to: Path, amplified: Mapping[str, float]) -> None:
    """Set the mapping network of a finished copy, and write the state that adversarial training starts from."""
    generator = build(model)
    generator.load_state_dict(torch.load(state, weights_only=True, map_location="cpu")["ema"])
    print(f"mapping: {map_noise(generator, amplified):.3f} of the variance of w is left", flush=True)
    tensors = generator.state_dict()
    with files.replacing(to) as partial:
        torch.save({"g": tensors, "ema": tensors, "step": 0, "whole": False}, partial)
