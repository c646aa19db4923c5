"""What knowing the style does for the denoiser: whether noise takes on another's, and what is given back without it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from pipeline import foundations, metrics, sampler
from pipeline.metrics import Draws, Leaf
from pipeline.sampler import Walk

if TYPE_CHECKING:
    from pipeline.backbones import Backbones
    from pipeline.truth import TestSet

STYLED = 48  # people whose noise is drawn in another's style
TOLD = 24  # people who go to noise and back with and without their style
INEXACT = Walk(20, "ddim")  # by which that is seen: exact solvers give everything back


@torch.no_grad()
def style_matters(backbones: Backbones, test: TestSet, w_plus: Tensor, walk: Walk, draws: Draws) -> Leaf:
    """Does a picture's noise take on the style of somebody else? Of the attributes in which two people differ, the
    share that the oracle reads as the other's once the one's noise is decoded with the other's s.

    w_plus [n,L,D]: inversions of the first n people; STYLED of them are tried, each with the next one.
    """
    if note := backbones.absent("oracle") or backbones.absent("denoiser"):
        return metrics.absent(note)
    count, denoiser = min(STYLED, len(w_plus)), backbones.denoiser
    values, seen = foundations.true_values(test, backbones.oracle.attributes)
    images = test.images[:count].to(backbones.device)
    s = sampler.standardise(backbones.generator.styles(w_plus[:count].to(images)), *backbones.s_stats)
    noise = sampler.encode(denoiser, images, s, walk, denoiser.objective)
    drawn = sampler.decode(denoiser, noise, s.roll(-1, dims=0), walk, denoiser.objective).x.clamp(-1, 1)
    read = {name: found.cpu().numpy() for name, found in backbones.oracle.read(drawn).items()}

    def column(name: str) -> np.ndarray:
        own, other = values[name][:count], np.roll(values[name][:count], -1)
        asked = (own != other) & np.roll(seen[name][:count], -1)
        return np.where(asked, read[name] == other, np.nan)

    return metrics.interval(np.stack([column(name) for name in values], axis=1), groups=[0] * len(values), draws=draws)


@torch.no_grad()
def given_back(backbones: Backbones, test: TestSet, w_plus: Tensor, draws: Draws) -> dict[str, Any]:
    """How well DDIM gives pictures back that it was told the style of, and with the mean style in its place.

    {ddim, ddim_without_style: {psnr in dB, ssim, mse on [0,1]}} (paper, table III) of the first TOLD people; w_plus as
    above.
    """
    if note := backbones.absent("denoiser"):
        return {"ddim": {"psnr": metrics.absent(note)}}
    count, denoiser = min(TOLD, len(w_plus)), backbones.denoiser
    images = test.images[:count].to(backbones.device)
    s = sampler.standardise(backbones.generator.styles(w_plus[:count].to(images)), *backbones.s_stats)
    found = {}
    for name, told in (("ddim", s), ("ddim_without_style", torch.zeros_like(s))):
        noise = sampler.encode(denoiser, images, told, INEXACT, denoiser.objective)
        again = sampler.decode(denoiser, noise, told, INEXACT, denoiser.objective).x.clamp(-1, 1)
        measures = {"psnr": metrics.psnr, "ssim": metrics.ssim, "mse": metrics.mse}
        found[name] = {key: metrics.interval(one(again, images).cpu(), draws=draws) for key, one in measures.items()}
    return found
