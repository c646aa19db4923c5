"""An image to the noise it comes from, and back, without chance.

Both directions walk the same levels, a step at a time:

ddim      (Song et al. 2021, eq. 12, sigma 0), one evaluation a step. The clean image (abar = 1), then the timesteps 0,
          d, 2d, ..., 1000 - d with d = 1000 / steps, as DiffAE takes them. (Ending at 999 instead cost a first 64 px
          network 2 dB at 20 steps: eps errors count 1 / sqrt(abar) times.) From level a to level b, with eps asked at
          the noisier of the two:
            x_b = sqrt(abar_b) x0_hat + sqrt(1 - abar_b) eps,   x0_hat = (x_a - sqrt(1 - abar_a) eps) / sqrt(abar_a)
          x0_hat is never clipped, which could not be undone.
midpoint  along a rectified flow's paths (Liu et al. 2023), two evaluations a step; heun: the other rule of its order.
belm      O-BELM (Wang et al. 2024), one evaluation a step: a step joins three levels, so it is undone exactly, as long
          as the last two are kept. Its levels are the image and d - 1, 2d - 1, ..., 999: a first level close to the
          image would make the step up from it divide by almost nothing.

A step up of the first three is refined by a fixed point: what the step down makes of its result should be where it came
from. A network of velocity, or of a flow, stands for one of noise (`noise_of`), so all solvers but those of flows take
every network.
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
FLOWS = ("midpoint", "heun")  # solvers that only rectified flows have
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
"""(x [B,3,R,R], t [B] in 0..1000, s [B,S] standardised) -> what the objective asks for [B,3,R,R]"""
Held = Callable[[int, Tensor], Tensor]
"""(how many steps from the image, x [B,3,R,R]) -> what to go on from"""


class Sampled(NamedTuple):
    """x [B,3,R,R]: noise after `encode`, images after `decode`. evaluations: network passes per image.

    path: the states on the way, of `encode`: the last two, or all from the image on where they were to be kept.
    """

    x: Tensor
    evaluations: int
    path: tuple[Tensor, ...] = ()


@dataclass(frozen=True)
class Walk:
    """How far and how finely. steps: of the whole way, a divisor of 1000. ratio: the part of it that is walked.

    refine: further rounds per step up, each bringing the noise closer to what decoding in as many steps inverts (a
    first 64 px network of noise at 20 steps: 21 dB without, 33 dB with one). InputError for what cannot be walked.
    """

    steps: int
    solver: Solver
    refine: int = 0
    ratio: float = 1.0

    def __post_init__(self) -> None:
        check_steps(self.steps)
        if self.solver not in get_args(Solver):
            raise InputError(f"solver is {self.solver!r}: {', '.join(get_args(Solver))} are known")
        if self.refine < 0 or (self.refine and self.solver == "belm"):
            raise InputError(f"refine is {self.refine}: 0 or more is expected, and 0 for belm, which needs none")
        if not 0 < self.ratio <= 1:
            raise InputError(f"ratio is {self.ratio:g}: more than 0 and at most 1 is expected")
        if self.solver == "belm" and self.count < 2:
            raise InputError("belm walks two steps or more: raise steps, or ratio")

    @property
    def count(self) -> int:
        """Steps that are walked, one at least."""
        return max(1, round(self.steps * self.ratio))

    @property
    def dear(self) -> int:
        """Evaluations of a step down."""
        return 2 if self.solver in FLOWS else 1


def signal(number: int, walk: Walk) -> float:
    """The factor that the picture has in a state `number` steps from it."""
    if walk.solver in FLOWS or not number:
        return 1 - number / walk.steps
    if walk.solver == "belm":
        return levels(walk.steps)[number][1]
    return schedulers()[0].alphas_cumprod[(number - 1) * (TIMESTEPS // walk.steps)].sqrt().item()


@lru_cache
def schedulers() -> tuple[DDIMScheduler, DDIMInverseScheduler]:
    """(decoding, encoding) schedulers over the one noise schedule; the first also adds noise in training."""
    from diffusers.schedulers.scheduling_ddim import DDIMScheduler
    from diffusers.schedulers.scheduling_ddim_inverse import DDIMInverseScheduler

    return DDIMScheduler(**SCHEDULE), DDIMInverseScheduler(**SCHEDULE)


@torch.no_grad()
def encode(denoiser: Predict, x0: Tensor, s: Tensor, walk: Walk, objective: Objective, keep: bool = False) -> Sampled:
    """Images [B,3,R,R] with their own standardised s [B,S] -> the noise that `decode` turns back into them.

    That noise is not quite unit Gaussian for few steps, and must not be normalised. keep: all states of the way.
    """
    path = [x0.float()]
    for number in range(walk.count):
        path.append(_up(denoiser, path, s, number, walk, objective))
        path = path if keep else path[-2:]
    return Sampled(path[-1], walk.count * walk.dear * (1 + walk.refine), tuple(path))


@torch.no_grad()
def decode(
    denoiser: Predict, noise: Sampled, s: Tensor, walk: Walk, objective: Objective, held: Held | None = None
) -> Sampled:
    """Noise and standardised s [B,S] -> images [B,3,R,R], about in [-1,1] and not clamped.

    noise: of `encode` by the same walk, or `Sampled(x, 0)` of pure noise at its upper end. held: changes every state on
    the way down.
    """
    above, x, asked = None, noise.x, walk.count * walk.dear
    if walk.solver == "belm" and len(noise.path) > 1:
        above, x, asked = noise.x, noise.path[-2], asked - 1
    for number in reversed(range(walk.count if above is None else walk.count - 1)):
        above, x = x, _down(denoiser, x, above, s, number, walk, objective)
        x = x if held is None else held(number, x)
    return Sampled(x, asked)


def _up(denoiser: Predict, path: Sequence[Tensor], s: Tensor, number: int, walk: Walk, objective: Objective) -> Tensor:
    """From the last state of the path, `number` steps from the image, one step further."""
    x = path[-1]
    if walk.solver == "belm":
        return _belm_up(denoiser, x, path[-2] if number else None, s, number, walk.steps, objective)
    if walk.solver in FLOWS:
        now, size = number / walk.steps, 1 / walk.steps
        up = _along(denoiser, x, s, now, size, walk.solver, objective)
        for _ in range(walk.refine):
            up = up + x - _along(denoiser, up, s, now + size, -size, walk.solver, objective)
        return up
    up = x  # a step of ddim asks at the noisier level: on the way up that is its own result, at first where it starts
    for _ in range(1 + walk.refine):
        up = _ddim(1, denoiser, x, up, s, number, walk.steps, objective)
    return up


def _down(
    denoiser: Predict, x: Tensor, above: Tensor | None, s: Tensor, number: int, walk: Walk, objective: Objective
) -> Tensor:
    """From `number` + 1 steps from the image to `number`. above: the state before x, which belm needs."""
    if walk.solver == "belm":
        return _belm_down(denoiser, x, above, s, number, walk.steps, objective)
    if walk.solver in FLOWS:
        return _along(denoiser, x, s, (number + 1) / walk.steps, -1 / walk.steps, walk.solver, objective)
    return _ddim(0, denoiser, x, x, s, number, walk.steps, objective)


def _ddim(
    direction: int, denoiser: Predict, x: Tensor, at: Tensor, s: Tensor, number: int, steps: int, objective: Objective
) -> Tensor:
    """x one step on, by the noise that the network sees in `at`, the state at the noisier level."""
    scheduler = schedulers()[direction]
    scheduler.set_timesteps(steps)
    t = number * (TIMESTEPS // steps)
    eps = noise_of(denoiser, objective)(at, torch.full((len(x),), t, device=x.device), s)
    return scheduler.step(eps.float(), t, x, return_dict=False)[0]


@lru_cache(maxsize=8)
def levels(steps: int) -> list[tuple[int, float, float]]:
    """(timestep, signal = sqrt(abar), noise / signal) of the image, whose timestep is none, and of belm's levels."""
    abar = schedulers()[0].alphas_cumprod.double()
    times = range(TIMESTEPS // steps - 1, TIMESTEPS, TIMESTEPS // steps)
    return [(-1, 1.0, 0.0), *((t, abar[t].sqrt().item(), (1 / abar[t] - 1).sqrt().item()) for t in times)]


def _belm_up(
    denoiser: Predict, x: Tensor, below: Tensor | None, s: Tensor, number: int, steps: int, objective: Objective
) -> Tensor:
    """From level `number` and the one below it to the next; the first step is Euler's."""
    stairs = levels(steps)
    (t, here, at), (up, high, over) = stairs[number : number + 2]
    eps = noise_of(denoiser, objective)
    if below is None:
        return high * (x + over * eps(x, torch.full((len(x),), up, device=x.device), s).float())
    _, low, under = stairs[number - 1]
    step, wider = at - under, over - at
    noise = eps(x, torch.full((len(x),), t, device=x.device), s).float()
    back = below / low - x / here + step * (step + wider) / wider * noise
    return high * (x / here + back * (wider / step) ** 2)


def _belm_down(
    denoiser: Predict, x: Tensor, above: Tensor | None, s: Tensor, number: int, steps: int, objective: Objective
) -> Tensor:
    """From level `number` + 1 and the one above it to `number`; with none above, Euler's step."""
    stairs = levels(steps)
    (_, low, under), (t, here, at) = stairs[number : number + 2]
    noise = noise_of(denoiser, objective)(x, torch.full((len(x),), t, device=x.device), s).float()
    step = at - under
    if above is None:
        return low * (x / here - step * noise)
    _, high, over = stairs[number + 2]
    wider = over - at
    leap = (above / high - x / here) * (step / wider) ** 2
    return low * (x / here + leap - step * (step + wider) / wider * noise)


def noise_of(denoiser: Predict, objective: Objective) -> Predict:
    """The network of noise that a network stands for, on the levels of DDPM.

    Of velocity: sqrt(abar) v + sqrt(1 - abar) x. A flow is asked where signal and noise are mixed alike.
    """
    if objective == "eps":
        return denoiser

    def eps(x: Tensor, t: Tensor, s: Tensor) -> Tensor:
        abar = schedulers()[0].alphas_cumprod.to(x.device)[t][:, None, None, None]
        signal, noise = abar.sqrt(), (1 - abar).sqrt()
        if objective == "v":
            return signal * denoiser(x, t, s).float() + noise * x
        mixed, part = x / (signal + noise), noise / (signal + noise)
        return mixed + (1 - part) * denoiser(mixed, part.flatten() * TIMESTEPS, s).float()

    return eps


def _along(
    denoiser: Predict, x: Tensor, s: Tensor, t: float, step: float, solver: Solver, objective: Objective
) -> Tensor:
    """x [B,3,R,R] at time t in 0..1 of a rectified flow -> at t + step."""
    if objective != "flow":
        raise InputError(f"{solver} follows a rectified flow, this denoiser tells {objective}: use ddim or belm")

    def velocity(x: Tensor, t: float) -> Tensor:
        return denoiser(x, torch.full((len(x),), t * TIMESTEPS, device=x.device), s).float()

    first = velocity(x, t)
    if solver == "midpoint":
        return x + step * velocity(x + step / 2 * first, t + step / 2)
    return x + step / 2 * (first + velocity(x + step * first, t + step))


@torch.no_grad()
def unburied(denoiser: Predict, x0: Tensor, s: Tensor, walk: Walk, objective: Objective, seed: int) -> Sampled:
    """Images [B,3,R,R] mixed with noise as far as the walk goes, and drawn out of it again by DDPM's own steps.

    These draw new noise at every level (DDIM with eta 1); all noise is the same for every image of the batch.
    """
    scheduler, stride, chance = schedulers()[0], TIMESTEPS // walk.steps, torch.Generator().manual_seed(seed)
    scheduler.set_timesteps(walk.steps)
    eps = noise_of(denoiser, objective)

    def noise() -> Tensor:
        return torch.randn(1, *x0.shape[1:], generator=chance).to(x0.device).expand(x0.shape)

    top = torch.full((len(x0),), (walk.count - 1) * stride, device=x0.device)
    x = mixed(x0.float(), noise(), top, "eps")
    for t in range((walk.count - 1) * stride, -1, -stride):
        found = eps(x, torch.full((len(x),), t, device=x.device), s).float()
        x = scheduler.step(found, t, x, eta=1.0, variance_noise=noise(), return_dict=False)[0]
    return Sampled(x, walk.count)


def mixed(x0: Tensor, noise: Tensor, t: Tensor, objective: Objective) -> Tensor:
    """Images and noise [B,3,R,R] as a denoiser is shown them at times t [B]."""
    if objective == "flow":
        return torch.lerp(x0, noise, (t / TIMESTEPS)[:, None, None, None])
    return schedulers()[0].add_noise(x0, noise, t)  # type: ignore[arg-type]


def time_of(ratio: float, objective: Objective) -> float | int:
    """The time at which noise is about `ratio` times as strong as the picture."""
    if objective == "flow":
        return TIMESTEPS * ratio / (1 + ratio)
    abar = schedulers()[0].alphas_cumprod
    return min(TIMESTEPS - 1, int(((1 / abar - 1).sqrt() < ratio).sum()))


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
