"""What an edit is worth, in numbers: pure functions, each with an answer that can be worked out by hand.

Letters as in `pipeline.values`, and P people, Q columns of a table (prompts, or classes of an attribute), F features.
A *table* is [P,Q] float with NaN where a person has no value. People are the unit of resampling: all that belongs to
one person is drawn, or left out, together.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

if TYPE_CHECKING:
    from torch import Tensor

Array = NDArray[np.float64]
Leaf = dict[str, Any]  # value, low and high; and a note where nothing could be computed

PSNR_CEILING = 60.0  # dB; equal images. 8 bit rounding alone, MSE 1 / (12 * 255^2), is 59 dB
CHANGED = 8 / 255  # of [0,1]: less is not seen
_SSIM_WINDOW, _SSIM_SIGMA, _C1, _C2 = 11, 1.5, 0.01**2, 0.03**2


# ---------------------------------------------------------------- images against images


def unit_range(images: Tensor) -> Tensor:
    """[-1,1] -> [0,1], clamped as an encoded picture is."""
    return ((images + 1) / 2).clamp(0, 1)


def mse(images: Tensor, reference: Tensor) -> Tensor:
    """Mean squared error of each image on the [0,1] scale: [B,3,R,R] in [-1,1], twice -> [B]."""
    return (unit_range(images) - unit_range(reference)).square().flatten(1).mean(1)


def psnr(images: Tensor, reference: Tensor) -> Tensor:
    """20 log10(1 / sqrt(MSE)) of each image on the [0,1] scale, dB: [B,3,R,R] in [-1,1], twice -> [B].

    Averages are taken over images, after the logarithm. Equal images get `PSNR_CEILING`, since infinity has no mean.
    """
    return (-10 * torch.log10(mse(images, reference).clamp_min(1e-12))).clamp_max(PSNR_CEILING)


def ssim(images: Tensor, reference: Tensor) -> Tensor:
    """Structural similarity of each image: [B,3,R,R] in [-1,1], twice -> [B].

    The convention of DiffAE, which the paper's tables follow: [0,1] scale, 11 x 11 Gaussian window of sigma 1.5 over
    zero padding, C1 = .01^2, C2 = .03^2, mean over pixels and channels.
    """
    a, b = unit_range(images).double(), unit_range(reference).double()  # variances are differences of squares
    mean_a, mean_b = _window(a), _window(b)
    var_a, var_b = _window(a * a) - mean_a**2, _window(b * b) - mean_b**2
    covariance = _window(a * b) - mean_a * mean_b
    luminance = (2 * mean_a * mean_b + _C1) / (mean_a**2 + mean_b**2 + _C1)
    structure = (2 * covariance + _C2) / (var_a + var_b + _C2)
    return (luminance * structure).flatten(1).mean(1).to(images.dtype)


def _window(images: Tensor) -> Tensor:
    """The Gaussian mean around each pixel, nothing (0) beyond the border: [B,C,R,R] -> the same."""
    channels, reach = images.shape[1], _SSIM_WINDOW // 2
    offsets = torch.arange(-reach, reach + 1, dtype=images.dtype, device=images.device)
    weights = torch.exp(-(offsets**2) / (2 * _SSIM_SIGMA**2))
    weights = (weights / weights.sum()).expand(channels, 1, -1)
    rows = F.conv2d(images, weights.unsqueeze(2), padding=(0, reach), groups=channels)
    return F.conv2d(rows, weights.unsqueeze(3), padding=(reach, 0), groups=channels)


def closeness(images: Tensor, reference: Tensor) -> dict[str, Tensor]:
    """How closely pictures are given back: psnr, ssim and mse of each, [B,3,R,R], twice -> [B] each."""
    return {measure.__name__: measure(images, reference) for measure in (psnr, ssim, mse)}


def changed(images: Tensor, reference: Tensor) -> Tensor:
    """Where two pictures differ to the eye, by more than `CHANGED` in a colour: [B,3,R,R], twice -> [B,1,R,R] bool."""
    return ((unit_range(images) - unit_range(reference)).abs() > CHANGED).any(dim=1, keepdim=True)


def overlap(mask: Tensor, region: Tensor) -> Tensor:
    """Intersection over union of a mask and a region: [B,1,R,R], twice -> [B]; NaN where both are empty."""
    mask, region = (mask > 0.5).flatten(1), region.flatten(1)
    return (mask & region).sum(1) / (mask | region).sum(1)


def psnr_outside(images: Tensor, reference: Tensor, region: Tensor) -> Tensor:
    """`psnr` over the pixels that are not in region [B,1,R,R] alone -> [B]; NaN where there are none."""
    outside = (~region).expand_as(images).float().flatten(1)
    error = (unit_range(images) - unit_range(reference)).square().flatten(1)
    mean = (error * outside).sum(1) / outside.sum(1)
    return (-10 * torch.log10(mean.clamp_min(1e-12))).clamp_max(PSNR_CEILING)


def cosine(a: Tensor, b: Tensor) -> Tensor:
    """Cosine of each row with its partner: [B,E], twice -> [B]; 0 where a row is zero. Identity similarity is this."""
    return F.cosine_similarity(a.float(), b.float(), dim=1)


# ---------------------------------------------------------------- what the oracle reads in an edit


def reached(read: Tensor, truth: Tensor, asked: Tensor) -> Tensor:
    """1 where all that was asked for reads as it should: [B,A] indices, twice, [B,A] bool -> [B] float."""
    return ((read == truth) | ~asked).all(dim=1).float()


def kept(read: Tensor, truth: Tensor, counted: Tensor) -> Tensor:
    """Share of the counted attributes that read as they should: [B,A] indices, twice, [B,A] bool -> [B].

    NaN where nothing is counted.
    """
    right = ((read == truth) & counted).sum(1).float()
    return right / counted.sum(1)


def class_columns(right: Sequence[bool] | Array | Tensor, truth: Sequence[int] | Array | Tensor) -> Array:
    """The table [P,K] whose column means are the recalls of the K classes present in `truth` [P].

    `interval` of it is the class-balanced accuracy: each class counts alike, however rare. Chance is 1 / K.
    """
    right, truth = np.asarray(right, dtype=np.float64), np.asarray(truth)
    return np.stack([np.where(truth == label, right, np.nan) for label in np.unique(truth)], axis=1)


def class_balanced_accuracy(read: Tensor, truth: Tensor) -> tuple[float, float]:
    """Mean recall over the classes present in `truth`, and the chance level beside it: [N] indices, twice."""
    columns = class_columns(read == truth, truth)
    return float(np.nanmean(columns, axis=0).mean()), 1 / columns.shape[1]


# ---------------------------------------------------------------- distributions


def frechet_distance(a: Array, b: Array, weights: Array | None = None) -> float:
    """Frechet distance of two clouds [N,F] and [M,F] taken as Gaussians (Heusel et al. 2017, equation 6).

    |m1 - m2|^2 + Tr(C1 + C2 - 2 (C1 C2)^1/2), covariances with N - 1. `weights` [N] counts each row of both clouds,
    which are then paired (N = M), as a bootstrap needs it. NaN with fewer than two rows.
    """
    return frechet(_moments(a, weights), _moments(b, weights))


def frechet(a: tuple[Array, Array], b: tuple[Array, Array]) -> float:
    """`frechet_distance` of two Gaussians, each given by mean [F] and covariance [F,F]."""
    (mean_a, cov_a), (mean_b, cov_b) = a, b
    if not np.isfinite(cov_a).all() or not np.isfinite(cov_b).all():
        return math.nan
    values, vectors = np.linalg.eigh(cov_a)
    root = (vectors * np.sqrt(values.clip(0))) @ vectors.T
    shared = np.sqrt(np.linalg.eigvalsh(root @ cov_b @ root).clip(0)).sum()  # Tr (C1 C2)^1/2, both semi-definite
    return float(max(0.0, ((mean_a - mean_b) ** 2).sum() + np.trace(cov_a) + np.trace(cov_b) - 2 * shared))


def _moments(cloud: Array, weights: Array | None) -> tuple[Array, Array]:
    cloud = np.asarray(cloud, dtype=np.float64)
    weights = np.ones(len(cloud)) if weights is None else weights
    total = weights.sum()
    if total < 2:
        return np.full(cloud.shape[1], np.nan), np.full((cloud.shape[1], cloud.shape[1]), np.nan)
    mean = weights @ cloud / total
    centred = cloud - mean
    return mean, (centred * weights[:, None]).T @ centred / (total - 1)


def precision_recall(made: Tensor, real: Tensor, neighbours: int = 3) -> tuple[Tensor, Tensor]:
    """Does each made picture lie among the real ones, and each real one among those made? [N,F], [M,F] -> [N], [M].

    1 where it is within the distance of some other picture to its `neighbours`-th nearest of its own kind
    (Kynkaanniemi et al. 2019, equation 1); the means are precision and recall, which N = M makes comparable. Needs more
    than `neighbours` of each.
    """

    def covered(points: Tensor, by: Tensor) -> Tensor:
        own = [torch.cdist(part, by).kthvalue(neighbours + 1, dim=1).values for part in by.split(1024)]
        reach = torch.cat(own)  # the nearest of all is the point itself
        return torch.cat([(torch.cdist(part, by) <= reach).any(dim=1) for part in points.split(1024)]).float()

    return covered(made, real), covered(real, made)


class Cloud:
    """Mean and covariance of features that pass by; its memory does not grow with their number."""

    def __init__(self) -> None:
        self.count, self.sum, self.squares = 0, np.zeros(1), np.zeros((1, 1))

    def add(self, features: Tensor) -> None:
        """features [B,F]"""
        rows = features.double().cpu().numpy()
        self.count += len(rows)
        self.sum, self.squares = self.sum + rows.sum(0), self.squares + rows.T @ rows

    def moments(self) -> tuple[Array, Array]:
        """Mean [F] and covariance [F,F] with N - 1; NaN with fewer than two rows."""
        if self.count < 2:
            return np.full_like(self.sum, np.nan), np.full_like(self.squares, np.nan)
        mean = self.sum / self.count
        return mean, (self.squares - self.count * np.outer(mean, mean)) / (self.count - 1)


# ---------------------------------------------------------------- is the space of differences aligned?


def delta_cosines(image_deltas: Tensor, text_deltas: Tensor) -> tuple[Tensor, Tensor]:
    """Cosine of each image difference with its own text difference, and its mean cosine with the others'.

    [N,E], twice -> paired [N], mismatched [N] (paper, figure 2 and section 3: the first is high, the second near 0).
    """
    table = F.normalize(image_deltas.float(), dim=1) @ F.normalize(text_deltas.float(), dim=1).T
    paired = table.diagonal()
    return paired, (table.sum(1) - paired) / max(1, len(table) - 1)


def retrieval(images: Tensor, texts: Tensor) -> Tensor:
    """1 where an image's nearest text, by cosine, is its own: [N,E], twice -> [N]. Equal texts count as one."""
    table = F.normalize(images.float(), dim=1) @ F.normalize(texts.float(), dim=1).T
    return (table.diagonal() >= table.amax(1) - 1e-6).float()


