"""Choice of the implementation of each operation: native code where it is available and fast, else plain PyTorch.

Native code that cannot be compiled or loaded becomes a reason to report, and the operation runs its PyTorch reference.
"""

from __future__ import annotations

import os
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from kernels import build
from kernels.build import KernelUnavailable

OPERATIONS = ("bias_act", "upfirdn2d", "box_resample", "modulated_epilogue", "epilogue_difference", "channel_perturb")
IMPLEMENTATIONS = ("auto", "ref", "cpp", "cuda")
SWITCH = "DELTASPACE_KERNELS"  # environment variable; "ref" switches native code off
NO_SOURCE = "this operation has no {impl} version: plain PyTorch is used"

_REFERENCE_ONLY: set[str] = set()  # operations for which `auto` means the reference at present
_NATIVE = {"cpu": "cpp", "cuda": "cuda"}  # device type -> native implementation
_DTYPES = frozenset((torch.float32, torch.float64, torch.bfloat16, torch.float16))
_SLOW = {"cpp": torch.float16}  # gcc does not vectorise it: 10 to 20 times slower than PyTorch
_REASON_CHARS = 240
_REASONS: dict[tuple[str, str], str] = {}  # (operation, implementation) -> why it cannot run; "": it can
_WARNED: set[str] = set()
_LOADING = threading.RLock()
_LIBRARY = torch.library.Library("deltaspace", "FRAGMENT")


def register(schema: str, fake: Callable[..., Any], backward: Any = None, setup: Any = None) -> None:
    """Define the operation torch.ops.deltaspace.<name>.

    schema: name and signature, in torch.library's syntax. fake: results without values, for the compiler. backward,
    setup: its gradient, as `torch.library.register_autograd` takes them; None: not differentiable.
    """
    name = f"deltaspace::{schema.split('(')[0]}"
    _LIBRARY.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    torch.library.register_fake(name, fake, lib=_LIBRARY)
    if backward is not None:
        torch.library.register_autograd(name, backward, setup_context=setup, lib=_LIBRARY)


def dense(x: Tensor) -> Tensor:
    """Return x in a layout that native code reads: contiguous, or channels_last for images [B,C,H,W]."""
    if x.is_contiguous() or (x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last)):
        return x
    return x.contiguous()


def empty_resized(x: Tensor, height: int, width: int) -> Tensor:
    """Allocate [B,C,height,width] with the dtype and layout of x [B,C,H,W], as native code does."""
    last = not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)
    layout = torch.channels_last if last else torch.contiguous_format
    return torch.empty((*x.shape[:2], height, width), dtype=x.dtype, device=x.device, memory_format=layout)


@contextmanager
def reference_only(operations: Iterable[str] = OPERATIONS) -> Iterator[None]:
    """Context in which `auto` runs the PyTorch reference of these operations."""
    added = set(operations) - _REFERENCE_ONLY
    _REFERENCE_ONLY.update(added)
    try:
        yield
    finally:
        _REFERENCE_ONLY.difference_update(added)


def with_source(impl: str) -> tuple[str, ...]:
    """Operations that have native code of this kind ("cpp", "cuda")."""
    return tuple(name for name in OPERATIONS if build.source_file(name, impl).exists())


def choose(operation: str, impl: str, *tensors: Tensor) -> str:
    """Return the implementation to run for these tensors: "ref", "cpp" or "cuda".

    impl: "auto" for native code where it is available and fast, or a name. The first call may compile (seconds, once
    per machine). Raises ValueError for an unknown name, tensors on different devices or a dtype without native code,
    and KernelUnavailable when the named implementation cannot run.
    """
    if impl not in IMPLEMENTATIONS:
        raise ValueError(f"unknown implementation '{impl}': one of {', '.join(IMPLEMENTATIONS)}")
    device, dtype = tensors[0].device, tensors[0].dtype
    for tensor in tensors:
        if tensor.device != device:
            devices = {str(other.device) for other in tensors}
            raise ValueError(f"tensors on several devices: {', '.join(sorted(devices))}")
    native = _NATIVE.get(device.type, "ref")
    if impl == "auto":
        known = native != "ref" and operation not in _REFERENCE_ONLY and dtype in _DTYPES and dtype != _SLOW.get(native)
        return _automatic(operation, native) if known else "ref"
    if impl == "ref":
        return impl
    if reason := unavailable(operation, impl):
        raise KernelUnavailable(reason)
    if impl != native:
        raise KernelUnavailable(f"{impl} code cannot run on tensors on {device.type}")
    if dtype not in _DTYPES:
        raise ValueError(f"{impl} code of {operation} does not take {dtype}")
    return impl


def describe() -> dict[str, tuple[str, str]]:
    """Operation -> (implementation that `auto` runs on the default device, reason); compiles native code if needed."""
    impl = "cuda" if torch.cuda.is_available() else "cpp"
    reasons = {name: unavailable(name, impl) for name in OPERATIONS}
    return {
        name: ("ref", reason) if reason else (impl, f"compiled from kernels/csrc/{name}{build.SUFFIX[impl]}")
        for name, reason in reasons.items()
    }


def unavailable(operation: str, impl: str) -> str:
    """Return the reason why an implementation cannot run here; "" when it can, and then it is loaded."""
    if impl == "ref":
        return ""
    with _LOADING:
        if (operation, impl) not in _REASONS:
            _REASONS[operation, impl] = _load(operation, impl)
        return _REASONS[operation, impl]


def _automatic(operation: str, native: str) -> str:
    reason = unavailable(operation, native)
    if reason and reason not in _WARNED and reason != NO_SOURCE.format(impl=native) and not _switched_off():
        _WARNED.add(reason)
        warnings.warn(f"native code is not used, which costs speed only: {reason}", stacklevel=4)
    return "ref" if reason else native


# torch.compile takes the result as a constant instead of tracing these functions
_automatic._dynamo_marked_constant = True  # type: ignore[attr-defined]
unavailable._dynamo_marked_constant = True  # type: ignore[attr-defined]


def _switched_off() -> bool:
    return os.environ.get(SWITCH) == "ref"


def _load(operation: str, impl: str) -> str:
    """Load the library, compiled if needed; return the reason if that fails, else ""."""
    if _switched_off():
        return f"switched off by {SWITCH}=ref"
    if not build.source_file(operation, impl).exists():
        return NO_SOURCE.format(impl=impl)
    if impl == "cuda" and not torch.cuda.is_available():
        return "no CUDA device on this machine"
    try:
        torch.ops.load_library(str(build.library(operation, impl)))
    except KernelUnavailable as error:
        return str(error)
    except Exception as error:  # no failure of a tool chain may stop the user
        return _first_error(error)
    return ""


def _first_error(error: Exception) -> str:
    """The first line of a tool chain's output that reports an error."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [repr(error)]
    first = next((line for line in lines if "error:" in line.lower()), lines[0])
    return f"{type(error).__name__}: {first}"[:_REASON_CHARS]
