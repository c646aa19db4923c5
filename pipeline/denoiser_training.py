"""Training of the denoiser of DeltaEdit-D: DDPM's simple loss, conditioned on style codes (DeltaEdit section 4.2)."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from pipeline import sampling, training
from pipeline.models.ode_solvers import TIMESTEPS, Objective, Predict, add_noise, schedulers, standardise
from pipeline.models.stylespace import Space, w_plus_layout
from pipeline.runtime import files
from pipeline.runtime.errors import InputError
from pipeline.runtime.precision import lowered
from pipeline.storage import weights
from pipeline.training import Best, Curve, Ema, Metrics, batch_rows, fit, generator_for

if TYPE_CHECKING:
    from pipeline.models.stylegan2 import Generator
    from pipeline.models.unet import Denoiser
    from pipeline.networks import Networks

PRETRAINED = "pretrained"
SEED_STRIDE = 7919  # between the seeds of processes that share a training
BLEND_FROM, BLEND_WHOLE = 0.2, 0.7  # times of a flow from which another image is blended in, and may be whole

Batches = Callable[[Tensor, torch.Generator], tuple[Tensor, ...]]
"""rows [B], random generator -> (images [B,3,R,R] in [-1,1], condition [B,S] standardised[, source [B,3,R,R]])"""


@dataclass(frozen=True)
class DiffusionParams:
    """Section `diffusion` of params.yaml.

    steps: optimiser steps; 0 with init "pretrained" copies the shipped file, byte for byte.
    space: codes that it is conditioned on, "s" (the paper) or "w_plus" (its figure 19).
    init: "pretrained": the domain's weights; "body": the same, except for new layers that read codes; "random": new
        weights of the domain's network sizes.
    batch: images per step.
    lr, weight_decay: AdamW's, constant.
    clip: largest norm of the gradient.
    ema: decay per step of the weight average that is kept, reached through (1 + step) / (10 + step).
    seed: fixes initial weights, batches, timesteps and noise.
    """

    steps: int
    space: Space
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
            raise ValueError(f"the shipped weights are conditioned on s, not {self.space}: set init to body or random")
        if not (self.lr > 0 and self.clip > 0 and self.weight_decay >= 0 and 0 <= self.ema < 1):
            raise ValueError("lr and clip must be above 0, weight_decay from 0, ema from 0 and below 1")


def loss(
    denoiser: Predict,
    x0: Tensor,
    s: Tensor,
    generator: torch.Generator,
    objective: Objective = "eps",
    source_images: Tensor | None = None,
) -> Tensor:
    """Mean squared error of the denoiser's prediction (for "eps": DDPM eq. 14), t uniform over all times -> scalar.

    x0: images [B,3,R,R] in [-1,1].
    s: standardised condition [B,S].
    generator: CPU generator that alone decides t and the noise; the noise is drawn on x0's device.
    source_images: for flows, images [B,3,R,R] that an edit turned into x0. They are blended into the noisy image, more
        at late times, while the velocity still leads to x0: the condition then outweighs the input.
    """
    if objective == "flow":
        t = torch.rand(len(x0), generator=generator).to(x0.device) * TIMESTEPS
    else:
        t = torch.randint(TIMESTEPS, (len(x0),), generator=generator).to(x0.device)
    seed = int(torch.randint(2**62, (), generator=generator))
    noise = torch.randn(x0.shape, generator=torch.Generator(x0.device).manual_seed(seed), device=x0.device)
    goal = target(x0, noise, t, objective)
    noisy = add_noise(x0, noise, t, objective)
    if source_images is not None:
        part = (t / TIMESTEPS)[:, None, None, None]
        most = ((part - BLEND_FROM) / (BLEND_WHOLE - BLEND_FROM)).clamp(0, 1)
        blend = torch.rand(len(x0), generator=generator).to(part)[:, None, None, None] * most * (source_images - x0)
        noisy, goal = noisy + (1 - part) * blend, goal + (1 - part) / part.clamp(min=BLEND_FROM) * blend
    return (denoiser(noisy, t, s).float() - goal).square().mean()


def target(x0: Tensor, noise: Tensor, t: Tensor, objective: Objective) -> Tensor:
    """Target [B,3,R,R] of a denoiser's prediction from the noisy image of x0 at times t [B]: noise or velocity."""
    if objective == "flow":
        return noise - x0
    return noise if objective == "eps" else schedulers()[0].get_velocity(x0, noise, t)  # type: ignore[arg-type]


