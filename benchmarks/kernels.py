"""Errors and times of the CUDA kernels on this machine; reports/gpu/kernels.json.

Every operation in the sizes of a 1024 px StyleGAN2 (and of `portraits`), in every dtype and layout, forwards and
backwards. Errors are relative to the float64 reference of the same rounded inputs; bytes are those that must move:
every input read once, every output written once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks import gpu, toolchain
from benchmarks.gpu import Record, Run
from benchmarks.kernel_cases import DTYPES, LAYOUTS, Case, cases, results
from kernels import dispatch

COMMAND = "python -m benchmarks kernels"
ROTATED = 150_000_000  # bytes at least of the inputs that calls take in turn: more than twice an L2 cache
MOST_SETS = 48  # of inputs; small ones then stay in the L2 cache, as they do in use
NOTES = (
    "error: ||result - float64 reference of the same rounded inputs|| / ||that||; for a gradient, per input",
    "ref: the plain PyTorch reference in the same dtype (convolutions in TF32, as PyTorch's default is)",
    "gpu_us: median between two CUDA events around a call, calls queued ahead; call_us: the clock, per call in a loop",
    "ours_again: the same timing once more, which gives the noise",
    "share: of the copy bandwidth measured first (bytes read + written); a backward pass counts what it must read",
    f"inputs rotate among sets of {ROTATED / 1e6:.0f} MB in all, {MOST_SETS} sets at most",
)


def errors(case: Case, tensors: dict[str, Tensor], native: str) -> dict[str, dict[str, float]]:
    """Relative errors of the result "y" and of every gradient, for "ours" and for "ref".

    native: name of the implementation that is "ours", such as "cuda". The reference is computed in float64.
    """
    exact = {name: x.double() for name, x in tensors.items()}
    cotangent = torch.randn_like(case.run(**tensors, impl=native))
    reference = results(case, exact, cotangent, "ref")
    return {
        name: {key: _relative(value, reference[key]) for key, value in results(case, tensors, cotangent, impl).items()}
        for name, impl in (("ours", native), ("ref", "ref"))
    }


def _relative(value: Tensor, reference: Tensor) -> float:
    return ((value.double() - reference).norm() / reference.norm().clamp(min=1e-300)).item()


def moved(case: Case, tensors: dict[str, Tensor], y: Tensor) -> tuple[int, int]:
    """Bytes of tensors and result y that must move: forwards, and backwards.

    Backwards the cotangent and saved tensors are read, and gradients written.
    """
    sizes = {name: x.numel() * x.element_size() for name, x in {**tensors, "y": y}.items()}
    return sum(sizes.values()), sizes["y"] + sum(sizes[name] for name in (*case.saved, *case.graded))


def _backward(case: Case, tensors: dict[str, Tensor], impl: str) -> Run:
    """A backward pass that can be repeated."""
    leaves = {name: x.detach().requires_grad_(name in case.graded) for name, x in tensors.items()}
    y, inputs = case.run(**leaves, impl=impl), [leaves[name] for name in case.graded]
    cotangent = torch.randn_like(y)
    return lambda: torch.autograd.grad(y, inputs, cotangent, retain_graph=True)


def row(case: Case, dtype: torch.dtype, layout: torch.memory_format, copy: float, device: str) -> dict[str, Any]:
    """One item of the file. copy: bytes per second of a copy."""
    native = "cuda" if device != "cpu" else "auto"
    first = case.inputs(dtype, layout, device)
    y = case.run(**first, impl=native)
    forward, backward = moved(case, first, y)
    item: dict[str, Any] = {"shapes": {name: list(x.shape) for name, x in first.items()}, "result": list(y.shape)}
    item["error"] = errors(case, first, native)
    gpu.release(device)
    count = max(2, min(MOST_SETS, -(-ROTATED // max(1, forward))))
    sets = [first, *(case.inputs(dtype, layout, device) for _ in range(count - 1))] if device != "cpu" else [first] * 2
    item["sets"] = len(sets)
    for direction, size in (("forward", forward), ("backward", backward)):
        times: dict[str, Any] = {"moved_mb": size / 1e6}
        for name, impl in (("ours", native), ("ref", "ref"), ("ours_again", native)):
            if direction == "forward":
                runs: list[Run] = [partial(case.run, **tensors, impl=impl) for tensors in sets]
            else:
                runs = [_backward(case, tensors, impl) for tensors in sets]
            time = gpu.timing(runs, device)
            del runs
            share = size / (1e-6 * time.gpu_us) / copy
            times[name] = {"gpu_us": time.gpu_us, "call_us": time.call_us, "share": share}
        item[direction] = {**times, "ref_over_ours": times["ref"]["gpu_us"] / times["ours"]["gpu_us"]}
    return item


def generator(size: int, widths: dict[int, int], style_dim: int, batch: int, device: str) -> dict[str, Any]:
    """Synthesis by a generator with random weights, and its gradient to s, with native code and without."""
    from pipeline.models.stylegan2 import Generator

    torch.manual_seed(0)
    network = Generator(size, style_dim, widths).to(device).eval().requires_grad_(False)
    w_plus = network.repeat(torch.randn(batch, style_dim, device=device))
    s = network.styles(w_plus)

    @torch.no_grad()
    def forward(half: bool) -> Tensor:
        with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=half):
            return network.synthesis(s, w_plus)

    def gradient() -> Tensor:
        leaf = s.detach().requires_grad_(True)
        return torch.autograd.grad(network.synthesis(leaf, w_plus).square().sum(), leaf)[0]

    return {
        "images": batch,
        "size_px": size,
        "float32": _against_reference(lambda: forward(False), device),
        "bfloat16": _against_reference(lambda: forward(True), device),
        "gradient_float32": _against_reference(gradient, device),
    }


def _against_reference(run: Callable[[], Tensor], device: str) -> dict[str, float]:
    """Times with native code, by the PyTorch reference, and with native code again; and the relative difference."""
    ours = run()
    times = {"ours_us": gpu.timing([run], device, 0.2)}
    with dispatch.reference_only():
        reference = run()
        times["ref_us"] = gpu.timing([run], device, 0.2)
    times["ours_again_us"] = gpu.timing([run], device, 0.2)
    return {
        **{key: time.gpu_us for key, time in times.items()},
        **{f"{key}_per_call": time.call_us for key, time in times.items()},
        "ref_over_ours": times["ref_us"].gpu_us / times["ours_us"].gpu_us,
        "relative_difference": _relative(ours, reference.double()),
    }


def run(path: Path, root: Path, device: str, chosen: dict[str, Case] | None = None) -> Iterator[tuple[str, Any]]:
    """Measure everything and write it to `path`; yields every item as it is done.

    chosen: other cases, for a rehearsal on any device, without compiling and without whole generators.
    Raises InputError without a GPU.
    """
    if chosen is None:
        gpu.check_gpu(device, COMMAND)
    record = gpu.record(path, COMMAND, root, device, NOTES)
    torch.manual_seed(0)
    size = 2**20
    if chosen is None:
        yield "compiled", record.item("compiled", lambda: toolchain.compiled(root))
        yield "sanitizer", record.item("sanitizer", lambda: toolchain.all_sanitized(root))
        chosen, size = cases(), 2**30
        yield from _generators(record)
    copy = record.item("copy", lambda: _copy(device, size))
    yield "copy", copy
    for name, case in chosen.items():
        for dtype in DTYPES:
            for layout in LAYOUTS if len(next(iter(case.shapes.values()))) == 4 else ("planes",):
                key = f"{name} | {dtype} | {layout}"
                bandwidth = copy.get("bytes_per_s", float("nan"))
                yield key, record.item(key, partial(row, case, DTYPES[dtype], LAYOUTS[layout], bandwidth, device))


def _copy(device: str, size: int) -> dict[str, float]:
    first, second = (gpu.bandwidth(device, size) for _ in range(2))
    return {"bytes_per_s": first, "again_bytes_per_s": second, "copied_mb": size / 1e6}


def _generators(record: Record) -> Iterator[tuple[str, Any]]:
    from benchmarks.ffhq import WIDTHS

    portraits = {4: 64, 8: 64, 16: 64, 32: 64, 64: 32}
    for name, sizes in {"1024 px": (1024, WIDTHS, 512, 4), "portraits": (64, portraits, 128, 64)}.items():
        key = f"generator {name}"
        yield key, record.item(key, partial(generator, *sizes, record.device))