def alignment(images: Tensor, texts: Tensor, draws: Draws | None = None) -> dict[str, Leaf]:
    """The statistics of the DeltaSpace: embeddings [N,E] of pictures, and of their own texts, N at least 3.

    Of the embeddings as they are (raw), and of differences between each pair and another one (delta; a single ring
    through all, in an order that the seed decides): the cosine of a picture and its own text (cos_paired) and the mean
    one with others' (cos_mismatched), and top-1 retrieval of the text (retrieval). On the same pictures, delta_cos_gap
    is paired over mismatched cosine, retrieval_gain retrieval by delta over raw.
    """
    draws = draws or Draws()
    order = torch.from_numpy(np.random.default_rng(draws.seed).permutation(len(images)))
    partner = torch.empty_like(order)
    partner[order] = order.roll(1)
    images, texts = F.normalize(images.float(), dim=1), F.normalize(texts.float(), dim=1)
    found, each = {}, {}
    sides = {"raw": (images, texts), "delta": (images[partner] - images, texts[partner] - texts)}
    for name, (pictures, words) in sides.items():
        paired, mismatched = delta_cosines(pictures, words)
        each[name] = paired - mismatched, retrieval(pictures, words)
        found[f"{name}_cos_paired"] = interval(paired, draws=draws)
        found[f"{name}_cos_mismatched"] = interval(mismatched, draws=draws)
        found[f"retrieval_{name}"] = interval(each[name][1], draws=draws)
    found["delta_cos_gap"] = interval(each["delta"][0], draws=draws)
    found["retrieval_gain"] = interval(each["delta"][1] - each["raw"][1], draws=draws)
    return found


