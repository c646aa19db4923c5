"""The training loop of all networks: numbered steps, state saved atomically, resumed after the last saved step.

A step draws all random numbers from its own number (`generator_for`), so a run that was killed and resumed ends with
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
    """Part of a training whose state is saved."""

    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: Any) -> Any: ...


class Ema:
    """Exponential moving average of a module's parameters; buffers are copied. `module` is the average."""

    def __init__(self, module: nn.Module) -> None:
        self.module = copy.deepcopy(module).eval().requires_grad_(False)

    @torch.no_grad()
    def update(self, module: nn.Module, decay: float) -> None:
        """average = decay * average + (1 - decay) * module."""
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
    """Copy of the module with the lowest validation loss so far, beginning with the first one."""

    def __init__(self, module: nn.Module, validate: Callable[[Any], float]) -> None:
        self.validate, self.loss = validate, validate(module)
        self.module = copy.deepcopy(module)

    def update(self, module: nn.Module) -> None:
        """Copy the module's weights if its loss is lower."""
        loss = self.validate(module)
        if not loss >= self.loss:  # also replaces a loss that is NaN
            self.loss = loss
            self.module.load_state_dict(module.state_dict())

    def state_dict(self) -> dict[str, Any]:
        return {"loss": self.loss, "module": self.module.state_dict()}

    def load_state_dict(self, state: Any) -> None:
        self.loss = float(state["loss"])
        self.module.load_state_dict(state["module"])


class Curve:
    """Metrics of a training: one row per `every` steps, the means over them. Saved with the rest of the state."""

    def __init__(self, every: int) -> None:
        self.every = every
        self.rows: list[Metrics] = []
        self.open: list[Metrics] = []  # steps after the last row

    def add(self, finished: int, metrics: Metrics) -> None:
        """Add the metrics of a step; `finished` counts the steps so far."""
        self.open.append(metrics)
        if finished % self.every == 0:
            means = {name: sum(m[name] for m in self.open) / len(self.open) for name in metrics}
            self.rows.append({"step": finished, **means})
            self.open = []

    def state_dict(self) -> dict[str, Any]:
        return {"rows": self.rows, "open": self.open}

    def load_state_dict(self, state: Any) -> None:
        self.rows, self.open = list(state["rows"]), list(state["open"])


def generator_for(seed: int, step: int) -> torch.Generator:
    """Random generator of one step, a function of (seed, step) alone."""
    return torch.Generator().manual_seed((seed * 1_000_003 + step) * 2_654_435_761 % 2**63)


def batch_rows(count: int, batch: int, generator: torch.Generator) -> Tensor:
    """Row numbers [batch] drawn from range(count) with replacement."""
    return torch.randint(count, (batch,), generator=generator)


def local_batch(batch: int) -> tuple[int, int]:
    """Rank of this process and its part of a batch under torchrun; 0 and the whole batch otherwise."""
    if not _distributed():
        return 0, batch
    count = torch.distributed.get_world_size()
    if batch % count:
        raise InputError(f"a batch of {batch} cannot be shared by {count} processes: start a number that divides it")
    return torch.distributed.get_rank(), batch // count


def average_gradients(*modules: nn.Module) -> None:
    """Average the gradients over all processes under torchrun; do nothing otherwise."""
    if not _distributed():
        return
    gradients = [p.grad for module in modules for p in module.parameters() if p.grad is not None]
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    torch.distributed.all_reduce(flat)
    flat /= torch.distributed.get_world_size()
    for gradient, mean in zip(gradients, flat.split([gradient.numel() for gradient in gradients]), strict=True):
        gradient.copy_(mean.view_as(gradient))


def join(device: str) -> str:
    """Join the process group if torchrun started this process; returns the device to train on."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not _distributed():
        torch.distributed.init_process_group("nccl" if device.startswith("cuda") else "gloo")
    return f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if _distributed() and device == "cuda" else device


def first_process() -> bool:
    """Whether this is the process that writes files."""
    return not _distributed() or torch.distributed.get_rank() == 0


def wait_for_first() -> None:
    """Barrier: no process goes on before all have arrived, the first one included."""
    if _distributed():
        torch.distributed.barrier()


def _any_process(flag: bool) -> bool:
    """Whether `flag` is set in any process, so that all stop at the same step."""
    if not _distributed():
        return flag
    votes: list[bool | None] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(votes, flag)
    return any(votes)


def _distributed() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def save_state(path: Path, step: int, parts: Mapping[str, Stateful]) -> None:
    """Write the state of all parts and `step`, the number of finished steps, atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    torch.save({"step": step, **{name: part.state_dict() for name, part in parts.items()}}, partial)
    os.replace(partial, path)


def load_state(path: Path, parts: Mapping[str, Stateful]) -> int:
    """Restore the parts and return the number of finished steps; 0 when there is no file.

    A state with "whole": False, which was made from weights alone, restores the parts that it has. Raises InputError
    for a damaged file.
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
    """Run `step` for every number below `until` and yield (finished steps, its metrics).

    parts: what is restored from `checkpoint` first, and saved there every `every` steps and at the end.
    seconds: time after which the run stops early, saved, so that it can go on later.
    curve: takes in every step, and is saved as well.
    A run that an earlier call finished yields (`until`, {}) once.
    """
    parts = {**parts, "curve": curve} if curve else parts
    start = load_state(checkpoint, parts) if checkpoint else 0
    if start >= until:
        yield start, {}
    stop = time.monotonic() + seconds if seconds is not None else float("inf")
    for number in range(start, until):
        metrics = step(number)
        finished, late = number + 1, seconds is not None and _any_process(time.monotonic() > stop)
        if curve:
            curve.add(finished, metrics)
        if checkpoint and first_process() and (finished % every == 0 or finished == until or late):
            save_state(checkpoint, finished, parts)
        yield finished, metrics
        if late:
            return
