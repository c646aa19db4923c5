"""`deltaspace bench kernels`: what the CUDA kernels get right, and how fast, on this machine; reports/gpu/kernels.json.

Every operation in the sizes of a 1024 px StyleGAN2 (and of `portraits`), in every dtype and layout, forwards and
backwards. Errors are relative to the reference in float64 of the same rounded inputs; bytes are those that must move:
every input read once, every output written once.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kernels import build
from kernels.bias_act import bias_act
from kernels.epilogue import modulated_epilogue
from kernels.relevance import relevance_mask
from kernels.resample import box_resample
from kernels.upfirdn2d import binomial_kernel, upfirdn2d
from pipeline import bench_gpu
from pipeline.bench_gpu import Record, Run

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
LAYOUTS = {"planes": torch.contiguous_format, "channels_last": torch.channels_last}
ROTATED = 150_000_000  # bytes of inputs at least that calls go through in turn: more than twice an L2
MOST_SETS = 48  # of inputs; small ones then stay in the L2, as they do in use
NATIVE = tuple(name for name, stem in build.OPERATIONS.items() if (build.CSRC / f"{stem}.cu").exists())
SANITIZER = "compute-sanitizer"
SANITIZED = 100  # seconds at most per tool
MEAN, STD = (0.1, -0.2, 0.3), (0.5, 0.6, 0.7)  # of colours
NOTES = (
    "error: ||found - reference in float64 of the same rounded inputs|| / ||that||; for a gradient, per input",
    "ref: the plain PyTorch reference in the same dtype (convolutions in TF32, as PyTorch's default is)",
    "gpu_us: median between two CUDA events around a call, calls queued ahead; call_us: the clock, per call in a loop",
    "ours_again: the same timing once more, which gives the noise",
    "share: of the copy bandwidth measured first (bytes read + written); a backward pass counts what it must read",
    f"inputs rotate among sets of {ROTATED / 1e6:.0f} MB in all, {MOST_SETS} sets at most",
)


@dataclass(frozen=True)
class Case:
    """An operation on tensors by name. `narrow` ones have the dtype that is measured, the others are float32.

    saved: what a backward pass must read besides the cotangent, by name; "y" is the result.
    """

    operation: str
    shapes: dict[str, tuple[int, ...]]
    run: Callable[..., Tensor]  # of the tensors by name, and impl
    graded: tuple[str, ...]
    saved: tuple[str, ...] = ()
    narrow: tuple[str, ...] = ("x",)
    fixed: dict[str, Tensor] | None = None  # tensors that are no random numbers

    def inputs(self, dtype: torch.dtype, layout: torch.memory_format, device: str) -> dict[str, Tensor]:
        """Standard normal ones."""
        found = {}
        for name, shape in self.shapes.items():
            made = torch.randn(shape, device=device).to(dtype if name in self.narrow else torch.float32)
            found[name] = made.contiguous(memory_format=layout) if made.ndim == 4 and name == "x" else made
        return found | {name: tensor.to(device) for name, tensor in (self.fixed or {}).items()}


def _image(*shape: int) -> dict[str, tuple[int, ...]]:
    return {"x": shape}


def _biased(*shape: int) -> Case:
    channels = shape[1] if len(shape) == 4 else shape[-1]
    return Case("bias_act", {"x": shape, "bias": (channels,)}, bias_act, ("x", "bias"), ("y",), ("x", "bias"))


def _filtered(shape: tuple[int, int, int, int], **options: Any) -> Case:
    return Case(
        "upfirdn2d", _image(*shape), partial(upfirdn2d, **options), ("x",), fixed={"kernel": binomial_kernel(2)}
    )


def _boxed(shape: tuple[int, int, int, int], size: int, normalised: bool = False) -> Case:
    constants: tuple[Any, ...] = (MEAN, STD) if normalised else (None, None)
    return Case("box_resample", _image(*shape), partial(_box, size, constants), ("x",))


def _box(size: int, constants: tuple[Any, ...], x: Tensor, impl: str) -> Tensor:
    return box_resample(x, size, *constants, impl=impl)


def _masked(batch: int, channels: int, dim: int) -> Case:
    shapes = {"delta_s": (batch, channels), "relevance": (channels, dim), "delta_t": (dim,)}
    run = partial(relevance_mask, threshold=0.5, strength=1.5)
    return Case("relevance_mask", shapes, run, ("delta_s",), ("relevance", "delta_t"), ("delta_s",))


def _epilogue(shape: tuple[int, int, int, int], styled: bool) -> Case:
    b, c, h, w = shape
    sides = {"demod": (b, c), "noise": (1, 1, h, w), "weight": (1,), "bias": (c,)} | (
        {"style": (b, c)} if styled else {}
    )
    graded = ("x", *(name for name in sides if name != "noise"))
    return Case("modulated_epilogue", {"x": shape, **sides}, modulated_epilogue, graded, ("x", *sides))


def cases(batch: int = 4, size: int = 1024, small: int = 64) -> dict[str, Case]:
    """What to measure, by name. batch: pictures of `size` pixels; small: pictures of `portraits`, 64 and 32 px."""
    channels = {size: 32, size // 4: 128, size // 16: 512}  # of StyleGAN2 config f at 1024, 256 and 64 px
    maps = [(batch, c, n, n) for n, c in channels.items()]
    little = [(small, 32, 64, 64), (small, 64, 32, 32)] if small > 1 else [(2, 3, 8, 8)]
    found: dict[str, Case] = {"bias_act mapping": _biased(64, 512), "bias_act mapper fine": _biased(64, 2464)}
    for shape in (maps[0], little[0]):
        found[f"bias_act {shape[2]} px"] = _biased(*shape)
    for b, c, n, _ in (*maps, little[0]):
        found[f"upfirdn2d blur to {n} px"] = _filtered((b, c, n + 1, n + 1), pad=(1, 1))
    found[f"upfirdn2d picture to {size} px"] = _filtered((batch, 3, size // 2, size // 2), up=2, pad=(2, 1))
    found[f"upfirdn2d halved from {size // 4} px"] = _filtered(maps[1], down=2, pad=(1, 1))
    found[f"box_resample {size} to {size * 7 // 32} px"] = _boxed((batch, 3, size, size), size * 7 // 32)
    found["box_resample 64 to 96 px, normalised"] = _boxed((small, 3, 64, 64), 96, normalised=True)
    found["relevance_mask FFHQ"] = _masked(1, 6048, 512)
    found["relevance_mask FFHQ, products given"] = _masked(64, 6048, 1)
    for number, shape in enumerate((*maps, *little)):
        styled = bool(number % 2)
        found[f"modulated_epilogue {shape[2]} px{', styled' * styled}"] = _epilogue(shape, styled)
    return found


# ---------------------------------------------------------------- errors


def _results(case: Case, given: dict[str, Tensor], cotangent: Tensor | None, impl: str) -> dict[str, Tensor]:
    leaves = {
        name: x.detach().requires_grad_(cotangent is not None and name in case.graded) for name, x in given.items()
    }
    y = case.run(**leaves, impl=impl)
    if cotangent is None:
        return {"y": y}
    gradients = torch.autograd.grad(y, [leaves[name] for name in case.graded], cotangent.to(y.dtype))
    return {"y": y.detach(), **dict(zip(case.graded, gradients, strict=True))}


def errors(case: Case, given: dict[str, Tensor], native: str) -> dict[str, dict[str, float]]:
    """Who ("ours", "ref") -> the relative error of the result "y" and of every gradient."""
    exact = {name: x.double() for name, x in given.items()}
    cotangent = torch.randn_like(case.run(**given, impl=native))
    truth = _results(case, exact, cotangent, "ref")
    found = {}
    for who, impl in (("ours", native), ("ref", "ref")):
        values = _results(case, given, cotangent, impl)
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
    bench_gpu.release(device)
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
            told = bench_gpu.timing(runs, device)
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
    from pipeline.generator import Generator

    torch.manual_seed(0)
    generator = Generator(size, style_dim, widths).to(device).eval().requires_grad_(False)
    w_plus = generator.repeat(torch.randn(batch, style_dim, device=device))
    s, found = generator.styles(w_plus), {"pictures": batch, "size_px": size}
    kind = torch.device(device).type
    for name, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16)):

        def forward(dtype: torch.dtype = dtype) -> Tensor:
            with torch.no_grad(), torch.autocast(kind, torch.bfloat16, enabled=dtype != torch.float32):
                return generator.synthesis(s, w_plus)

        ours = forward()
        times = {"ours_us": bench_gpu.timing([forward], device, 0.2)}
        with plain():
            theirs = forward()
            times["ref_us"] = bench_gpu.timing([forward], device, 0.2)
        times["ours_again_us"] = bench_gpu.timing([forward], device, 0.2)
        found[name] = {key: told.gpu_us for key, told in times.items()}
        found[name] |= {f"{key}_per_call": told.call_us for key, told in times.items()}
        found[name]["ref_over_ours"] = times["ref_us"].gpu_us / times["ours_us"].gpu_us
        found[name]["relative_difference"] = _relative(ours, theirs.double())
        del ours, theirs

    def gradient() -> Tensor:
        leaf = s.detach().requires_grad_(True)
        return torch.autograd.grad(generator.synthesis(leaf, w_plus).square().sum(), leaf)[0]

    ours = gradient()
    times = {"ours_us": bench_gpu.timing([gradient], device, 0.2)}
    with plain():
        theirs = gradient()
        times["ref_us"] = bench_gpu.timing([gradient], device, 0.2)
    found["gradient_float32"] = {key: told.gpu_us for key, told in times.items()}
    found["gradient_float32"]["ref_over_ours"] = times["ref_us"].gpu_us / times["ours_us"].gpu_us
    found["gradient_float32"]["relative_difference"] = _relative(ours, theirs.double())
    return found


# ---------------------------------------------------------------- compiling and checking


def compiled(root: Path) -> dict[str, Any]:
    """Seconds until each operation's library is there, all compiled at once, each in a process of its own."""
    code = "import sys; from kernels import build; print(build.unavailable(sys.argv[1], 'cuda'))"

    def one(name: str) -> dict[str, Any]:
        start = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-c", code, name], capture_output=True, text=True, env=_environment(), cwd=root
        )
        reason = (done.stdout if done.returncode == 0 else done.stderr).strip()[-bench_gpu.LONGEST :]
        return {"process_s": round(time.perf_counter() - start, 1), "unavailable": reason}

    with ThreadPoolExecutor(len(NATIVE)) as pool:
        found: dict[str, Any] = dict(zip(NATIVE, pool.map(one, NATIVE), strict=True))
    for name in NATIVE:  # what failed is not tried again in this process
        if reason := found[name]["unavailable"]:
            build._REASONS[name, "cuda"] = reason
    try:
        nvcc = str(build.cuda_home() / "bin" / "nvcc")
        told = bench_gpu._output(nvcc, "--version")
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


