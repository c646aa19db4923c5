"""An image to the noise it comes from, and back, without chance.

Networks of noise or velocity ("eps", "v"): DDIM (Song et al. 2021, eq. 12, sigma 0). Both directions walk the same
levels: the clean image (abar = 1), then the timesteps 0, d, 2d, ..., 1000 - d with d = 1000 / steps, as DiffAE takes
them. (Ending at 999 instead cost a first 64 px network 2 dB at 20 steps: eps errors count 1 / sqrt(abar) times.) A step
from level a to level b, with eps asked at the noisier of the two:
    x_b = sqrt(abar_b) x0_hat + sqrt(1 - abar_b) eps,   x0_hat = (x_a - sqrt(1 - abar_a) eps) / sqrt(abar_a)
x0_hat is never clipped, which could not be undone.

Networks of a rectified flow ("flow"): the midpoint rule along straight paths, two evaluations a step.

A step up is refined by a fixed point: what the step down makes of its result should be where it came from.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import TYPE_CHECKING, Literal, NamedTuple

import torch
from torch import Tensor

from pipeline.values import InputError

if TYPE_CHECKING:
    from diffusers.schedulers.scheduling_ddim import DDIMScheduler
    from diffusers.schedulers.scheduling_ddim_inverse import DDIMInverseScheduler

TIMESTEPS = 1000
SCHEDULE = {
    "num_train_timesteps": TIMESTEPS,
    "beta_schedule": "linear",
    "beta_start": 1e-4,
    "beta_end": 0.02,
    "prediction_type": "epsilon",
    "clip_sample": False,
    "set_alpha_to_one": True,
    "timestep_spacing": "leading",
}

Objective = Literal["eps", "v", "flow"]
Predict = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(x [B,3,R,R], t [B] in 0..1000, s [B,S] standardised) -> what the objective asks for [B,3,R,R]"""


class Sampled(NamedTuple):
    """x [B,3,R,R]: noise after `encode`, images after `decode`. evaluations: network passes per image."""

    x: Tensor
    evaluations: int


@lru_cache
def schedulers() -> tuple[DDIMScheduler, DDIMInverseScheduler]:
    """(decoding, encoding) schedulers over the one noise schedule; the first also adds noise in training."""
    from diffusers.schedulers.scheduling_ddim import DDIMScheduler
    from diffusers.schedulers.scheduling_ddim_inverse import DDIMInverseScheduler

    return DDIMScheduler(**SCHEDULE), DDIMInverseScheduler(**SCHEDULE)


def encode(
    denoiser: Predict, x0: Tensor, s: Tensor, steps: int, refine: int = 0, objective: Objective = "eps"
) -> Sampled:
    """Images [B,3,R,R] with their own standardised s [B,S] -> the noise x_T that `decode` turns back into them.

    refine: further rounds per step, each bringing x_T closer to what decoding in as many steps inverts (a first 64 px
    network of noise at 20 steps: 21 dB without, 33 dB with one). x_T is not quite unit Gaussian for few steps and must
    not be normalised. InputError unless `steps` divides 1000.
    """
    check_steps(steps)
    if objective == "flow":
        return _flow(denoiser, x0, s, steps, refine)
    return _ddim(1, denoiser, x0, s, steps, 1 + refine, objective)


def decode(denoiser: Predict, x_t: Tensor, s: Tensor, steps: int, objective: Objective = "eps") -> Sampled:
    """Noise [B,3,R,R] and standardised s [B,S] -> images [B,3,R,R], about in [-1,1] and not clamped.

    InputError unless `steps` divides 1000.
    """
    check_steps(steps)
    if objective == "flow":
        x, size = x_t.float(), 1 / steps
        for number in range(steps, 0, -1):
            x = _midpoint(denoiser, x, s, number * size, -size)
        return Sampled(x, 2 * steps)
    return _ddim(0, denoiser, x_t, s, steps, 1, objective)


@torch.no_grad()
def _ddim(
    direction: int, denoiser: Predict, x: Tensor, s: Tensor, steps: int, times: int, objective: Objective
) -> Sampled:
    """A step asks at the noisier level: on the way up that is its own result, at first what it started from."""
    scheduler = schedulers()[direction]
    scheduler.set_timesteps(steps)
    eps = of_velocity(denoiser) if objective == "v" else denoiser
    x = x.float()
    for t in scheduler.timesteps.tolist():
        at, target = torch.full((len(x),), t, device=x.device), x
        for _ in range(times):
            target = scheduler.step(eps(target, at, s).float(), t, x, return_dict=False)[0]
        x = target
    return Sampled(x, steps * times)


def of_velocity(denoiser: Predict) -> Predict:
    """The noise that a network of velocity stands for: sqrt(abar) v + sqrt(1 - abar) x."""

    def eps(x: Tensor, t: Tensor, s: Tensor) -> Tensor:
        abar = schedulers()[0].alphas_cumprod.to(x.device)[t][:, None, None, None]
        return abar.sqrt() * denoiser(x, t, s).float() + (1 - abar).sqrt() * x

    return eps


def _flow(denoiser: Predict, x: Tensor, s: Tensor, steps: int, refine: int) -> Sampled:
    x, size = x.float(), 1 / steps
    for number in range(steps):
        up = _midpoint(denoiser, x, s, number * size, size)
        for _ in range(refine):
            up = up + x - _midpoint(denoiser, up, s, (number + 1) * size, -size)
        x = up
    return Sampled(x, 2 * steps * (1 + refine))


@torch.no_grad()
def _midpoint(denoiser: Predict, x: Tensor, s: Tensor, t: float, step: float) -> Tensor:
    """x [B,3,R,R] at time t in 0..1 -> at t + step."""

    def velocity(x: Tensor, t: float) -> Tensor:
        return denoiser(x, torch.full((len(x),), t * TIMESTEPS, device=x.device), s).float()

    return x + step * velocity(x + step / 2 * velocity(x, t), t + step / 2)


def check_steps(steps: int) -> None:
    """InputError for steps whose stride is not whole: the two directions would then walk different levels."""
    whole = [n for n in range(1, TIMESTEPS + 1) if TIMESTEPS % n == 0]
    if steps not in whole:
        below, above = [n for n in whole if n < steps][-1:], [n for n in whole if n > steps][:1]
        use = " or ".join(str(n) for n in below + above)
        raise InputError(f"{steps} sampling steps do not divide {TIMESTEPS}: use {use}")


def standardise(s: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Raw s [B,S] -> what a denoiser is told: unit scale per channel, by mean and std [S] over a domain's codes.

    A channel that hardly varies counts as one that varies 1 % of the average, so that rounding is not blown up.
    """
    return (s - mean) / std.clamp(min=0.01 * std.mean().item())
