"""Metrics of edits and embeddings: pure functions whose results can be checked by hand.

Letters as in `pipeline.values`, and N samples, A attributes, F features. Libraries are not used where their convention
differs: torchmetrics pads SSIM by reflection, gives equal images an infinite PSNR, and takes no weights for the Frechet
distance.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.nn import functional as F

from pipeline.evaluation.bootstrap import Array, Bootstrap, Metric

if TYPE_CHECKING:
    from torch import Tensor

PSNR_CEILING = 60.0  # dB, of equal images; 8 bit rounding alone, MSE 1 / (12 * 255^2), is 59 dB
CHANGED = 8 / 255  # of [0,1]; a smaller difference is not visible
_SSIM_WINDOW, _SSIM_SIGMA, _C1, _C2 = 11, 1.5, 0.01**2, 0.03**2


# ---------------------------------------------------------------- images


def unit_range(images: Tensor) -> Tensor:
    """Images in [-1,1] as [0,1], clamped as in an encoded file."""
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
    """Gaussian mean around each pixel, 0 beyond the border: [B,C,R,R] -> the same."""
    channels, reach = images.shape[1], _SSIM_WINDOW // 2
    offsets = torch.arange(-reach, reach + 1, dtype=images.dtype, device=images.device)
    weights = torch.exp(-(offsets**2) / (2 * _SSIM_SIGMA**2))
    weights = (weights / weights.sum()).expand(channels, 1, -1)
    rows = F.conv2d(images, weights.unsqueeze(2), padding=(0, reach), groups=channels)
    return F.conv2d(rows, weights.unsqueeze(3), padding=(reach, 0), groups=channels)


def reconstruction(images: Tensor, reference: Tensor) -> dict[str, Tensor]:
    """`psnr`, `ssim` and `mse` of each image: [B,3,R,R], twice -> [B] each."""
    return {measure.__name__: measure(images, reference) for measure in (psnr, ssim, mse)}


def changed(images: Tensor, reference: Tensor) -> Tensor:
    """Pixels that differ by more than `CHANGED` in a colour: [B,3,R,R], twice -> [B,1,R,R] bool."""
    return ((unit_range(images) - unit_range(reference)).abs() > CHANGED).any(dim=1, keepdim=True)


def overlap(mask: Tensor, region: Tensor) -> Tensor:
    """Intersection over union of a mask and a region: [B,1,R,R], twice -> [B]; NaN where both are empty."""
    mask, region = (mask > 0.5).flatten(1), region.flatten(1)
    return (mask & region).sum(1) / (mask | region).sum(1)


def psnr_outside(images: Tensor, reference: Tensor, region: Tensor) -> Tensor:
    """`psnr` over the pixels outside region [B,1,R,R] bool -> [B]; NaN where there are none."""
    outside = (~region).expand_as(images).float().flatten(1)
    error = (unit_range(images) - unit_range(reference)).square().flatten(1)
    mean = (error * outside).sum(1) / outside.sum(1)
    return (-10 * torch.log10(mean.clamp_min(1e-12))).clamp_max(PSNR_CEILING)


def cosine(a: Tensor, b: Tensor) -> Tensor:
    """Cosine of each row with its partner: [B,E], twice -> [B]; 0 where a row is zero. Identity similarity is this."""
    return F.cosine_similarity(a.float(), b.float(), dim=1)


# ---------------------------------------------------------------- attributes


def reached(read: Tensor, expected: Tensor, asked: Tensor) -> Tensor:
    """1 where every attribute that was asked for reads as expected: [B,A] indices, twice, [B,A] bool -> [B] float."""
    return ((read == expected) | ~asked).all(dim=1).float()


def kept(read: Tensor, expected: Tensor, counted: Tensor) -> Tensor:
    """Share of the counted attributes that read as expected: [B,A] indices, twice, [B,A] bool -> [B].

    NaN where no attribute is counted.
    """
    right = ((read == expected) & counted).sum(1).float()
    return right / counted.sum(1)


def class_columns(right: Sequence[bool] | Array | Tensor, labels: Sequence[int] | Array | Tensor) -> Array:
    """Table [N,K] whose column means are the recalls of the K classes present in labels [N].

    Its `Bootstrap.mean` is the class-balanced accuracy: each class counts alike, however rare. Chance is 1 / K.
    """
    right, labels = np.asarray(right, dtype=np.float64), np.asarray(labels)
    return np.stack([np.where(labels == label, right, np.nan) for label in np.unique(labels)], axis=1)


# ---------------------------------------------------------------- distributions


def frechet_distance(a: Array, b: Array, weights: Array | None = None) -> float:
    """Frechet distance of features [N,F] and [M,F] as Gaussians (Heusel et al. 2017, equation 6).

    |m1 - m2|^2 + Tr(C1 + C2 - 2 (C1 C2)^1/2), covariances with N - 1. NaN with fewer than two rows.

    weights: [N] count of each row of both, which are then paired (N = M), as a bootstrap needs it
    """
    return frechet(_moments(a, weights), _moments(b, weights))


def frechet(a: tuple[Array, Array], b: tuple[Array, Array]) -> float:
    """`frechet_distance` of two Gaussians, each given by mean [F] and covariance [F,F]."""
    (mean_a, cov_a), (mean_b, cov_b) = a, b
    if not np.isfinite(cov_a).all() or not np.isfinite(cov_b).all():
        return math.nan
    values, vectors = np.linalg.eigh(cov_a)
    root = (vectors * np.sqrt(values.clip(0))) @ vectors.T
    cross = np.sqrt(np.linalg.eigvalsh(root @ cov_b @ root).clip(0)).sum()  # Tr (C1 C2)^1/2, both semi-definite
    return float(max(0.0, ((mean_a - mean_b) ** 2).sum() + np.trace(cov_a) + np.trace(cov_b) - 2 * cross))


def _moments(features: Array, weights: Array | None) -> tuple[Array, Array]:
    features = np.asarray(features, dtype=np.float64)
    weights = np.ones(len(features)) if weights is None else weights
    total = weights.sum()
    if total < 2:
        return np.full(features.shape[1], np.nan), np.full((features.shape[1], features.shape[1]), np.nan)
    mean = weights @ features / total
    centred = features - mean
    return mean, (centred * weights[:, None]).T @ centred / (total - 1)


class GaussianStats:
    """Mean and covariance of a stream of features; memory does not grow with their number."""

    def __init__(self) -> None:
        self.count, self.sum, self.squares = 0, np.zeros(1), np.zeros((1, 1))

    def add(self, features: Tensor) -> None:
        """Add features [B,F]."""
        rows = features.double().cpu().numpy()
        self.count += len(rows)
        self.sum, self.squares = self.sum + rows.sum(0), self.squares + rows.T @ rows

    def moments(self) -> tuple[Array, Array]:
        """Mean [F] and covariance [F,F] with N - 1; NaN with fewer than two rows."""
        if self.count < 2:
            return np.full_like(self.sum, np.nan), np.full_like(self.squares, np.nan)
        mean = self.sum / self.count
        return mean, (self.squares - self.count * np.outer(mean, mean)) / (self.count - 1)


def precision_recall(samples: Tensor, real: Tensor, neighbours: int = 3) -> tuple[Tensor, Tensor]:
    """Manifold precision and recall of features [N,F] and [M,F] -> [N] and [M] of 0 and 1, whose means they are.

    1 for a row within the distance of some row of the other kind to its `neighbours`-th nearest of its own
    (Kynkaanniemi et al. 2019, equation 1). Comparable for N = M; needs more than `neighbours` rows of each.
    """

    def covered(points: Tensor, by: Tensor) -> Tensor:
        own = [torch.cdist(part, by).kthvalue(neighbours + 1, dim=1).values for part in by.split(1024)]
        reach = torch.cat(own)  # the nearest row is the row itself
        return torch.cat([(torch.cdist(part, by) <= reach).any(dim=1) for part in points.split(1024)]).float()

    return covered(samples, real), covered(real, samples)


# ---------------------------------------------------------------- alignment of CLIP's differences


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


def alignment(images: Tensor, texts: Tensor, bootstrap: Bootstrap | None = None) -> dict[str, Metric]:
    """Alignment of image and text embeddings, raw and as differences (paper, section 3).

    images, texts: [N,E] embeddings of images and of their own texts, N at least 3

    Raw, and for differences between each pair and another one (delta; one ring through all, in an order that the seed
    decides): cosine of an image and its own text (cos_paired), mean cosine with others' texts (cos_mismatched) and
    top-1 retrieval of the text (retrieval). delta_cos_gap: paired less mismatched cosine of the same images;
    retrieval_gain: retrieval by delta less raw.
    """
    bootstrap = bootstrap or Bootstrap()
    order = torch.from_numpy(np.random.default_rng(bootstrap.seed).permutation(len(images)))
    partner = torch.empty_like(order)
    partner[order] = order.roll(1)
    images, texts = F.normalize(images.float(), dim=1), F.normalize(texts.float(), dim=1)
    numbers, each = {}, {}
    sides = {"raw": (images, texts), "delta": (images[partner] - images, texts[partner] - texts)}
    for name, (of_images, of_texts) in sides.items():
        paired, mismatched = delta_cosines(of_images, of_texts)
        each[name] = paired - mismatched, retrieval(of_images, of_texts)
        numbers[f"{name}_cos_paired"] = bootstrap.mean(paired)
        numbers[f"{name}_cos_mismatched"] = bootstrap.mean(mismatched)
        numbers[f"retrieval_{name}"] = bootstrap.mean(each[name][1])
    numbers["delta_cos_gap"] = bootstrap.mean(each["delta"][0])
    numbers["retrieval_gain"] = bootstrap.mean(each["delta"][1] - each["raw"][1])
    return numbers


def zero_shot(images: Tensor, texts: Tensor) -> Tensor:
    """Index of the text nearest to each image by cosine: [N,E], [K,E] -> [N]."""
    return (F.normalize(images.float(), dim=1) @ F.normalize(texts.float(), dim=1).T).argmax(1)
