"""Which implementation of an operation runs: the one place that knows what this machine can do."""

from __future__ import annotations

from torch import Tensor

IMPLEMENTATIONS = ("auto", "ref", "cpp", "cuda")
OPERATIONS = ("bias_act", "upfirdn2d", "box_resample", "relevance_mask", "channel_perturb", "relevance_accumulate")


class KernelUnavailable(RuntimeError):
    """An implementation was asked for by name and is not there; the message is the reason."""


def unavailable(impl: str) -> str:
    """Why `impl` cannot run here; an empty string when it can."""
    if impl == "ref":
        return ""
    return f"no {impl} implementation is part of this version: every operation runs its PyTorch reference"


def choose(impl: str, *tensors: Tensor) -> str:
    """The implementation to run for `tensors`: `auto` takes the fastest that is there, a name is obeyed or refused.

    Raises ValueError for an unknown name or tensors on different devices, KernelUnavailable with the reason.
    """
    if impl not in IMPLEMENTATIONS:
        raise ValueError(f"unknown implementation '{impl}': one of {', '.join(IMPLEMENTATIONS)}")
    devices = {tensor.device for tensor in tensors}
    if len(devices) > 1:
        raise ValueError(f"tensors on several devices: {', '.join(sorted(map(str, devices)))}")
    if impl == "auto":
        return "ref"
    if reason := unavailable(impl):
        raise KernelUnavailable(reason)
    return impl


def describe() -> dict[str, tuple[str, str]]:
    """Operation -> (implementation that `auto` takes, why)."""
    return dict.fromkeys(OPERATIONS, ("ref", unavailable("cuda")))
