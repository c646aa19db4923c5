"""What `deltaspace bench kernels` and `deltaspace bench ffhq` share: a record written after every item, and clocks."""

from __future__ import annotations

import gc
import json
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from pipeline.runtime import files
from pipeline.runtime.errors import InputError

LONGEST = 300  # characters of an error
COMMIT = "DELTASPACE_COMMIT"  # of the code, where a copy without git is measured
CLOCK_HZ = 2e9  # about a GPU's: what `_sleep` counts in
QUEUED = 0.03  # seconds of host work that are hidden behind a sleeping GPU at most
Run = Callable[[], object]


@dataclass(frozen=True)
class Record:
    """A JSON file that grows by one item at a time; what raises is an item as well: {"error": one line}."""

    path: Path
    content: dict[str, Any]
    device: str

    def item(self, name: str, measure: Callable[[], Any]) -> Any:
        """Measure, write, and give back what was found. On a GPU the peak memory of the item is noted with it."""
        start = time.perf_counter()
        found: Any
        try:
            release(self.device)
            found = measure()
        except Exception as error:  # one that fails, for want of memory say, must not cost the others
            found = {"error": " ".join(f"{type(error).__name__}: {error}".split())[:LONGEST]}
        if isinstance(found, dict):
            if self.device != "cpu":
                found["peak_memory_gb"] = round(torch.cuda.max_memory_allocated() / 1e9, 3)
            found["item_s"] = round(time.perf_counter() - start, 2)
        found = self.content["items"][name] = rounded(found)
        files.write_bytes(self.path, (json.dumps(self.content, indent=1) + "\n").encode())
        return found


def record(path: Path, command: str, root: Path, device: str, notes: Sequence[str]) -> Record:
    """An empty record with what a reader needs to judge the numbers: device, versions, commit; no date and no name.

    From here on `device` is the one that CUDA means.
    """
    if device != "cpu":
        torch.cuda.set_device(device)
    return Record(
        path,
        {
            "command": command,
            "commit": commit(root),
            "device": described(device),
            "versions": {
                "torch": str(torch.__version__),
                "cuda": torch.version.cuda,
                "driver": _output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"),
                "python": platform.python_version(),
            },
            "notes": list(notes),
            "items": {},
        },
        device,
    )


def rounded(node: Any, digits: int = 5) -> Any:
    """Numbers of nested content to so many digits, which is more than a second run repeats."""
    if isinstance(node, dict):
        return {key: rounded(value, digits) for key, value in node.items()}
    return float(f"{node:.{digits}g}") if isinstance(node, float) else node


def line(name: str, found: Any) -> str:
    """An item in words: its first numbers."""
    if "error" in found and isinstance(found["error"], str):
        return f"{name}: failed, {found['error']}"
    numbers = [f"{key} {value:.4g}" for key, value in _numbers(found)]
    return f"{name}: {', '.join(numbers[:6])}"


def _numbers(found: Any, prefix: str = "") -> Iterator[tuple[str, float]]:
    for key, value in found.items():
        if isinstance(value, dict):
            yield from _numbers(value, f"{prefix}{key}.")
        elif isinstance(value, int | float):
            yield f"{prefix}{key}", value


def check_gpu(device: str, command: str) -> None:
    """InputError where `device` is no GPU."""
    if not device.startswith("cuda"):
        raise InputError(f"`{command}` measures a GPU, and there is no CUDA device here: run it where there is one")


def commit(root: Path) -> str | None:
    """Of the code that is measured: as told, or as git knows, or None."""
    return os.environ.get(COMMIT) or _output("git", "-C", str(root), "rev-parse", "HEAD")


def described(device: str) -> dict[str, Any]:
    """The device by its model."""
    if device == "cpu":
        return {"name": platform.machine()}
    told = torch.cuda.get_device_properties(device)
    return {
        "name": told.name,
        "compute_capability": f"{told.major}.{told.minor}",
        "memory_gb": round(told.total_memory / 1e9, 1),
        "multiprocessors": told.multi_processor_count,
        "l2_cache_mb": round(getattr(told, "L2_cache_size", 0) / 1e6, 1),
    }


def _output(*command: str) -> str | None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None


def release(device: str) -> None:
    """Give back what nobody holds any more, and let the peak start anew."""
    gc.collect()
    if device != "cpu":
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def synchronize(device: str) -> None:
    if device != "cpu":
        torch.cuda.synchronize()


def seconds(run: Run, device: str) -> float:
    """Of the clock, for one call and all that it started."""
    synchronize(device)
    start = time.perf_counter()
    run()
    synchronize(device)
    return time.perf_counter() - start


def latency(run: Run, device: str, repeats: int, warm: int = 3) -> dict[str, float]:
    """What one waits for a call: median and the middle half over `repeats`, in ms; the first `warm` do not count."""
    for _ in range(warm):
        run()
    found = sorted(1e3 * seconds(run, device) for _ in range(repeats))
    low, high = found[len(found) // 4], found[min(len(found) - 1, 3 * len(found) // 4)]
    return {"median_ms": statistics.median(found), "quarter_ms": low, "three_quarters_ms": high, "repeats": repeats}


@dataclass(frozen=True)
class Timing:
    """gpu_us: median time that the device takes for a call, launches hidden as far as they can be queued; call_us:
    what a call takes when it is made in a loop; both in microseconds."""

    gpu_us: float
    call_us: float


def timing(runs: Sequence[Run], device: str, budget: float = 0.015) -> Timing:
    """Of calls that do the same on different data, taken in turn so that no input lies in a cache; warmed up.

    The device sleeps while calls are queued behind it, each between two CUDA events. On a CPU both are the clock's.
    budget: seconds of calls, about; from 5 to 50 calls are made.
    """
    for run in runs[:3]:
        run()
    synchronize(device)
    start = time.perf_counter()
    for run in runs[:5]:
        run()
    queued = (time.perf_counter() - start) / len(runs[:5])
    synchronize(device)
    call = (time.perf_counter() - start) / len(runs[:5])
    count = max(5, min(50, int(budget / call)))
    chosen = [runs[number % len(runs)] for number in range(count)]
    if device == "cpu":
        return Timing(1e6 * statistics.median(seconds(run, device) for run in chosen), 1e6 * call)
    events = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in chosen]
    torch.cuda._sleep(int(CLOCK_HZ * min(QUEUED, 1.5 * count * (queued + 1e-5))))
    for run, (before, after) in zip(chosen, events, strict=True):
        before.record()
        run()
        after.record()
    torch.cuda.synchronize()
    found = [1e3 * before.elapsed_time(after) for before, after in events]
    start = time.perf_counter()
    for run in chosen:
        run()
    torch.cuda.synchronize()
    return Timing(statistics.median(found), 1e6 * (time.perf_counter() - start) / count)


def bandwidth(device: str, size: int = 2**30) -> float:
    """Bytes read and written per second by copies of `size` bytes within the device's memory."""
    x = torch.zeros(size // 4, device=device)
    y = torch.empty_like(x)
    return 2 * 4 * x.numel() / (1e-6 * timing([lambda: y.copy_(x)] * 20, device).gpu_us)
