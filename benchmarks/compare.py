"""Speed of this repository against published code and plain PyTorch, side by side; reports/bench.json.

Every row runs `published`, `plain` and `ours` in turn, in one process with one thread, and records medians and the
ratio's 95 % interval (bootstrap over rounds). On a CPU, seconds are processor seconds, which other jobs on a busy
machine distort less; the load is recorded as well. Memory is the peak of live tensors, without the networks.

On a machine without a GPU, the ratio on one is projected from the bytes and operations counted here.
"""

from __future__ import annotations

import json
import os
import platform
import random
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from kernels import dispatch
from pipeline.runtime import files, processes
from pipeline.runtime.errors import InputError, nearest

if TYPE_CHECKING:
    from pipeline.networks import Networks

REPEATS = 2000  # of the bootstrap
Run = Callable[[], Tensor | None]


@dataclass(frozen=True)
class Case:
    """One row: three functions that do the same work.

    Each returns the tensor by which published and ours are compared, or None.
    parts: how often published and plain must be repeated to do the work of ours
    whole: the work takes minutes, and is run neither once before nor for its memory
    """

    published: Run
    plain: Run
    ours: Run
    rounds: int
    parts: float = 1.0
    whole: bool = False


@dataclass(frozen=True)
class Gpu:
    """Data sheet of a GPU: bytes and dense operations per second, and seconds to launch an operation."""

    name: str
    bandwidth: float
    float32: float
    tensor32: float  # of float32 convolutions, which PyTorch rounds to TF32
    half: float
    launch: float


H200 = Gpu("NVIDIA H200", 4.8e12, 67e12, 494e12, 989e12, 4e-6)


