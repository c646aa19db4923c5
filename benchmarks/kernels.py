"""`deltaspace bench kernels`: what the CUDA kernels get right, and how fast, on this machine; reports/gpu/kernels.json.

Every operation in the sizes of a 1024 px StyleGAN2 (and of `portraits`), in every dtype and layout, forwards and
backwards. Errors are relative to the reference in float64 of the same rounded inputs; bytes are those that must move:
every input read once, every output written once.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks import gpu, toolchain
from benchmarks.gpu import Record, Run
from benchmarks.kernel_cases import DTYPES, LAYOUTS, Case, cases, results
from kernels import build

ROTATED = 150_000_000  # bytes of inputs at least that calls go through in turn: more than twice an L2
MOST_SETS = 48  # of inputs; small ones then stay in the L2, as they do in use
NOTES = (
    "error: ||found - reference in float64 of the same rounded inputs|| / ||that||; for a gradient, per input",
    "ref: the plain PyTorch reference in the same dtype (convolutions in TF32, as PyTorch's default is)",
    "gpu_us: median between two CUDA events around a call, calls queued ahead; call_us: the clock, per call in a loop",
    "ours_again: the same timing once more, which gives the noise",
    "share: of the copy bandwidth measured first (bytes read + written); a backward pass counts what it must read",
    f"inputs rotate among sets of {ROTATED / 1e6:.0f} MB in all, {MOST_SETS} sets at most",
)


# ---------------------------------------------------------------- errors


def errors(case: Case, given: dict[str, Tensor], native: str) -> dict[str, dict[str, float]]:
    """Who ("ours", "ref") -> the relative error of the result "y" and of every gradient."""
    exact = {name: x.double() for name, x in given.items()}
    cotangent = torch.randn_like(case.run(**given, impl=native))
    truth = results(case, exact, cotangent, "ref")
    found = {}
    for who, impl in (("ours", native), ("ref", "ref")):
        values = results(case, given, cotangent, impl)
        found[who] = {name: _relative(values[name], true) for name, true in truth.items()}
    return found


def _relative(found: Tensor, true: Tensor) -> float:
    return ((found.double() - true).norm() / true.norm().clamp(min=1e-300)).item()


# ---------------------------------------------------------------- times


def moved(case: Case, given: dict[str, Tensor], y: Tensor) -> tuple[int, int]:
    """Bytes that must move: forwards, and backwards (cotangent and what is saved read, gradients written)."""
    sizes = {name: x.numel() * x.element_size() for name, x in {**given, "y": y}.items()}
    back = sizes["y"] + sum(sizes[name] for name in (*case.saved, *case.graded))
    return sum(sizes.values()), back


def _graph(case: Case, given: dict[str, Tensor], impl: str) -> Run:
    """A backward pass that can be run again and again."""
    leaves = {name: x.detach().requires_grad_(name in case.graded) for name, x in given.items()}
    y, wanted = case.run(**leaves, impl=impl), [leaves[name] for name in case.graded]
    cotangent = torch.randn_like(y)
    return lambda: torch.autograd.grad(y, wanted, cotangent, retain_graph=True)


def row(case: Case, dtype: torch.dtype, layout: torch.memory_format, copy: float, device: str) -> dict[str, Any]:
    """One line of the file. copy: bytes per second of a copy."""
    native = "cuda" if device != "cpu" else "auto"
    first = case.inputs(dtype, layout, device)
    y = case.run(**first, impl=native)
    forth, back = moved(case, first, y)
    found: dict[str, Any] = {"shapes": {name: list(x.shape) for name, x in first.items()}, "result": list(y.shape)}
    found["error"] = errors(case, first, native)
    gpu.release(device)
    count = max(2, min(MOST_SETS, -(-ROTATED // max(1, forth))))
    sets = [first, *(case.inputs(dtype, layout, device) for _ in range(count - 1))] if device != "cpu" else [first] * 2
    found["sets"] = len(sets)
    for way, size in (("forward", forth), ("backward", back)):
        found[way] = {"moved_mb": size / 1e6}
        for who, impl in (("ours", native), ("ref", "ref"), ("ours_again", native)):
            runs = [
                partial(case.run, **given, impl=impl) if way == "forward" else _graph(case, given, impl)
                for given in sets
            ]
            told = gpu.timing(runs, device)
            del runs
            found[way][who] = {
                "gpu_us": told.gpu_us,
                "call_us": told.call_us,
                "share": size / (1e-6 * told.gpu_us) / copy,
            }
        found[way]["ref_over_ours"] = found[way]["ref"]["gpu_us"] / found[way]["ours"]["gpu_us"]
    return found


# ---------------------------------------------------------------- a whole generator


@contextmanager
def plain() -> Iterator[None]:
    """Within it `auto` means the plain PyTorch reference for every operation, and no native code runs."""
    names = set(build.OPERATIONS) - build._PLAIN
    build._PLAIN.update(names)
    try:
        yield
    finally:
        build._PLAIN.difference_update(names)


def chain(size: int, widths: dict[int, int], style_dim: int, batch: int, device: str) -> dict[str, Any]:
    """The synthesis of a generator with random weights: with native code, and without; forwards, and to d/ds."""
    from pipeline.models.stylegan2 import Generator

    torch.manual_seed(0)
    generator = Generator(size, style_dim, widths).to(device).eval().requires_grad_(False)
    w_plus = generator.repeat(torch.randn(batch, style_dim, device=device))
    s, found = generator.styles(w_plus), dict[str, Any](pictures=batch, size_px=size)
    kind = torch.device(device).type
    for name, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16)):

        def forward(dtype: torch.dtype = dtype) -> Tensor:
            with torch.no_grad(), torch.autocast(kind, torch.bfloat16, enabled=dtype != torch.float32):
                return generator.synthesis(s, w_plus)

        ours = forward()
        times = {"ours_us": gpu.timing([forward], device, 0.2)}
        with plain():
            theirs = forward()
            times["ref_us"] = gpu.timing([forward], device, 0.2)
        times["ours_again_us"] = gpu.timing([forward], device, 0.2)
        found[name] = {key: told.gpu_us for key, told in times.items()}
        found[name] |= {f"{key}_per_call": told.call_us for key, told in times.items()}
        found[name]["ref_over_ours"] = times["ref_us"].gpu_us / times["ours_us"].gpu_us
        found[name]["relative_difference"] = _relative(ours, theirs.double())
        del ours, theirs

    def gradient() -> Tensor:
        leaf = s.detach().requires_grad_(True)
        return torch.autograd.grad(generator.synthesis(leaf, w_plus).square().sum(), leaf)[0]

    ours = gradient()
    times = {"ours_us": gpu.timing([gradient], device, 0.2)}
    with plain():
        theirs = gradient()
        times["ref_us"] = gpu.timing([gradient], device, 0.2)
    found["gradient_float32"] = {key: told.gpu_us for key, told in times.items()}
    found["gradient_float32"]["ref_over_ours"] = times["ref_us"].gpu_us / times["ours_us"].gpu_us
    found["gradient_float32"]["relative_difference"] = _relative(ours, theirs.double())
    return found


# ---------------------------------------------------------------- all of it


def run(path: Path, root: Path, device: str, chosen: dict[str, Case] | None = None) -> Iterator[tuple[str, Any]]:
    """Measure everything and write it to `path`; yields every item as it is done. InputError without a GPU.

    chosen: other cases; a rehearsal with them runs on any device, without compiling and without whole generators.
    """
    if chosen is None:
        gpu.check_gpu(device, "deltaspace bench kernels")
    record = gpu.record(path, "deltaspace bench kernels", root, device, NOTES)
    torch.manual_seed(0)
    size = 2**20
    if chosen is None:
        yield "compiled", record.item("compiled", lambda: toolchain.compiled(root))
        yield "sanitizer", record.item("sanitizer", lambda: toolchain.all_sanitized(root))
        chosen, size = cases(), 2**30
        yield from _generators(record)
    copy = record.item("copy", lambda: _copy(device, size))
    yield "copy", copy
    yield from _rows(record, chosen, copy.get("bytes_per_s", float("nan")))


def _copy(device: str, size: int) -> dict[str, float]:
    first, second = (gpu.bandwidth(device, size) for _ in range(2))
    return {"bytes_per_s": first, "again_bytes_per_s": second, "copied_mb": size / 1e6}


def _rows(record: Record, chosen: dict[str, Case], copy: float) -> Iterator[tuple[str, Any]]:
    for name, case in chosen.items():
        for dtype in DTYPES:
            for layout in LAYOUTS if len(next(iter(case.shapes.values()))) == 4 else ("planes",):
                key = f"{name} | {dtype} | {layout}"
                measure = partial(row, case, DTYPES[dtype], LAYOUTS[layout], copy, record.device)
                yield key, record.item(key, measure)


def _generators(record: Record) -> Iterator[tuple[str, Any]]:
    from benchmarks.ffhq import WIDTHS

    portraits = {4: 64, 8: 64, 16: 64, 32: 64, 64: 32}
    for name, numbers in {"1024 px": (1024, WIDTHS, 512, 4), "portraits": (64, portraits, 128, 64)}.items():
        key = f"generator {name}"
        yield key, record.item(key, partial(chain, *numbers, record.device))
