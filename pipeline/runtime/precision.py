"""Where bfloat16 pays: on GPUs and on processors that multiply in it.

Elsewhere PyTorch leaves its fast convolutions: a picture of portraits and its embedding took 85 ms in bfloat16 and 10
in float32, on one core of a processor that ends at AVX2.
"""

from __future__ import annotations

import functools

import torch


@functools.cache
def halves(kind: str) -> bool:
    """Whether devices of this kind ("cpu", "cuda") multiply in bfloat16 themselves."""
    if kind == "cuda":
        return torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
    known = kind == "cpu" and torch.backends.mkldnn.is_available()  # without it there are no fast ones at all
    return known and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def low(device: torch.device | str, wanted: bool = True) -> torch.dtype:
    """bfloat16 where it is wanted and pays, else float32."""
    return torch.bfloat16 if wanted and halves(torch.device(device).type) else torch.float32


def lowered(device: torch.device | str, wanted: bool = True) -> torch.autocast:
    """Inside, networks on `device` multiply in `low`; their weights stay as they are."""
    return torch.autocast(torch.device(device).type, torch.bfloat16, enabled=low(device, wanted) == torch.bfloat16)