@torch.no_grad()
def condition(networks: Networks, w_plus: Tensor) -> Tensor:
    """Standardised condition of the domain's denoiser for codes w_plus [B,L,D]: their s [B,S], or w_plus [B,L*D]."""
    space = networks.denoiser.space
    codes = networks.generator.styles(w_plus) if space == "s" else w_plus.flatten(1)
    return standardise(codes, *sampling.style_stats(networks, space))


def in_memory(images: Tensor, s: Tensor, mean: Tensor, std: Tensor) -> Batches:
    """Batches of uint8 images [N,3,R,R] and codes s [N,S] of any float type, standardised by mean and std [S]."""

    def batch(rows: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        return images[rows].float() / 127.5 - 1, standardise(s[rows].float(), mean, std)

    return batch


def network_sizes(generator: Generator, space: Space = "s") -> dict[str, Any]:
    """Arguments of `unet.Denoiser` that follow from the generator: resolution, widths of the levels, boundaries."""
    from pipeline.models.unet import boundaries_of

    layout, split = generator.layout, generator.layout.split
    sizes = list(layout.level_sizes)
    if space == "w_plus":  # row i is read by convolution i, so the levels begin at the same layers as those of s
        sizes = list(w_plus_layout(generator.num_ws, generator.style_dim, split).level_sizes)
        for level in (2, 1):
            if not layout.level_sizes[level]:  # the last row, which only toRGB reads, is no level of its own
                sizes[level - 1 : level + 1] = [sizes[level - 1] + sizes[level], 0]
    return {
        "resolution": generator.size,
        "style_sizes": tuple(sizes),
        "space": space,
        "boundaries": boundaries_of(split),
    }


def initial_network(params: DiffusionParams, shipped: Path | None, numbers: Mapping[str, Any]) -> Denoiser:
    """Network that training starts from, as `params.init` says.

    shipped: file of the pretrained weights; may be None for init "random".
    numbers: arguments of `unet.Denoiser`, at least resolution, space and style_sizes; for "body", the file's numbers
        apply where these are silent.
    Raises InputError if the file is missing, broken, or of other sizes.
    """
    from pipeline.models import unet

    if params.init == "random":
        return _random_network(numbers, params.seed)
    assert shipped is not None
    network = load(shipped, hint="set diffusion.init to random")
    fixed = () if params.init == "body" else ("space", "style_sizes")
    for key in ("resolution", *fixed):
        expected = list(numbers[key]) if key == "style_sizes" else numbers[key]
        if network.spec[key] != expected:
            raise InputError(
                f"{shipped} is for {key} {network.spec[key]}, not {expected}: set diffusion.init to random"
            )
    if params.init == "body":
        body = {key: value for key, value in network.state_dict().items() if not unet.is_style_weight(key)}
        ours = {key: numbers[key] for key in ("space", "style_sizes", "boundaries") if key in numbers}
        network = _random_network(network.spec | ours, params.seed)
        network.load_state_dict(network.state_dict() | body)
    return network.requires_grad_(True)


def _random_network(numbers: Mapping[str, Any], seed: int) -> Denoiser:
    from pipeline.models import unet

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return unet.Denoiser(**numbers)


def train(
    network: Denoiser,
    params: DiffusionParams,
    batches: Batches,
    count: int,
    checkpoint: Path | None = None,
    every: int = 500,
    seconds: float | None = None,
    device: str = "cpu",
    curve: Curve | None = None,
    validate: Callable[[Denoiser], float] | None = None,
) -> Iterator[tuple[int, Metrics, Denoiser]]:
    """Yield (finished steps, {"loss"}, averaged network) after each step; goes on from `checkpoint`.

    batches, count: source of training data, and its number of rows.
    checkpoint, every, seconds, curve: see `pipeline.training.fit`.
    validate: loss of a network on other data. With it, the network that is yielded is the best so far among the initial
        one, the averages after every `every` steps, and the last.

    A step is a function of the state and its own number, so that a killed and resumed run ends with the same bytes.
    """
    network = network.train().to(device)  # type: ignore[arg-type]
    ema = Ema(network)
    best = None if validate is None else Best(ema.module, validate)
    adam = torch.optim.AdamW(network.parameters(), lr=params.lr, weight_decay=params.weight_decay)
    rank, batch = training.local_batch(params.batch)

    def step(number: int) -> Metrics:
        generator = generator_for(params.seed + rank * SEED_STRIDE, number)
        x0, s, *source_images = (part.to(device) for part in batches(batch_rows(count, batch, generator), generator))
        torch.manual_seed(number)  # dropout
        with lowered(device):
            value = loss(network, x0, s, generator, network.objective, *source_images)
        value.backward()
        training.average_gradients(network)
        torch.nn.utils.clip_grad_norm_(network.parameters(), params.clip)
        adam.step()
        adam.zero_grad(set_to_none=True)
        ema.update(network, min(params.ema, (1 + number) / (10 + number)))
        if best is not None and ((number + 1) % every == 0 or number + 1 == params.steps):
            best.update(ema.module)
        return {"loss": value.item()}

    chosen = best or ema
    parts = {"network": network, "ema": ema, "adam": adam, **({} if best is None else {"best": best})}
    for finished, metrics in fit(step, parts, params.steps, checkpoint, every, seconds, curve):
        yield finished, metrics, chosen.module  # type: ignore[misc]


@torch.inference_mode()
def validation_loss(network: Denoiser, batches: Batches, count: int, batch: int = 64, seed: int = 0) -> float:
    """Mean loss over all rows of `batches`, each with a fixed timestep and noise, so that runs can be compared.

    count: number of rows.
    batch: rows per forward pass; together with the seed it fixes timesteps and noise.
    """
    total = 0.0
    for start in range(0, count, batch):
        rows = torch.arange(start, min(start + batch, count))
        generator = generator_for(seed, start)
        x0, s = (value.to(network.device) for value in batches(rows, generator)[:2])
        total += loss(network, x0, s, generator, network.objective).item() * len(rows)
    return total / count


@torch.inference_mode()
def loss_by_time(network: Denoiser, batches: Batches, count: int, levels: int = 10, seed: int = 0) -> Curve:
    """Mean loss at each of `levels` times, from the image (0) to the noise (1000); column "step" is the time.

    count: rows of `batches` that are used, in one batch.
    seed: of the noise, the same at all times.
    """
    rows, objective = torch.arange(count), network.objective
    x0, s = (value.to(network.device) for value in batches(rows, generator_for(seed, 0))[:2])
    noise = torch.randn(x0.shape, generator=generator_for(seed, 1)).to(x0)
    curve = Curve(1)
    for level in range(levels):
        time = TIMESTEPS * (2 * level + 1) // (2 * levels)
        t = torch.full((count,), time, device=x0.device)
        predicted = network(add_noise(x0, noise, t, objective), t, s).float()
        value = (predicted - target(x0, noise, t, objective)).square().mean().item()
        curve.rows.append({"step": time, "loss": value})
    return curve


def copy_pretrained(shipped: Path, out: Path) -> None:
    """Copy the shipped file, which is what no steps from its weights give."""
    with files.replacing(out) as partial:
        shutil.copyfile(shipped, partial)


def save(path: Path, denoiser: Denoiser, **meta: Any) -> None:
    """Write the weights as float16 with the network's sizes, and JSON-able `meta`, to a safetensors file."""
    weights.save(path, denoiser.state_dict(), {"model": denoiser.spec, **meta})


def load(path: Path, device: str = "cpu", hint: str | None = None) -> Denoiser:
    """Load a denoiser from a file of `save`, frozen and in evaluation mode.

    hint: the command that makes the file, for error messages. Raises InputError if the file is missing, cut short or
    holds something else.
    """
    from pipeline.models import unet

    tensors, meta = weights.load(path, hint=hint)
    try:
        denoiser = unet.Denoiser(**meta["model"])
        denoiser.load_state_dict(tensors)
    except (KeyError, TypeError, RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"{path} does not hold a denoiser ({reason}): {hint or 'make it again'}") from error
    return denoiser.eval().requires_grad_(False).to(device)  # type: ignore[arg-type]
