"""How DeltaEdit-D's denoiser learns: the noise in images, told their style codes (DDPM's simple loss, section 4.2)."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from pipeline import training
from pipeline.models.ode_solvers import TIMESTEPS, Objective, Predict, mixed, schedulers, standardise
from pipeline.models.stylespace import Space, w_plus_layout
from pipeline.runtime import files
from pipeline.runtime.errors import InputError
from pipeline.runtime.precision import lowered
from pipeline.training import Best, Curve, Ema, Metrics, batch_rows, fit, generator_for

if TYPE_CHECKING:
    from pipeline.models.stylegan2 import Generator
    from pipeline.models.unet import Denoiser

PRETRAINED = "pretrained"
OTHER_PROCESS = 7919  # seeds of processes that share a training lie so far apart
Batches = Callable[[Tensor, torch.Generator], tuple[Tensor, ...]]
"""rows [B], where chance comes from -> (images [B,3,R,R] in [-1,1], s [B,S] standardised[, before [B,3,R,R]])"""
LEAST, WHOLE = 0.2, 0.7  # times of a flow below which no other picture shows through, and from which it may be whole


@dataclass(frozen=True)
class DiffusionParams:
    """steps: of the optimiser; 0 with init "pretrained" hands the shipped file on, byte for byte.

    images: what the network learns to draw, "photo" (the paper) or "reconstruction", what the generator makes of its
    codes: then s leaves out little.
    space: of the codes it is told, "s" (the paper) or "w_plus" (its figure 19).
    mirror: pictures are also shown mirrored, each with the code that the encoder reads from the mirrored one.
    init: "pretrained" to go on from the domain's weights, "body" from all of them but what reads codes, which starts
    anew, "random" to start anew with the domain's network sizes.
    batch: images per step. lr, weight_decay: AdamW's, constant. clip: largest norm of the gradient.
    ema: decay per step of the average that is kept, reached through (1 + step) / (10 + step).
    seed: fixes first weights, batches, timesteps and noise.
    """

    steps: int
    images: Literal["photo", "reconstruction"]
    space: Space
    mirror: bool
    init: Literal["pretrained", "body", "random"]
    batch: int
    lr: float
    weight_decay: float
    clip: float
    ema: float
    seed: int

    def __post_init__(self) -> None:
        if self.steps < 0 or self.batch < 1:
            raise ValueError(f"{self.steps} steps of batch {self.batch}: steps from 0, a batch from 1 are expected")
        if self.space != "s" and self.init == PRETRAINED:
            raise ValueError(f"the shipped weights are told s, not {self.space}: set init to body or random")
        if not (self.lr > 0 and self.clip > 0 and self.weight_decay >= 0 and 0 <= self.ema < 1):
            raise ValueError("lr and clip must be above 0, weight_decay from 0, ema from 0 and below 1")


def loss(
    denoiser: Predict,
    x0: Tensor,
    s: Tensor,
    generator: torch.Generator,
    objective: Objective = "eps",
    before: Tensor | None = None,
) -> Tensor:
    """Mean squared error of what the denoiser says (for "eps": DDPM eq. 14), t uniform over all times -> scalar.

    x0 [B,3,R,R] in [-1,1], s [B,S] standardised. The CPU `generator` alone decides t and noise; noise is drawn on
    x0's device. before (flows only): pictures before an edit that made them x0. They show through the noise, more at
    late times, and the velocity leads from there to x0 all the same: what s says then outweighs what is seen.
    """
    if objective == "flow":
        t = torch.rand(len(x0), generator=generator).to(x0.device) * TIMESTEPS
    else:
        t = torch.randint(TIMESTEPS, (len(x0),), generator=generator).to(x0.device)
    seed = int(torch.randint(2**62, (), generator=generator))
    noise = torch.randn(x0.shape, generator=torch.Generator(x0.device).manual_seed(seed), device=x0.device)
    goal = wanted(x0, noise, t, objective)
    noisy = mixed(x0, noise, t, objective)
    if before is not None:
        part = (t / TIMESTEPS)[:, None, None, None]
        most = ((part - LEAST) / (WHOLE - LEAST)).clamp(0, 1)
        shown = torch.rand(len(x0), generator=generator).to(part)[:, None, None, None] * most * (before - x0)
        noisy, goal = noisy + (1 - part) * shown, goal + (1 - part) / part.clamp(min=LEAST) * shown
    return (denoiser(noisy, t, s).float() - goal).square().mean()


def wanted(x0: Tensor, noise: Tensor, t: Tensor, objective: Objective) -> Tensor:
    """What a denoiser should say of the mixture at times t [B], [B,3,R,R]."""
    if objective == "flow":
        return noise - x0
    return noise if objective == "eps" else schedulers()[0].get_velocity(x0, noise, t)  # type: ignore[arg-type]


def in_memory(images: Tensor, s: Tensor, mean: Tensor, std: Tensor) -> Batches:
    """Batches out of images uint8 [N,3,R,R] and raw s [N,S] (any float type), standardised by mean and std [S]."""

    def batch(rows: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        return images[rows].float() / 127.5 - 1, standardise(s[rows].float(), mean, std)

    return batch


def sizes(generator: Generator, space: Space = "s") -> dict[str, Any]:
    """What the generator decides of its denoiser: resolution, widths of the style levels, where they act."""
    from pipeline.models.unet import boundaries_of

    layout, split = generator.layout, generator.layout.split
    sizes = list(layout.level_sizes)
    if space == "w_plus":  # row i is read by convolution i, so the levels begin where those of s do
        rows = list(w_plus_layout(generator.num_ws, generator.style_dim, split).level_sizes)
        for level in (2, 1):
            if not sizes[level]:  # the last row, which colours alone read, begins no level of its own
                rows[level - 1 : level + 1] = [rows[level - 1] + rows[level], 0]
        sizes = rows
    return {
        "resolution": generator.size,
        "style_sizes": tuple(sizes),
        "space": space,
        "boundaries": boundaries_of(split),
    }


def first_weights(params: DiffusionParams, shipped: Path | None, numbers: Mapping[str, Any]) -> Denoiser:
    """The network that training starts from: the file `shipped`, or `Denoiser(**numbers)` with weights from the seed.

    `numbers` must hold resolution, space and style_sizes; of "body", those of the file hold where they say nothing.
    `shipped` may be None for random weights. InputError if the file is missing, broken, or made for other sizes.
    """
    from pipeline.models import unet

    if params.init == "random":
        return _anew(numbers, params.seed)
    assert shipped is not None
    network = unet.load(shipped, hint="set diffusion.init to random")
    told = () if params.init == "body" else ("space", "style_sizes")
    for key in ("resolution", *told):
        wanted = list(numbers[key]) if key == "style_sizes" else numbers[key]
        if network.spec[key] != wanted:
            raise InputError(f"{shipped} is for {key} {network.spec[key]}, not {wanted}: set diffusion.init to random")
    if params.init == "body":
        known = {key: value for key, value in network.state_dict().items() if not unet.reads_codes(key)}
        ours = {key: numbers[key] for key in ("space", "style_sizes", "boundaries") if key in numbers}
        network = _anew(network.spec | ours, params.seed)
        network.load_state_dict(network.state_dict() | known)
    return network.requires_grad_(True)


def _anew(numbers: Mapping[str, Any], seed: int) -> Denoiser:
    from pipeline.models import unet

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return unet.Denoiser(**numbers)


def steps(
    network: Denoiser,
    params: DiffusionParams,
    batches: Batches,
    count: int,
    checkpoint: Path | None = None,
    every: int = 500,
    seconds: float | None = None,
    device: str = "cpu",
    curve: Curve | None = None,
    judge: Callable[[Denoiser], float] | None = None,
) -> Iterator[tuple[int, Metrics, Denoiser]]:
    """Yield (finished steps, {"loss"}, averaged network), over `count` rows of data; goes on from `checkpoint`.

    With `judge`, its loss chooses among the averages after every `every` steps, at the end, and the first weights: the
    best so far is what is yielded. `curve` takes in every step and is saved with the state.

    Each step is a function of the state and its own number, so a killed and resumed run ends with the same bytes.
    """
    network = network.train().to(device)  # type: ignore[arg-type]
    ema = Ema(network)
    best = None if judge is None else Best(ema.module, judge)
    adam = torch.optim.AdamW(network.parameters(), lr=params.lr, weight_decay=params.weight_decay)

    rank, share = training.share(params.batch)

    def step(number: int) -> Metrics:
        generator = generator_for(params.seed + rank * OTHER_PROCESS, number)
        x0, s, *before = (part.to(device) for part in batches(batch_rows(count, share, generator), generator))
        torch.manual_seed(number)  # dropout
        with lowered(device):
            value = loss(network, x0, s, generator, network.objective, *before)
        value.backward()
        training.average_gradients(network)
        torch.nn.utils.clip_grad_norm_(network.parameters(), params.clip)
        adam.step()
        adam.zero_grad(set_to_none=True)
        ema.update(network, min(params.ema, (1 + number) / (10 + number)))
        if best is not None and ((number + 1) % every == 0 or number + 1 == params.steps):
            best.look(ema.module)
        return {"loss": value.item()}

    chosen = best or ema
    parts = {"network": network, "ema": ema, "adam": adam, **({} if best is None else {"best": best})}
    for done, metrics in fit(step, parts, params.steps, checkpoint, every, seconds, curve):
        yield done, metrics, chosen.module  # type: ignore[misc]


@torch.inference_mode()
def validation_loss(network: Denoiser, batches: Batches, count: int, batch: int = 64, seed: int = 0) -> float:
    """The loss over all `count` rows, each with one fixed timestep and noise: comparable between runs."""
    total = 0.0
    for start in range(0, count, batch):
        rows = torch.arange(start, min(start + batch, count))
        generator = generator_for(seed, start)
        x0, s = (value.to(network.device) for value in batches(rows, generator)[:2])
        total += loss(network, x0, s, generator, network.objective).item() * len(rows)
    return total / count


@torch.inference_mode()
def loss_by_time(network: Denoiser, batches: Batches, count: int, levels: int = 10, seed: int = 0) -> Curve:
    """The loss over `count` rows at each of `levels` times, from the picture (0) to the noise (1000)."""
    rows, objective = torch.arange(count), network.objective
    x0, s = (value.to(network.device) for value in batches(rows, generator_for(seed, 0))[:2])
    noise = torch.randn(x0.shape, generator=generator_for(seed, 1)).to(x0)
    curve = Curve(1)
    for level in range(levels):
        time = TIMESTEPS * (2 * level + 1) // (2 * levels)
        t = torch.full((count,), time, device=x0.device)
        said = network(mixed(x0, noise, t, objective), t, s).float()
        value = (said - wanted(x0, noise, t, objective)).square().mean().item()
        curve.rows.append({"step": time, "loss": value})
    return curve


def hand_on(shipped: Path, out: Path) -> None:
    """What no steps from the shipped weights make: the same file."""
    with files.replacing(out) as partial:
        shutil.copyfile(shipped, partial)
