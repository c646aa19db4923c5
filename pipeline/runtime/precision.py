"""Use of bfloat16 only on hardware that supports it.

On others PyTorch does not use its fast convolutions: rendering and embedding an image of portraits took 85 ms in
bfloat16 and 10 ms in float32, on one core of a processor with AVX2 only.
"""

from __future__ import annotations

import functools

import torch


@functools.cache
def halves(kind: str) -> bool:
    """Whether devices of this kind ("cpu", "cuda") multiply in bfloat16 in hardware."""
    if kind == "cuda":
        return torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
    fast = kind == "cpu" and torch.backends.mkldnn.is_available()  # without it all convolutions are slow
    return fast and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def low(device: torch.device | str, wanted: bool = True) -> torch.dtype:
    """bfloat16 where it is wanted and supported in hardware, else float32."""
    return torch.bfloat16 if wanted and halves(torch.device(device).type) else torch.float32


def lowered(device: torch.device | str, wanted: bool = True) -> torch.autocast:
    """Context in which networks on `device` multiply in `low`; their weights stay as they are."""
    return torch.autocast(torch.device(device).type, torch.bfloat16, enabled=low(device, wanted) == torch.bfloat16)
