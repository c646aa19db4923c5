"""`make bench`: what this repository's way costs against what a user would otherwise run, on this machine.

Every row runs `published`, `plain` and `ours` in turn, in one process with one thread, and keeps medians and the
ratio's 95 % interval (bootstrap over rounds). Seconds are the process's on a CPU, so that a neighbour on a busy machine
distorts them less; the load is recorded all the same. Memory is the peak of live tensors, the networks' apart.

Where no GPU is at hand, its rows are unmeasured: what one would take is projected, from the bytes and operations that
were counted here.
"""

from __future__ import annotations

import json
import os
import platform
import random
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from kernels import build
from pipeline.runtime import files, processes
from pipeline.runtime.errors import InputError, nearest

if TYPE_CHECKING:
    from pipeline.networks import Backbones

REPEATS = 2000  # of the bootstrap
Run = Callable[[], Tensor | None]


@dataclass(frozen=True)
class Case:
    """One row. Each function does the same work, or `parts` says how often published and plain must be repeated.

    Returns what is compared between published and ours, or None where that makes no sense. whole: what takes minutes
    is neither run once before nor watched for its memory.
    """

    published: Run
    plain: Run
    ours: Run
    rounds: int
    parts: float = 1.0
    whole: bool = False


@dataclass(frozen=True)
class Gpu:
    """What a GPU's data sheet promises: bytes and dense operations per second; and seconds to start an operation."""

    name: str
    bandwidth: float
    float32: float
    tensor32: float  # of convolutions in float32, which PyTorch rounds to TF32
    half: float
    launch: float


H200 = Gpu("NVIDIA H200", 4.8e12, 67e12, 494e12, 989e12, 4e-6)


class Watch(TorchDispatchMode):
    """The most bytes that tensors made inside held at once, and the seconds that a GPU would need at the least.

    Every operation is projected as the longer of moving its inputs and outputs once and of its multiplications and
    additions, plus its start; views are free.
    """

    def __init__(self, gpu: Gpu = H200) -> None:
        super().__init__()
        self.live: dict[int, tuple[Any, int]] = {}
        self.peak, self.gpu, self.projected = 0, gpu, 0.0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        from torch.multiprocessing.reductions import StorageWeakRef
        from torch.utils._pytree import tree_leaves

        inputs = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        before = {x.untyped_storage()._cdata for x in inputs}
        out = func(*args, **(kwargs or {}))
        outputs = [x for x in tree_leaves(out) if isinstance(x, Tensor)]
        if not outputs:  # what is written over its inputs
            written = [bool(told.alias_info and told.alias_info.is_write) for told in func._schema.arguments]
            found = tree_leaves([x for x, over in zip(args, written, strict=False) if over])
            outputs = [x for x in found if isinstance(x, Tensor)]
        for tensor in outputs:
            if tensor.untyped_storage()._cdata not in before:
                storage = tensor.untyped_storage()
                self.live[storage._cdata] = StorageWeakRef(storage), storage.nbytes()
        self.live = {key: (ref, size) for key, (ref, size) in self.live.items() if not ref.expired()}
        self.peak = max(self.peak, sum(size for _, size in self.live.values()))
        if not func.is_view:
            self.projected += self._seconds(func, inputs, outputs, args, kwargs or {}, out)
        return out

    def _seconds(
        self, func: Any, inputs: list[Tensor], outputs: list[Tensor], args: Any, kwargs: Any, out: Any
    ) -> float:
        from torch.utils.flop_counter import flop_registry

        moved = sum(x.numel() * x.element_size() for x in (*inputs, *outputs)) / self.gpu.bandwidth
        count = flop_registry.get(func.overloadpacket)
        if count is None:
            return moved + self.gpu.launch
        half = bool(inputs) and inputs[0].dtype in (torch.bfloat16, torch.float16)
        single = self.gpu.tensor32 if "convolution" in func.overloadpacket.__name__ else self.gpu.float32
        work = count(*args, **kwargs, out_val=out) / (self.gpu.half if half else single)
        return max(moved, work) + self.gpu.launch


def seconds(run: Run, device: str) -> tuple[float, Tensor | None]:
    """Seconds of one call, of this process on a CPU, of the clock on a GPU, and what it returned."""
    clock = time.process_time if device == "cpu" else time.perf_counter
    start = clock()
    found = run()
    if device != "cpu":
        torch.cuda.synchronize()
    return clock() - start, found


