"""Parameters of portraits as the input of a generator: of mean 0 and variance 1, each drawn by one level of styles."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import astuple, fields
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline import portraits
from pipeline.models.stylegan2 import pixel_norm
from pipeline.portraits.traits import FREQUENCIES, Identity, Look
from pipeline.runtime.errors import InputError, nearest

PARAMETER_LEVELS = {  # level of style convolutions -> parameters that it draws
    # Layout and outlines depend on the whole image at once, which the layers of 4 and 8 pixels see.
    "coarse": "width height jaw chin eye_gap eye_height nose_length mouth_height ear_size tilt shift_x shift_y zoom "
    "hair_length hair_volume parting shoulders face_shape clothes hair_style bangs pose",
    # Parts inside the outlines, a few pixels large: at 16 pixels an eye or a mouth first has pixels of its own.
    "medium": "eye_slant brow_arch nose_width mouth_width mole mole_x mole_y freckles glasses_shape glasses expression "
    "eye_size facial_hair age mouth eyes brows earrings",
    # Colours move no edge: the last layers have all edges, and colour the areas between them.
    "fine": "iris skin_hue skin_light light light_strength glasses_color tie skin clothes_color hair_color lips "
    "background",
}


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
    for column, bounds in zip(z.T[count:], value_bounds(), strict=False):
        values.append(torch.bucketize(column.contiguous(), bounds.to(z.device)))
    return _standardised(torch.special.ndtr(z[:, :count]), torch.stack(values, dim=1))


def value_bounds() -> list[Tensor]:
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
def parameter_levels() -> Tensor:
    """Level that draws each parameter, an index into `PARAMETER_LEVELS`: [P]."""
    level = {name: index for index, names in enumerate(PARAMETER_LEVELS.values()) for name in names.split()}
    continuous = [field.name for part in (Identity, Look) for field in fields(part)]
    groups = [level[name] for name, values in FREQUENCIES.items() for _ in values]
    return torch.tensor([*(level[name] for name in (*continuous, *FREQUENCIES)), *groups])


def mixed_parameters(parameters: Tensor, fraction: float) -> Tensor:
    """Parameters for each level [B,3,P] that render the portraits of `parameters` [B,P].

    A level needs its own parameters only. For the first `fraction` of the portraits the others come from a random
    portrait of the batch, another one for each level. Since the renderer samples all parameters independently, each
    level then gets parameters of its distribution. A fraction of 0 draws no random number.
    """
    rows, level_of = parameters[:, None].repeat(1, len(PARAMETER_LEVELS), 1), parameter_levels().to(parameters.device)
    count = round(fraction * len(parameters))
    if not count:
        return rows
    for level in range(len(PARAMETER_LEVELS)):
        others = parameters[torch.randperm(len(parameters))[:count]]
        rows[:count, level] = torch.where(level_of == level, parameters[:count], others)
    return rows


def parameter_gains(trait_gain: Mapping[str, float]) -> Tensor:
    """Factors [P] on the parameters. trait_gain: trait -> factor. Raises InputError for unknown traits."""
    if unknown := sorted(set(trait_gain) - set(FREQUENCIES)):
        raise InputError(f"trait_gain: there is no trait {', '.join(unknown)}{nearest(unknown[0], FREQUENCIES)}")
    factors = [torch.full((len(values),), float(trait_gain.get(name, 1.0))) for name, values in FREQUENCIES.items()]
    return torch.cat([torch.ones(continuous_count()), *factors])
