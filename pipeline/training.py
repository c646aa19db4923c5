"""The one training loop: steps numbered from zero, state saved whole, resumed where it stopped.

A step draws everything random from its own number (`generator_for`), so a run that was killed and resumed ends with
the bytes of an undisturbed one.
"""

from __future__ import annotations

import copy
import os
import pickle
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from pipeline.runtime.errors import InputError

Metrics = dict[str, float]


class Stateful(Protocol):
    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: Any) -> Any: ...


class Ema:
    """An exponential moving average of a module's parameters; buffers are copied. `module` is the average."""

    def __init__(self, module: nn.Module) -> None:
        self.module = copy.deepcopy(module).eval().requires_grad_(False)

    @torch.no_grad()
    def update(self, module: nn.Module, decay: float) -> None:
        averages: list[Tensor] = list(self.module.parameters())
        values: list[Tensor] = list(module.parameters())
        torch._foreach_lerp_(averages, values, 1 - decay)  # pyright: ignore[reportPrivateImportUsage]
        for average, value in zip(self.module.buffers(), module.buffers(), strict=True):
            average.copy_(value)

    def state_dict(self) -> dict[str, Any]:
        return self.module.state_dict()

    def load_state_dict(self, state: Any) -> Any:
        return self.module.load_state_dict(state)


class Best:
    """A copy of the module that `judge` gave the lowest loss so far, the first one's included."""

    def __init__(self, module: nn.Module, judge: Callable[[Any], float]) -> None:
        self.judge, self.loss = judge, judge(module)
        self.module = copy.deepcopy(module)

    def look(self, module: nn.Module) -> None:
        """Take the module's weights if they do better."""
        loss = self.judge(module)
        if not loss >= self.loss:  # also where that is no number
            self.loss = loss
            self.module.load_state_dict(module.state_dict())

    def state_dict(self) -> dict[str, Any]:
        return {"loss": self.loss, "module": self.module.state_dict()}

    def load_state_dict(self, state: Any) -> None:
        self.loss = float(state["loss"])
        self.module.load_state_dict(state["module"])


class Curve:
    """What a training measured: one row per `every` steps, the means over them. Saved with the state it belongs to."""

    def __init__(self, every: int) -> None:
        self.every = every
        self.rows: list[Metrics] = []
        self.open: list[Metrics] = []  # steps since the last row

    def add(self, done: int, metrics: Metrics) -> None:
        """Take in what step number `done` measured."""
        self.open.append(metrics)
        if done % self.every == 0:
            means = {name: sum(m[name] for m in self.open) / len(self.open) for name in metrics}
            self.rows.append({"step": done, **means})
            self.open = []

    def state_dict(self) -> dict[str, Any]:
        return {"rows": self.rows, "open": self.open}

    def load_state_dict(self, state: Any) -> None:
        self.rows, self.open = list(state["rows"]), list(state["open"])


def generator_for(seed: int, step: int) -> torch.Generator:
    """The randomness of one step, a function of (seed, step) alone."""
    return torch.Generator().manual_seed((seed * 1_000_003 + step) * 2_654_435_761 % 2**63)


def batch_rows(count: int, batch: int, generator: torch.Generator) -> Tensor:
    """Row numbers [batch] drawn from range(count) with replacement."""
    return torch.randint(count, (batch,), generator=generator)


def share(batch: int) -> tuple[int, int]:
    """This process's number and its part of a batch, under torchrun; 0 and the whole batch otherwise."""
    if not _shared():
        return 0, batch
    count = torch.distributed.get_world_size()
    if batch % count:
        raise InputError(f"a batch of {batch} cannot be shared by {count} processes: start a number that divides it")
    return torch.distributed.get_rank(), batch // count


def average_gradients(*modules: nn.Module) -> None:
    """Under torchrun, give every process the mean of all processes' gradients; nothing otherwise."""
    if not _shared():
        return
    gradients = [p.grad for module in modules for p in module.parameters() if p.grad is not None]
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    torch.distributed.all_reduce(flat)
    flat /= torch.distributed.get_world_size()
    for gradient, mean in zip(gradients, flat.split([gradient.numel() for gradient in gradients]), strict=True):
        gradient.copy_(mean.view_as(gradient))


def join(device: str) -> str:
    """Meet the other processes that torchrun started, if any; the device that this one trains on."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not _shared():
        torch.distributed.init_process_group("nccl" if device.startswith("cuda") else "gloo")
    return f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if _shared() and device == "cuda" else device


def first_process() -> bool:
    """Whether this is the one process that writes files."""
    return not _shared() or torch.distributed.get_rank() == 0


def wait_for_first() -> None:
    """Let the other processes wait until the first one is here as well."""
    if _shared():
        torch.distributed.barrier()


def _agreed(flag: bool) -> bool:
    """Whether `flag` holds in any process, so that all stop at the same step."""
    if not _shared():
        return flag
    votes: list[bool | None] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(votes, flag)
    return any(votes)


def _shared() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def save_state(path: Path, step: int, parts: Mapping[str, Stateful]) -> None:
    """Write the state of all parts and the number of finished steps, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    torch.save({"step": step, **{name: part.state_dict() for name, part in parts.items()}}, partial)
    os.replace(partial, path)


def load_state(path: Path, parts: Mapping[str, Stateful]) -> int:
    """Restore the parts and return the number of finished steps; 0 when there is no file.

    A state with "whole": False, made of weights alone, restores what it has. Raises InputError for a damaged file.
    """
    if not path.exists():
        return 0
    try:
        state = torch.load(path, weights_only=True, map_location="cpu")
        for name, part in parts.items():
            if name in state or state.get("whole", True):
                part.load_state_dict(state[name])
        return int(state["step"])
    except (RuntimeError, KeyError, ValueError, EOFError, pickle.UnpicklingError) as error:
        reason = " ".join(str(error).split())[:120]
        raise InputError(f"{path} is damaged or of another network ({reason}): remove it to start anew") from error


def fit(
    step: Callable[[int], Metrics],
    parts: Mapping[str, Stateful],
    until: int,
    checkpoint: Path | None = None,
    every: int = 1000,
    seconds: float | None = None,
    curve: Curve | None = None,
) -> Iterator[tuple[int, Metrics]]:
    """Yield (finished steps, what `step` measured) up to `until`, saving `parts` every `every` steps and at the end.

    `seconds` ends the run early, saved, so that it can go on later. `curve` takes in every step and is saved as well.
    A run that was finished before yields (`until`, {}) once.
    """
    parts = {**parts, "curve": curve} if curve else parts
    start = load_state(checkpoint, parts) if checkpoint else 0
    if start >= until:
        yield start, {}
    stop = time.monotonic() + seconds if seconds is not None else float("inf")
    for number in range(start, until):
        metrics = step(number)
        done, late = number + 1, seconds is not None and _agreed(time.monotonic() > stop)
        if curve:
            curve.add(done, metrics)
        if checkpoint and first_process() and (done % every == 0 or done == until or late):
            save_state(checkpoint, done, parts)
        yield done, metrics
        if late:
            return
