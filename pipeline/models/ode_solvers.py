"""Deterministic solvers of the diffusion ODE, from an image to its noise and back, and SDEdit's stochastic sampling.

Both directions visit the same noise levels, step by step:

ddim      (Song et al. 2021, eq. 12, sigma 0), one evaluation per step. The clean image (abar = 1), then the timesteps
          0, d, 2d, ..., 1000 - d with d = 1000 / steps, as in DiffAE. (Ending at 999 instead cost a first 64 px network
          2 dB at 20 steps: errors of eps count 1 / sqrt(abar) times.) From level a to level b, with eps evaluated at
          the noisier of the two:
            x_b = sqrt(abar_b) x0_hat + sqrt(1 - abar_b) eps,   x0_hat = (x_a - sqrt(1 - abar_a) eps) / sqrt(abar_a)
          x0_hat is never clipped, since clipping cannot be inverted.
midpoint  along the paths of a rectified flow (Liu et al. 2023), two evaluations per step; heun: likewise.
belm      O-BELM (Wang et al. 2024), one evaluation per step: every step relates three levels, so it is inverted exactly
          if the last two states are kept. Its levels are the image and d - 1, 2d - 1, ..., 999: with a first level
          close to the image the encoding step would divide by almost zero.

Velocity and flow networks are converted to noise prediction (`as_noise_predictor`), so ddim and belm take every
network; midpoint and heun need a flow.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Literal, NamedTuple, get_args

import torch
from torch import Tensor

from pipeline.runtime.errors import InputError

if TYPE_CHECKING:
    from diffusers.schedulers.scheduling_ddim import DDIMScheduler
    from diffusers.schedulers.scheduling_ddim_inverse import DDIMInverseScheduler

TIMESTEPS = 1000
FLOW_SOLVERS = ("midpoint", "heun")
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
Solver = Literal["ddim", "midpoint", "heun", "belm"]
Predict = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Denoiser: (x [B,3,R,R], t [B] in 0..1000, standardised s [B,S]) -> prediction of the objective [B,3,R,R]"""
StateOverride = Callable[[int, Tensor], Tensor]
"""(index of a level, 0 for the image; its state x [B,3,R,R]) -> the state to continue from"""


class Sampled(NamedTuple):
    """Result of `encode` or `decode`.

    x [B,3,R,R]: the noise of `encode`, the images of `decode`. evaluations: network passes per image.
    path: states of `encode`, from the image on where all were kept, else the last two.
    """

    x: Tensor
    evaluations: int
    path: tuple[Tensor, ...] = ()


@dataclass(frozen=True)
class Trajectory:
    """Discretisation of the path between image and noise. Raises InputError for impossible settings.

    steps: of the whole path, a divisor of 1000. ratio: fraction of the path that is encoded, from the image on.
    """

    steps: int
    solver: Solver
    ratio: float = 1.0

    def __post_init__(self) -> None:
        check_steps(self.steps)
        if self.solver not in get_args(Solver):
            raise InputError(f"solver is {self.solver!r}: {', '.join(get_args(Solver))} are known")
        if not 0 < self.ratio <= 1:
            raise InputError(f"ratio is {self.ratio:g}: more than 0 and at most 1 is expected")
        if self.solver == "belm" and self.count < 2:
            raise InputError("belm needs two steps or more: raise steps, or ratio")

    @property
    def count(self) -> int:
        """Number of steps taken, at least one."""
        return max(1, round(self.steps * self.ratio))

    @property
    def evaluations_per_step(self) -> int:
        """Network passes per step."""
        return 2 if self.solver in FLOW_SOLVERS else 1