def zero_shot(images: Tensor, texts: Tensor) -> Tensor:
    """Index of the text nearest to each image: [N,E], [K,E] -> [N]."""
    return (F.normalize(images.float(), dim=1) @ F.normalize(texts.float(), dim=1).T).argmax(1)


# ---------------------------------------------------------------- intervals


@dataclass(frozen=True)
class Draws:
    """How a bootstrap draws people: how often, and from which seed."""

    repeats: int = 1000
    seed: int = 0


def leaf(value: float, low: float | None = None, high: float | None = None) -> Leaf:
    """One entry of metrics.json. Six decimals; what is not finite becomes null."""
    return {"value": _number(value), "low": _number(low), "high": _number(high)}


def absent(note: str) -> Leaf:
    """The entry of what could not be computed, and why."""
    return {**leaf(math.nan), "note": note}


def _number(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else round(float(value), 6)


def interval(
    table: Array | Tensor,
    groups: Sequence[object] | None = None,
    worst: bool = False,
    draws: Draws | None = None,
) -> Leaf:
    """The mean of a table [P,Q] (or [P]) and its 95 % bootstrap interval over people.

    Mean over people, then over the columns of a group, then over groups (the smallest group with `worst`): so each
    prompt counts alike however many people it concerns. `groups` [Q] names each column's group; default: one each.
    """
    table = np.asarray(table, dtype=np.float64)
    table = table[:, None] if table.ndim == 1 else table
    names = list(range(table.shape[1])) if groups is None else list(groups)
    members = [[i for i, name in enumerate(names) if name == group] for group in dict.fromkeys(names)]
    present = (~np.isnan(table)).astype(np.float64)
    filled = np.nan_to_num(table)
    if not members:
        return leaf(math.nan)

    def statistic(weights: Array) -> Array:
        with np.errstate(invalid="ignore"):
            columns = (weights @ filled) / (weights @ present)
        grouped = np.stack([nanmean(columns[:, index]) for index in members], axis=1)
        if not worst:
            return nanmean(grouped)
        lowest = np.where(np.isnan(grouped), np.inf, grouped).min(1)
        return np.where(np.isinf(lowest), np.nan, lowest)

    return bootstrap(statistic, len(table), draws)


def bootstrap(
    statistic: Callable[[Array], Array], people: int, draws: Draws | None = None, centred: bool = False
) -> Leaf:
    """A statistic with its 95 % percentile interval over resampled people.

    `statistic` takes weights [K,P], how often each person was drawn in each of K draws, and gives [K]. `centred` shifts
    the draws so that they average to the value: for distances, which resampling inflates. No interval for one person.
    """
    if people == 0:
        return leaf(math.nan)
    value = float(statistic(np.ones((1, people)))[0])
    draws = draws or Draws()
    if people == 1 or not math.isfinite(value):
        return leaf(value)
    drawn = statistic(_resamples(people, draws.repeats, draws.seed))
    drawn = drawn[np.isfinite(drawn)]
    if not drawn.size:
        return leaf(value)
    if centred:
        drawn = np.maximum(drawn - drawn.mean() + value, 0)
    low, high = np.percentile(drawn, [2.5, 97.5])
    return leaf(value, float(low), float(high))


@functools.lru_cache(maxsize=8)
def _resamples(people: int, repeats: int, seed: int) -> Array:
    rng = np.random.default_rng(seed)
    return rng.multinomial(people, np.full(people, 1 / people), size=repeats).astype(np.float64)


def nanmean(table: Array) -> Array:
    """Mean of each row [N,K] over what is not NaN; NaN, without a warning, where nothing is left."""
    present = ~np.isnan(table)
    with np.errstate(invalid="ignore"):
        return np.where(present, table, 0).sum(1) / present.sum(1)
