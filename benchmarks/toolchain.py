"""Compilation of the CUDA code on this machine, and its check by compute-sanitizer."""

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
from kernels import build, dispatch

NATIVE = dispatch.with_source("cuda")
SANITIZER = "compute-sanitizer"
TOOLS = ("memcheck", "racecheck")
SANITIZER_SECONDS = 100  # at most, per tool


def compiled(root: Path) -> dict[str, Any]:
    """Seconds to compile each operation, all at once, each in its own process; compiler, architectures and flags."""
    code = "import sys; from kernels import dispatch; print(dispatch.unavailable(sys.argv[1], 'cuda'))"

    def one(name: str) -> dict[str, Any]:
        start = time.perf_counter()
        command = [sys.executable, "-c", code, name]
        done = subprocess.run(command, capture_output=True, text=True, env=_environment(), cwd=root)
        reason = (done.stdout if done.returncode == 0 else done.stderr).strip()[-gpu.LONGEST :]
        return {"process_s": round(time.perf_counter() - start, 1), "unavailable": reason}

    with ThreadPoolExecutor(len(NATIVE)) as pool:
        item: dict[str, Any] = dict(zip(NATIVE, pool.map(one, NATIVE), strict=True))
    for name in NATIVE:  # a failure is not repeated in this process
        if reason := item[name]["unavailable"]:
            dispatch._REASONS[name, "cuda"] = reason
    try:
        version = gpu.output(str(build.cuda_home() / "bin" / "nvcc"), "--version")
    except build.KernelUnavailable:
        version = None
    compiler = version.splitlines()[-1] if version else None
    return item | {
        "compiler": compiler,
        "architectures": build.architectures(),
        "flags": " ".join(build.CUDA_FLAGS),
    }


def _environment() -> dict[str, str]:
    """Environment variables of a Python process that imports this code."""
    folders = [str(build.CSRC.parent.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(folders)}


def sanitized(tool: str, root: Path, device: str = "cuda") -> dict[str, Any]:
    """Errors that a tool of compute-sanitizer reports of `small_calls`, run in its own process."""
    program = shutil.which(SANITIZER) or shutil.which(SANITIZER, path="/usr/local/cuda/bin")
    if program is None:
        return {"errors": None, "reason": f"{SANITIZER} is not on PATH"}
    code = f"from benchmarks.kernel_cases import small_calls; print('calls', small_calls('{device}', 'cuda'))"
    environment = {**_environment(), "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}  # one allocation per tensor
    command = ["timeout", "-k", "5", str(SANITIZER_SECONDS), program, "--tool", tool, sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=root)
    if done.returncode == 124:
        return {"errors": None, "reason": f"not done in {SANITIZER_SECONDS} s"}
    lines = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()]
    summary = next((line for line in reversed(lines) if "SUMMARY" in line), None)
    count = next((int(word) for word in (summary or "").replace("(", " ").split() if word.isdigit()), None)
    calls = next((int(line.split()[1]) for line in lines if line.startswith("calls ")), None)
    item: dict[str, Any] = {"errors": count, "calls": calls, "summary": summary, "exit_code": done.returncode}
    if count or summary is None or calls is None:
        item["lines"] = [line[: gpu.LONGEST] for line in lines[:20] + lines[-10:]]
    return item


def all_sanitized(root: Path) -> dict[str, Any]:
    """Reports of all tools, run side by side."""
    with ThreadPoolExecutor(len(TOOLS)) as pool:
        return dict(zip(TOOLS, pool.map(lambda tool: sanitized(tool, root), TOOLS), strict=True))
