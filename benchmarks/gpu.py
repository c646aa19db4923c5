"""Measurements on a GPU: a record that is written after every item, and timing."""

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
COMMIT = "DELTASPACE_COMMIT"  # environment variable: the commit of a copy without git
CLOCK_HZ = 2e9  # about a GPU's: what `_sleep` counts in
QUEUED = 0.03  # seconds of launches, at most, that are queued behind a sleeping GPU
Run = Callable[[], object]


@dataclass(frozen=True)
class Record:
    """A JSON file that is written after every item; an exception becomes the item {"error": one line}."""

    path: Path
    content: dict[str, Any]
    device: str

    def item(self, name: str, measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Measure, write and return an item, with its seconds and, on a GPU, its peak memory."""
        start = time.perf_counter()
        item: dict[str, Any]
        try:
            release(self.device)
            item = measure()
        except Exception as error:  # the other items are measured all the same, say after a lack of memory
            item = {"error": " ".join(f"{type(error).__name__}: {error}".split())[:LONGEST]}
        if self.device != "cpu":
            item["peak_memory_gb"] = round(torch.cuda.max_memory_allocated() / 1e9, 3)
        item["item_s"] = round(time.perf_counter() - start, 2)
        item = self.content["items"][name] = rounded(item)
        files.write_bytes(self.path, (json.dumps(self.content, indent=1) + "\n").encode())
        return item


def record(path: Path, command: str, root: Path, device: str, notes: Sequence[str]) -> Record:
    """An empty record with command, device, versions and commit, but no date and no host name.

    path: file that the items are written to. root: folder of the project.
    notes: lines about the measurement.

    Also makes `device` the current CUDA device.
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
                "driver": output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"),
                "python": platform.python_version(),
            },
            "notes": list(notes),
            "items": {},
        },
        device,
    )


def rounded(node: Any, digits: int = 5) -> Any:
    """Nested content with its numbers rounded to significant digits; a second run repeats fewer."""
    if isinstance(node, dict):
        return {key: rounded(value, digits) for key, value in node.items()}
    return float(f"{node:.{digits}g}") if isinstance(node, float) else node


def line(name: str, item: dict[str, Any]) -> str:
    """An item as a line of text: its first numbers."""
    if isinstance(item.get("error"), str):
        return f"{name}: failed, {item['error']}"
    return f"{name}: {', '.join(f'{key} {value:.4g}' for key, value in [*numbers(item)][:6])}"


def numbers(item: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    """(dotted key, number) of a nested item."""
    for key, value in item.items():
        if isinstance(value, dict):
            yield from numbers(value, f"{prefix}{key}.")
        elif isinstance(value, int | float):
            yield f"{prefix}{key}", value


def check_gpu(device: str, command: str) -> None:
    """Raise InputError unless `device` is a GPU."""
    if not device.startswith("cuda"):
        raise InputError(f"`{command}` measures a GPU, and there is no CUDA device here: run it where there is one")


def commit(root: Path) -> str | None:
    """Commit of the measured code, from the environment variable or git; else None."""
    return os.environ.get(COMMIT) or output("git", "-C", str(root), "rev-parse", "HEAD")


def described(device: str) -> dict[str, Any]:
    """Model and size of the device."""
    if device == "cpu":
        return {"name": platform.machine()}
    properties = torch.cuda.get_device_properties(device)
    return {
        "name": properties.name,
        "compute_capability": f"{properties.major}.{properties.minor}",
        "memory_gb": round(properties.total_memory / 1e9, 1),
        "multiprocessors": properties.multi_processor_count,
        "l2_cache_mb": round(getattr(properties, "L2_cache_size", 0) / 1e6, 1),
    }


def output(*command: str) -> str | None:
    """Standard output of a command, or None where it fails or prints nothing."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None


def release(device: str) -> None:
    """Free cached memory, and reset its peak."""
    gc.collect()
    if device != "cpu":
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def synchronize(device: str) -> None:
    """Wait for the device to finish."""
    if device != "cpu":
        torch.cuda.synchronize()


def seconds(run: Run, device: str) -> float:
    """Wall-clock seconds of one call, including the device's work."""
    synchronize(device)
    start = time.perf_counter()
    run()
    synchronize(device)
    return time.perf_counter() - start


def latency(run: Run, device: str, repeats: int, warm: int = 3) -> dict[str, float]:
    """Milliseconds per call: median and quartiles over `repeats` calls, after `warm` calls that do not count."""
    for _ in range(warm):
        run()
    times = sorted(1e3 * seconds(run, device) for _ in range(repeats))
    low, high = times[len(times) // 4], times[min(len(times) - 1, 3 * len(times) // 4)]
    return {"median_ms": statistics.median(times), "quarter_ms": low, "three_quarters_ms": high, "repeats": repeats}


@dataclass(frozen=True)
class Timing:
    """Microseconds of a call: gpu_us on the device, with launches queued ahead where possible; call_us in a loop."""

    gpu_us: float
    call_us: float


def timing(runs: Sequence[Run], device: str, budget: float = 0.015) -> Timing:
    """Median times of calls that do the same work on different data, so that no input is cached.

    The device sleeps while calls are queued behind it, each between two CUDA events. A CPU has wall-clock times.
    budget: seconds, about; 5 to 50 calls are made
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
    times = [1e3 * before.elapsed_time(after) for before, after in events]
    start = time.perf_counter()
    for run in chosen:
        run()
    torch.cuda.synchronize()
    return Timing(statistics.median(times), 1e6 * (time.perf_counter() - start) / count)


def bandwidth(device: str, size: int = 2**30) -> float:
    """Bytes read and written per second by copies of `size` bytes in device memory."""
    x = torch.zeros(size // 4, device=device)
    y = torch.empty_like(x)
    return 2 * 4 * x.numel() / (1e-6 * timing([lambda: y.copy_(x)] * 20, device).gpu_us)