def small_calls(device: str, impl: str) -> int:
    """Every operation forwards and backwards on small tensors of odd sizes, in all dtypes and layouts; how many."""
    small = [
        _biased(3, 33),
        _biased(2, 5, 7, 9),
        _filtered((2, 5, 9, 7), pad=(1, 1)),
        _filtered((2, 3, 5, 7), up=2, pad=(2, 1)),
        _filtered((2, 3, 9, 7), down=2, pad=(1, 1)),
        _boxed((2, 3, 13, 17), 5, normalised=True),
        _boxed((2, 3, 4, 6), 7),
        _masked(3, 45, 37),
        _epilogue((2, 35, 7, 5), styled=True),
        _epilogue((1, 3, 41, 37), styled=False),
    ]
    calls = 0
    for case in small:
        for dtype in (*DTYPES.values(), torch.float64):
            for layout in LAYOUTS.values():
                given = case.inputs(dtype, layout, device)
                if dtype == torch.float64:
                    given = {name: x.double() for name, x in given.items()}
                _results(case, given, torch.randn_like(case.run(**given, impl=impl)), impl)
                calls += 1
    bench_gpu.synchronize(device)
    return calls


def sanitized(tool: str, root: Path, device: str = "cuda") -> dict[str, Any]:
    """What compute-sanitizer says of `small_calls`, in a process of its own."""
    program = shutil.which(SANITIZER) or shutil.which(SANITIZER, path="/usr/local/cuda/bin")
    if program is None:
        return {"errors": None, "reason": f"{SANITIZER} is not on PATH"}
    code = f"from pipeline.bench_kernels import small_calls; print('calls', small_calls('{device}', 'cuda'))"
    environment = {**_environment(), "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}  # so that every tensor ends where it ends
    command = [program, "--tool", tool, sys.executable, "-c", code]
    try:
        done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=root, timeout=SANITIZED)
    except subprocess.TimeoutExpired:
        return {"errors": None, "reason": f"not done in {SANITIZED} s"}
    lines = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()]
    summary = next((line for line in reversed(lines) if "SUMMARY" in line), None)
    count = next((int(word) for word in (summary or "").replace("(", " ").split() if word.isdigit()), None)
    calls = next((int(line.split()[1]) for line in lines if line.startswith("calls ")), None)
    found: dict[str, Any] = {"errors": count, "calls": calls, "summary": summary, "exit_code": done.returncode}
    if count or summary is None or calls is None:
        found["lines"] = [line[: bench_gpu.LONGEST] for line in lines[:20] + lines[-10:]]
    return found