class Watch(TorchDispatchMode):
    """Peak bytes of the tensors allocated inside, and a lower bound of the seconds that a GPU would take.

    An operation takes the longer of moving its inputs and outputs once and of its multiplications and additions, plus
    its launch; views are free.
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
        if not outputs:  # the operation writes into its arguments
            writes = [bool(arg.alias_info and arg.alias_info.is_write) for arg in func._schema.arguments]
            written = tree_leaves([x for x, over in zip(args, writes, strict=False) if over])
            outputs = [x for x in written if isinstance(x, Tensor)]
        for tensor in outputs:
            if tensor.untyped_storage()._cdata not in before:
                storage = tensor.untyped_storage()
                self.live[storage._cdata] = StorageWeakRef(storage), storage.nbytes()
        self.live = {key: (ref, size) for key, (ref, size) in self.live.items() if not ref.expired()}
        self.peak = max(self.peak, sum(size for _, size in self.live.values()))
        if not func.is_view:
            moved = sum(x.numel() * x.element_size() for x in (*inputs, *outputs)) / self.gpu.bandwidth
            self.projected += max(moved, self._computing(func, inputs, args, kwargs or {}, out)) + self.gpu.launch
        return out

    def _computing(self, func: Any, inputs: Sequence[Tensor], args: Any, kwargs: Any, out: Any) -> float:
        from torch.utils.flop_counter import flop_registry

        count = flop_registry.get(func.overloadpacket)
        if count is None:
            return 0.0
        half = bool(inputs) and inputs[0].dtype in (torch.bfloat16, torch.float16)
        single = self.gpu.tensor32 if "convolution" in func.overloadpacket.__name__ else self.gpu.float32
        return count(*args, **kwargs, out_val=out) / (self.gpu.half if half else single)


def seconds(run: Run, device: str) -> tuple[float, Tensor | None]:
    """Seconds of one call (processor seconds on a CPU), and its result."""
    clock = time.process_time if device == "cpu" else time.perf_counter
    start = clock()
    result = run()
    if device != "cpu":
        torch.cuda.synchronize()
    return clock() - start, result


def watched(run: Run) -> Watch:
    """Memory and projected GPU seconds of one call; operations without CUDA code run their PyTorch reference."""
    without_cuda = set(dispatch.OPERATIONS) - set(dispatch.with_source("cuda"))
    with dispatch.reference_only(without_cuda), Watch() as mode:
        run()
    return mode


def measure(case: Case, device: str) -> dict[str, float | None]:
    """One row of the file; the first round is not counted, unless the case is `whole`."""
    times: dict[str, list[float]] = {"published": [], "plain": [], "ours": []}
    results: dict[str, Tensor | None] = {}
    for number in range(case.whole, case.rounds + 1):
        for name in times:
            processes.keep_memory(name == "ours")
            spent, results[name] = seconds(getattr(case, name), device)
            if number:
                times[name].append(spent * (1.0 if name == "ours" else case.parts))
    median = {name: statistics.median(values) for name, values in times.items()}
    low, high = interval(times["published"], times["ours"])
    published, ours = results["published"], results["ours"]
    difference = memory = projected = None
    if published is not None and ours is not None:
        difference = (published.float() - ours.float()).abs().max().item()
    if not case.whole:
        one, other = watched(case.published), watched(case.ours)
        memory, projected = one.peak / max(1, other.peak), case.parts * one.projected / other.projected
    return {
        "published_s": median["published"],
        "plain_s": median["plain"],
        "ours_s": median["ours"],
        "ratio": median["published"] / median["ours"],
        "ratio_low": low,
        "ratio_high": high,
        "ratio_plain": median["plain"] / median["ours"],
        "max_abs_diff": difference,
        "memory_ratio": memory,
        "projected_cuda_ratio": projected,
    }


def interval(above: Sequence[float], below: Sequence[float], seed: int = 0) -> tuple[float, float]:
    """95 % bootstrap interval of the ratio of the medians of `above` and `below`; rounds are resampled in pairs."""
    rng, rounds, ratios = random.Random(seed), range(len(above)), []
    for _ in range(REPEATS):
        drawn = rng.choices(rounds, k=len(above))
        ratios.append(statistics.median(above[i] for i in drawn) / statistics.median(below[i] for i in drawn))
    ratios.sort()
    return ratios[int(0.025 * REPEATS)], ratios[int(0.975 * REPEATS) - 1]


def machine(device: str) -> dict[str, Any]:
    """Device, cores, threads, load and torch version; no host name."""
    model = torch.cuda.get_device_name() if device != "cpu" else platform.machine()
    info = Path("/proc/cpuinfo")
    if device == "cpu" and info.exists():
        lines = [line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if "model name" in line]
        model = lines[0] if lines else model
    load = round(os.getloadavg()[0], 1)
    return {"device": model, "cores": os.cpu_count(), "threads": 1, "load": load, "torch": str(torch.__version__)}


def run(networks: Networks, path: Path, names: Sequence[str] = ()) -> Iterator[tuple[str, dict[str, float | None]]]:
    """Measure the rows `names` (all when empty) and write them to `path`, keeping its other rows of the same machine.

    Yields every row as it is done. Raises InputError for an unknown row.
    """
    from benchmarks.compare_cases import CASES

    for name in names:
        if name not in CASES:
            raise InputError(f"unknown row '{name}'{nearest(name, CASES)}: there are {', '.join(CASES)}")
    processes.one_thread()
    here, rows, before = machine(networks.device), {}, _read(path)
    if before.get("machine", {}).get("device") == here["device"]:
        rows = before["rows"]
    content = {"machine": here, "rows": rows} | ({"projected": H200.name} if networks.device == "cpu" else {})
    for name in names or CASES:
        rows[name] = measure(CASES[name](networks), networks.device)
        files.write_bytes(path, (json.dumps(content, indent=2) + "\n").encode())
        yield name, rows[name]


def _read(path: Path) -> Mapping[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def line(name: str, row: Mapping[str, float | None]) -> str:
    """One row as a line of text."""
    return (
        f"{name:28} {row['published_s']:8.3f} s -> {row['ours_s']:.3f} s, ratio {row['ratio']:.2f} "
        f"({row['ratio_low']:.2f} to {row['ratio_high']:.2f}), plain {row['ratio_plain']:.2f}"
        + ("" if row["memory_ratio"] is None else f", memory {row['memory_ratio']:.1f}")
    )
