"""Quality of the diffusion model: reconstruction by DDIM, and the effect of the style condition."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from pipeline import denoiser_training
from pipeline.evaluation import metrics, network_quality
from pipeline.evaluation.bootstrap import Metric, absent
from pipeline.evaluation.context import EvaluationContext
from pipeline.models import ode_solvers
from pipeline.models.ode_solvers import Trajectory

SWAPPED_COUNT = 48  # images whose noise is decoded with another's style
RECONSTRUCTED_COUNT = 24  # images that are encoded and decoded with and without their style
DDIM = Trajectory(20, "ddim")  # exact solvers would reconstruct with any condition


@torch.no_grad()
def ddim_reconstruction(context: EvaluationContext) -> dict[str, Any]:
    """Reconstruction by DDIM, conditioned on an image's style and on the mean style (paper, table III).

    ddim, ddim_mean_style: psnr (dB), ssim, mse (on [0,1]). ddim also has the gains on the same images
    ssim_over_mean_style and ssim_over_inversion.
    """
    networks, inversions = context.networks, context.inversion
    if inversions is None or context.trajectory is None:
        return {}
    if note := networks.absent("denoiser"):
        return {name: {"psnr": absent(note)} for name in ("ddim", "ddim_mean_style")}
    count, denoiser = min(RECONSTRUCTED_COUNT, len(inversions)), networks.denoiser
    images, w_plus = (tensor[:count].to(networks.device) for tensor in (context.test.images, inversions.w_plus))
    s = denoiser_training.condition(networks, w_plus)
    numbers: dict[str, Any] = {}
    ssim = {"inversion": metrics.ssim(networks.generator(w_plus).float().clamp(-1, 1), images)}
    for name, style in (("ddim", s), ("ddim_mean_style", torch.zeros_like(s))):
        noise = ode_solvers.encode(denoiser, images, style, DDIM, denoiser.objective)
        reconstruction = ode_solvers.decode(denoiser, noise, style, DDIM, denoiser.objective).x.clamp(-1, 1)
        values = metrics.reconstruction(reconstruction, images)
        ssim[name] = values["ssim"]
        numbers[name] = {key: context.bootstrap.mean(each.cpu()) for key, each in values.items()}
    for name, other in (("mean_style", "ddim_mean_style"), ("inversion", "inversion")):
        numbers["ddim"][f"ssim_over_{name}"] = context.bootstrap.mean((ssim["ddim"] - ssim[other]).cpu())
    return numbers


@torch.no_grad()
def style_matters(context: EvaluationContext) -> dict[str, Metric]:
    """style_matters: of the attributes in which two images differ, the share that the oracle reads as the second's
    when the first's noise is decoded with the second's style."""
    networks, inversions, solver = context.networks, context.inversion, context.trajectory
    if context.counterfactuals is None or inversions is None or solver is None:
        return {}
    if note := networks.absent("oracle") or networks.absent("denoiser"):
        return {"style_matters": absent(note)}
    count, denoiser = min(SWAPPED_COUNT, len(inversions)), networks.denoiser
    values, visible = network_quality.true_values(context.test, networks.oracle.attributes)
    images = context.test.images[:count].to(networks.device)
    s = denoiser_training.condition(networks, inversions.w_plus[:count].to(images))
    noise = ode_solvers.encode(denoiser, images, s, solver, denoiser.objective)
    swapped = ode_solvers.decode(denoiser, noise, s.roll(-1, dims=0), solver, denoiser.objective).x.clamp(-1, 1)
    read = {name: indices.cpu().numpy() for name, indices in networks.oracle.predict(swapped).items()}

    def column(name: str) -> np.ndarray:
        own, other = values[name][:count], np.roll(values[name][:count], -1)
        differs = (own != other) & np.roll(visible[name][:count], -1)
        return np.where(differs, read[name] == other, np.nan)

    table = np.stack([column(name) for name in values], axis=1)
    return {"style_matters": context.bootstrap.mean(table, groups=[0] * len(values))}
