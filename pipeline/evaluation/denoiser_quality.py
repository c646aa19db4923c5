"""What knowing the style does for the denoiser: whether noise takes on another's, and what is given back without it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from pipeline.evaluation import metrics, network_quality
from pipeline.evaluation.metrics import Draws, Leaf
from pipeline.models import ode_solvers
from pipeline.models.ode_solvers import Walk

if TYPE_CHECKING:
    from pipeline.evaluation.counterfactuals import TestSet
    from pipeline.networks import Backbones

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
    values, seen = network_quality.true_values(test, backbones.oracle.attributes)
    images = test.images[:count].to(backbones.device)
    s = backbones.told(w_plus[:count].to(images))
    noise = ode_solvers.encode(denoiser, images, s, walk, denoiser.objective)
    drawn = ode_solvers.decode(denoiser, noise, s.roll(-1, dims=0), walk, denoiser.objective).x.clamp(-1, 1)
    read = {name: found.cpu().numpy() for name, found in backbones.oracle.read(drawn).items()}

    def column(name: str) -> np.ndarray:
        own, other = values[name][:count], np.roll(values[name][:count], -1)
        asked = (own != other) & np.roll(seen[name][:count], -1)
        return np.where(asked, read[name] == other, np.nan)

    return metrics.interval(np.stack([column(name) for name in values], axis=1), groups=[0] * len(values), draws=draws)


@torch.no_grad()
def given_back(backbones: Backbones, test: TestSet, w_plus: Tensor, draws: Draws) -> dict[str, Any]:
    """How well DDIM gives pictures back that it was told the style of, and with everybody's mean style in its place.

    {ddim, ddim_mean_style: {psnr in dB, ssim, mse on [0,1]}} (paper, table III) of the first TOLD people. Of ddim also
    ssim_over_mean_style and ssim_over_inversion, the gains on the same people. w_plus as above.
    """
    if note := backbones.absent("denoiser"):
        return {name: {"psnr": metrics.absent(note)} for name in ("ddim", "ddim_mean_style")}
    count, denoiser = min(TOLD, len(w_plus)), backbones.denoiser
    images, w_plus = test.images[:count].to(backbones.device), w_plus[:count].to(backbones.device)
    s = backbones.told(w_plus)
    found: dict[str, Any] = {}
    ssim = {"inversion": metrics.ssim(backbones.generator(w_plus).float().clamp(-1, 1), images)}
    for name, told in (("ddim", s), ("ddim_mean_style", torch.zeros_like(s))):
        noise = ode_solvers.encode(denoiser, images, told, INEXACT, denoiser.objective)
        again = ode_solvers.decode(denoiser, noise, told, INEXACT, denoiser.objective).x.clamp(-1, 1)
        measured = metrics.closeness(again, images)
        ssim[name] = measured["ssim"]
        found[name] = {key: metrics.interval(values.cpu(), draws=draws) for key, values in measured.items()}
    for other in ("mean_style", "inversion"):
        gain = ssim["ddim"] - ssim[other if other in ssim else f"ddim_{other}"]
        found["ddim"][f"ssim_over_{other}"] = metrics.interval(gain.cpu(), draws=draws)
    return found
