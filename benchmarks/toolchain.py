"""Whether the CUDA code compiles here, how long that takes, and what compute-sanitizer says of it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks import gpu
from kernels import build

NATIVE = tuple(name for name, stem in build.OPERATIONS.items() if (build.CSRC / f"{stem}.cu").exists())
SANITIZER = "compute-sanitizer"
TOOLS = ("memcheck", "racecheck")
SANITIZED = 100  # seconds at most per tool


def compiled(root: Path) -> dict[str, Any]:
    """Seconds until each operation's library is there, all compiled at once, each in a process of its own."""
    code = "import sys; from kernels import build; print(build.unavailable(sys.argv[1], 'cuda'))"

    def one(name: str) -> dict[str, Any]:
        start = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-c", code, name], capture_output=True, text=True, env=_environment(), cwd=root
        )
        reason = (done.stdout if done.returncode == 0 else done.stderr).strip()[-gpu.LONGEST :]
        return {"process_s": round(time.perf_counter() - start, 1), "unavailable": reason}

    with ThreadPoolExecutor(len(NATIVE)) as pool:
        found: dict[str, Any] = dict(zip(NATIVE, pool.map(one, NATIVE), strict=True))
    for name in NATIVE:  # what failed is not tried again in this process
        if reason := found[name]["unavailable"]:
            build._REASONS[name, "cuda"] = reason
    try:
        nvcc = str(build.cuda_home() / "bin" / "nvcc")
        told = gpu._output(nvcc, "--version")
    except build.KernelUnavailable:
        told = None
    found["compiler"] = told.splitlines()[-1] if told else None
    found["architectures"] = build._architectures()
    found["flags"] = " ".join(build._CUDA_FLAGS)
    return found


def _environment() -> dict[str, str]:
    """Of a Python that finds this code."""
    found = [str(build.CSRC.parent.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(found)}


def sanitized(tool: str, root: Path, device: str = "cuda") -> dict[str, Any]:
    """What compute-sanitizer says of `small_calls`, in a process of its own."""
    program = shutil.which(SANITIZER) or shutil.which(SANITIZER, path="/usr/local/cuda/bin")
    if program is None:
        return {"errors": None, "reason": f"{SANITIZER} is not on PATH"}
    code = f"from pipeline.bench_cases import small_calls; print('calls', small_calls('{device}', 'cuda'))"
    environment = {**_environment(), "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}  # so that every tensor ends where it ends
    command = ["timeout", "-k", "5", str(SANITIZED), program, "--tool", tool, sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=root)
    if done.returncode == 124:
        return {"errors": None, "reason": f"not done in {SANITIZED} s"}
    lines = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()]
    summary = next((line for line in reversed(lines) if "SUMMARY" in line), None)
    count = next((int(word) for word in (summary or "").replace("(", " ").split() if word.isdigit()), None)
    calls = next((int(line.split()[1]) for line in lines if line.startswith("calls ")), None)
    found: dict[str, Any] = {"errors": count, "calls": calls, "summary": summary, "exit_code": done.returncode}
    if count or summary is None or calls is None:
        found["lines"] = [line[: gpu.LONGEST] for line in lines[:20] + lines[-10:]]
    return found


def all_sanitized(root: Path) -> dict[str, Any]:
    """Both tools side by side."""
    with ThreadPoolExecutor(len(TOOLS)) as pool:
        return dict(zip(TOOLS, pool.map(lambda tool: sanitized(tool, root), TOOLS), strict=True))