def watched(run: Run) -> Watch:
    """A round as a GPU would take it: what has no CUDA source runs as the plain PyTorch that it is there."""
    with build.as_with("cuda"), Watch() as mode:
        run()
    return mode


def measure(case: Case, device: str) -> dict[str, float | None]:
    """A row of the file; one round is not counted, unless it is `whole`."""
    times: dict[str, list[float]] = {"published": [], "plain": [], "ours": []}
    found: dict[str, Tensor | None] = {}
    for number in range(case.whole, case.rounds + 1):
        for name in times:
            processes.keep_memory(name == "ours")
            spent, found[name] = seconds(getattr(case, name), device)
            if number:
                times[name].append(spent * (1.0 if name == "ours" else case.parts))
    middle = {name: statistics.median(values) for name, values in times.items()}
    low, high = interval(times["published"], times["ours"])
    theirs, mine = found["published"], found["ours"]
    compared = theirs is not None and mine is not None
    memory = projected = None
    if not case.whole:
        one, other = watched(case.published), watched(case.ours)
        memory, projected = one.peak / max(1, other.peak), case.parts * one.projected / other.projected
    return {
        "published_s": middle["published"],
        "plain_s": middle["plain"],
        "ours_s": middle["ours"],
        "ratio": middle["published"] / middle["ours"],
        "ratio_low": low,
        "ratio_high": high,
        "ratio_plain": middle["plain"] / middle["ours"],
        "max_abs_diff": (theirs.float() - mine.float()).abs().max().item() if compared else None,  # type: ignore[union-attr]
        "memory_ratio": memory,
        "projected_cuda_ratio": projected,
    }


def interval(above: list[float], below: list[float], seed: int = 0) -> tuple[float, float]:
    """95 % of the ratio of medians, rounds drawn with replacement (both sides of a round together)."""
    rng, rounds, found = random.Random(seed), range(len(above)), []
    for _ in range(REPEATS):
        drawn = rng.choices(rounds, k=len(above))
        found.append(statistics.median(above[i] for i in drawn) / statistics.median(below[i] for i in drawn))
    found.sort()
    return found[int(0.025 * REPEATS)], found[int(0.975 * REPEATS) - 1]


def machine(device: str) -> dict[str, Any]:
    """What a reader needs to judge the numbers; no names."""
    model = torch.cuda.get_device_name() if device != "cpu" else platform.machine()
    info = Path("/proc/cpuinfo")
    if device == "cpu" and info.exists():
        lines = [line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if "model name" in line]
        model = lines[0] if lines else model
    load = round(os.getloadavg()[0], 1)
    return {"device": model, "cores": os.cpu_count(), "threads": 1, "load": load, "torch": str(torch.__version__)}


def run(backbones: Backbones, path: Path, names: tuple[str, ...] = ()) -> Iterator[tuple[str, dict[str, float | None]]]:
    """Measure the rows `names` (all when empty) and write them to `path`, keeping its other rows of the same machine.

    Yields every row as it is done. Raises InputError for an unknown row.
    """
    from benchmarks.compare_cases import CASES

    for name in names:
        if name not in CASES:
            raise InputError(f"unknown row '{name}'{nearest(name, CASES)}: there are {', '.join(CASES)}")
    processes.one_thread()
    here, rows = machine(backbones.device), {}
    before = _before(path)
    if before.get("machine", {}).get("device") == here["device"]:
        rows = before["rows"]
    found = {"machine": here, "rows": rows} | ({"projected": H200.name} if backbones.device == "cpu" else {})
    for name in names or CASES:
        rows[name] = measure(CASES[name](backbones), backbones.device)
        files.write_bytes(path, (json.dumps(found, indent=2) + "\n").encode())
        yield name, rows[name]


def _before(path: Path) -> Mapping[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def line(name: str, row: Mapping[str, float | None]) -> str:
    """One row in words."""
    return (
        f"{name:28} {row['published_s']:8.3f} s -> {row['ours_s']:.3f} s, ratio {row['ratio']:.2f} "
        f"({row['ratio_low']:.2f} to {row['ratio_high']:.2f}), plain {row['ratio_plain']:.2f}"
        + ("" if row["memory_ratio"] is None else f", memory {row['memory_ratio']:.1f}")
    )