def signal_level(number: int, trajectory: Trajectory) -> float:
    """Factor of the clean image in the state of level `number`, 0 being the image."""
    if trajectory.solver in FLOW_SOLVERS or not number:
        return 1 - number / trajectory.steps
    if trajectory.solver == "belm":
        return belm_levels(trajectory.steps)[number][1]
    return schedulers()[0].alphas_cumprod[(number - 1) * (TIMESTEPS // trajectory.steps)].sqrt().item()


@lru_cache
def schedulers() -> tuple[DDIMScheduler, DDIMInverseScheduler]:
    """Schedulers for decoding and for encoding, with the same noise schedule; the first also adds training noise."""
    from diffusers.schedulers.scheduling_ddim import DDIMScheduler
    from diffusers.schedulers.scheduling_ddim_inverse import DDIMInverseScheduler

    return DDIMScheduler(**SCHEDULE), DDIMInverseScheduler(**SCHEDULE)


@torch.no_grad()
def encode(
    denoiser: Predict, x0: Tensor, s: Tensor, trajectory: Trajectory, objective: Objective, keep: bool = False
) -> Sampled:
    """Encode images into the noise that `decode` inverts; with few steps it is not quite unit Gaussian.

    x0: images [B,3,R,R]. s: their standardised style codes [B,S]. objective: of the denoiser. keep: keep all states.
    """
    path = [x0.float()]
    for number in range(trajectory.count):
        path.append(_encode_step(denoiser, path, s, number, trajectory, objective))
        path = path if keep else path[-2:]
    return Sampled(path[-1], trajectory.count * trajectory.evaluations_per_step, tuple(path))


@torch.no_grad()
def decode(
    denoiser: Predict,
    noise: Sampled,
    s: Tensor,
    trajectory: Trajectory,
    objective: Objective,
    override: StateOverride | None = None,
) -> Sampled:
    """Decode noise into images [B,3,R,R], about in [-1,1] and not clamped.

    noise: of `encode` with the same trajectory, or `Sampled(x, 0)` of Gaussian noise. s: standardised style codes
    [B,S]. objective: of the denoiser. override: changes every state on the way, the image last.
    """
    above, x, evaluations = None, noise.x, trajectory.count * trajectory.evaluations_per_step
    if trajectory.solver == "belm" and len(noise.path) > 1:
        above, x, evaluations = noise.x, noise.path[-2], evaluations - 1
    for number in reversed(range(trajectory.count if above is None else trajectory.count - 1)):
        above, x = x, _decode_step(denoiser, x, above, s, number, trajectory, objective)
        x = x if override is None else override(number, x)
    return Sampled(x, evaluations)


def _encode_step(
    denoiser: Predict, path: Sequence[Tensor], s: Tensor, number: int, trajectory: Trajectory, objective: Objective
) -> Tensor:
    """From the last state of the path, at level `number`, to the next level."""
    x, steps = path[-1], trajectory.steps
    if trajectory.solver == "belm":
        return _belm_encode(denoiser, x, path[-2] if number else None, s, number, steps, objective)
    if trajectory.solver in FLOW_SOLVERS:
        return _flow_step(denoiser, x, s, number / steps, 1 / steps, trajectory.solver, objective)
    return _ddim(1, denoiser, x, s, number, steps, objective)


def _decode_step(
    denoiser: Predict,
    x: Tensor,
    above: Tensor | None,
    s: Tensor,
    number: int,
    trajectory: Trajectory,
    objective: Objective,
) -> Tensor:
    """From level `number` + 1 to `number`. above: the state one level above x, which belm needs."""
    if trajectory.solver == "belm":
        return _belm_decode(denoiser, x, above, s, number, trajectory.steps, objective)
    if trajectory.solver in FLOW_SOLVERS:
        steps = trajectory.steps
        return _flow_step(denoiser, x, s, (number + 1) / steps, -1 / steps, trajectory.solver, objective)
    return _ddim(0, denoiser, x, s, number, trajectory.steps, objective)


def _ddim(
    direction: int, denoiser: Predict, x: Tensor, s: Tensor, number: int, steps: int, objective: Objective
) -> Tensor:
    """One step of `schedulers()[direction]`, with the noise that the network predicts at x."""
    scheduler = schedulers()[direction]
    scheduler.set_timesteps(steps)
    t = number * (TIMESTEPS // steps)
    eps = as_noise_predictor(denoiser, objective)(x, torch.full((len(x),), t, device=x.device), s)
    return scheduler.step(eps.float(), t, x, return_dict=False)[0]


@lru_cache(maxsize=8)
def belm_levels(steps: int) -> list[tuple[int, float, float]]:
    """(timestep, signal = sqrt(abar), noise / signal) of the image, at timestep -1, and of belm's levels."""
    abar = schedulers()[0].alphas_cumprod.double()
    times = range(TIMESTEPS // steps - 1, TIMESTEPS, TIMESTEPS // steps)
    return [(-1, 1.0, 0.0), *((t, abar[t].sqrt().item(), (1 / abar[t] - 1).sqrt().item()) for t in times)]


def _belm_encode(
    denoiser: Predict, x: Tensor, below: Tensor | None, s: Tensor, number: int, steps: int, objective: Objective
) -> Tensor:
    """From level `number` and the one below it to the next; the first step is Euler's."""
    levels = belm_levels(steps)
    (t, signal, ratio), (t_up, signal_up, ratio_up) = levels[number : number + 2]
    eps = as_noise_predictor(denoiser, objective)
    if below is None:
        return signal_up * (x + ratio_up * eps(x, torch.full((len(x),), t_up, device=x.device), s).float())
    _, signal_down, ratio_down = levels[number - 1]
    step, step_up = ratio - ratio_down, ratio_up - ratio
    noise = eps(x, torch.full((len(x),), t, device=x.device), s).float()
    back = below / signal_down - x / signal + step * (step + step_up) / step_up * noise
    return signal_up * (x / signal + back * (step_up / step) ** 2)


def _belm_decode(
    denoiser: Predict, x: Tensor, above: Tensor | None, s: Tensor, number: int, steps: int, objective: Objective
) -> Tensor:
    """From level `number` + 1 and the one above it to `number`; without one above, Euler's step."""
    levels = belm_levels(steps)
    (_, signal_down, ratio_down), (t, signal, ratio) = levels[number : number + 2]
    noise = as_noise_predictor(denoiser, objective)(x, torch.full((len(x),), t, device=x.device), s).float()
    step = ratio - ratio_down
    if above is None:
        return signal_down * (x / signal - step * noise)
    _, signal_up, ratio_up = levels[number + 2]
    step_up = ratio_up - ratio
    leap = (above / signal_up - x / signal) * (step / step_up) ** 2
    return signal_down * (x / signal + leap - step * (step + step_up) / step_up * noise)


def as_noise_predictor(denoiser: Predict, objective: Objective) -> Predict:
    """Convert a denoiser of any objective to prediction of the noise eps on DDPM's levels.

    "v": eps = sqrt(abar) v + sqrt(1 - abar) x. "flow": evaluated at the time with the same ratio of noise to signal.
    """
    if objective == "eps":
        return denoiser

    def eps(x: Tensor, t: Tensor, s: Tensor) -> Tensor:
        abar = schedulers()[0].alphas_cumprod.to(x.device)[t][:, None, None, None]
        signal, noise = abar.sqrt(), (1 - abar).sqrt()
        if objective == "v":
            return signal * denoiser(x, t, s).float() + noise * x
        x_flow, t_flow = x / (signal + noise), noise / (signal + noise)
        return x_flow + (1 - t_flow) * denoiser(x_flow, t_flow.flatten() * TIMESTEPS, s).float()

    return eps


def _flow_step(
    denoiser: Predict, x: Tensor, s: Tensor, t: float, step: float, solver: Solver, objective: Objective
) -> Tensor:
    """From x [B,3,R,R] at time t in 0..1 of a rectified flow to t + step, by a second-order rule."""
    if objective != "flow":
        raise InputError(f"{solver} needs a rectified flow, this denoiser predicts {objective}: use ddim or belm")

    def velocity(x: Tensor, t: float) -> Tensor:
        return denoiser(x, torch.full((len(x),), t * TIMESTEPS, device=x.device), s).float()

    first = velocity(x, t)
    if solver == "midpoint":
        return x + step * velocity(x + step / 2 * first, t + step / 2)
    return x + step / 2 * (first + velocity(x + step * first, t + step))


@torch.no_grad()
def renoise_and_sample(
    denoiser: Predict, x0: Tensor, s: Tensor, trajectory: Trajectory, objective: Objective, seed: int
) -> Sampled:
    """SDEdit (Meng et al. 2022): add noise to images x0 [B,3,R,R] and denoise by DDPM's steps (DDIM with eta 1).

    s: standardised style codes [B,S]. trajectory: `ratio` sets the amount of noise. objective: of the denoiser.
    seed: of the noise of all levels, which is the same for every image of the batch.
    """
    scheduler, stride, rng = schedulers()[0], TIMESTEPS // trajectory.steps, torch.Generator().manual_seed(seed)
    scheduler.set_timesteps(trajectory.steps)
    eps = as_noise_predictor(denoiser, objective)

    def noise() -> Tensor:
        return torch.randn(1, *x0.shape[1:], generator=rng).to(x0.device).expand(x0.shape)

    top = torch.full((len(x0),), (trajectory.count - 1) * stride, device=x0.device)
    x = add_noise(x0.float(), noise(), top, "eps")
    for t in range((trajectory.count - 1) * stride, -1, -stride):
        predicted = eps(x, torch.full((len(x),), t, device=x.device), s).float()
        x = scheduler.step(predicted, t, x, eta=1.0, variance_noise=noise(), return_dict=False)[0]
    return Sampled(x, trajectory.count)


def add_noise(x0: Tensor, noise: Tensor, t: Tensor, objective: Objective) -> Tensor:
    """Mix images and noise [B,3,R,R] at times t [B], as the training of a denoiser with this objective does."""
    if objective == "flow":
        return torch.lerp(x0, noise, (t / TIMESTEPS)[:, None, None, None])
    return schedulers()[0].add_noise(x0, noise, t)  # type: ignore[arg-type]


def time_at_noise_ratio(ratio: float, objective: Objective) -> float | int:
    """Time at which the noise is about `ratio` times as strong as the image."""
    if objective == "flow":
        return TIMESTEPS * ratio / (1 + ratio)
    abar = schedulers()[0].alphas_cumprod
    return min(TIMESTEPS - 1, int(((1 / abar - 1).sqrt() < ratio).sum()))


def check_steps(steps: int) -> None:
    """Raise InputError for steps that do not divide 1000: the two directions would visit different levels."""
    divisors = [n for n in range(1, TIMESTEPS + 1) if TIMESTEPS % n == 0]
    if steps not in divisors:
        below, above = [n for n in divisors if n < steps][-1:], [n for n in divisors if n > steps][:1]
        use = " or ".join(str(n) for n in below + above)
        raise InputError(f"{steps} sampling steps do not divide {TIMESTEPS}: use {use}")


def standardise(s: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Standardise raw codes s [B,S] by mean and std [S] of a domain's codes: the condition of a denoiser.

    Deviations count as at least 1 % of their average, so that rounding of nearly constant channels is not amplified.
    """
    return (s - mean) / std.clamp(min=0.01 * std.mean().item())