# ---------------------------------------------------------------- all of it


def run(path: Path, root: Path, device: str, chosen: dict[str, Case] | None = None) -> Iterator[tuple[str, Any]]:
    """Measure everything and write it to `path`; yields every item as it is done. InputError without a GPU.

    chosen: other cases; a rehearsal with them runs on any device, without compiling and without whole generators.
    """
    if chosen is None:
        bench_gpu.check_gpu(device, "deltaspace bench kernels")
    record = bench_gpu.record(path, "deltaspace bench kernels", root, device, NOTES)
    torch.manual_seed(0)
    whole = chosen is None
    if whole:
        yield "compiled", record.item("compiled", lambda: compiled(root))
    copy = record.item("copy", lambda: _copy(device, 2**30 if whole else 2**20))
    yield "copy", copy
    yield from _rows(record, cases() if chosen is None else chosen, copy.get("bytes_per_s", float("nan")))
    if whole:
        yield from _whole(record, root)


def _copy(device: str, size: int) -> dict[str, float]:
    first, second = (bench_gpu.bandwidth(device, size) for _ in range(2))
    return {"bytes_per_s": first, "again_bytes_per_s": second, "copied_mb": size / 1e6}


def _rows(record: Record, chosen: dict[str, Case], copy: float) -> Iterator[tuple[str, Any]]:
    for name, case in chosen.items():
        for dtype in DTYPES:
            for layout in LAYOUTS if len(next(iter(case.shapes.values()))) == 4 else ("planes",):
                key = f"{name} | {dtype} | {layout}"
                measure = partial(row, case, DTYPES[dtype], LAYOUTS[layout], copy, record.device)
                yield key, record.item(key, measure)


def _whole(record: Record, root: Path) -> Iterator[tuple[str, Any]]:
    from pipeline.bench_ffhq import WIDTHS

    portraits = {4: 64, 8: 64, 16: 64, 32: 64, 64: 32}
    for name, measure in {
        "generator 1024 px": lambda: chain(1024, WIDTHS, 512, 4, record.device),
        "generator portraits": lambda: chain(64, portraits, 128, 64, record.device),
        "memcheck": lambda: sanitized("memcheck", root),
        "racecheck": lambda: sanitized("racecheck", root),
    }.items():
        yield name, record.item(name, measure)
