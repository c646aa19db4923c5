"""Times every operation on this machine, each implementation that can run here: `make bench`.

One line per case: the median of several runs, the spread, and the bytes that must move at least (each input read once,
the output written once) per second of it. A busy machine shows in the spread, and in the load that is printed first.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

from kernels import build
from kernels.bias_act import bias_act
from kernels.relevance import relevance_mask
from kernels.resample import box_resample
from kernels.upfirdn2d import binomial_kernel, upfirdn2d

RUNS, SECONDS = 30, 1.5  # at most, per case
Case = tuple[str, str, Callable[[], Tensor], tuple[Tensor, ...]]


def cases(device: str) -> list[Case]:
    """(operation, shape in words, call, inputs) at the sizes of the portraits domain and of a 1024 px generator."""
    made: list[Case] = []
    for batch, channels, size in ((64, 64, 32), (4, 512, 64)):
        x, bias = torch.randn(batch, channels, size, size, device=device), torch.randn(channels, device=device)
        kernel = binomial_kernel(factor=2).to(device)
        shape = f"{batch} x {channels} x {size} x {size}"
        made.append(("bias_act", shape, lambda x=x, b=bias: bias_act(x, b), (x, bias)))
        made.append(
            ("upfirdn2d", f"{shape}, up 2", lambda x=x, k=kernel: upfirdn2d(x, k, up=2, pad=(2, 1)), (x, kernel))
        )
    for batch, source, target in ((64, 64, 96), (2, 1024, 224)):
        images = torch.randn(batch, 3, source, source, device=device)
        made.append(
            (
                "box_resample",
                f"{batch} x {source} -> {target}",
                lambda x=images, n=target: box_resample(x, n),
                (images,),
            )
        )
    for batch, channels, dim in ((64, 600, 112), (64, 6048, 512)):
        delta_s, delta_t = torch.randn(batch, channels, device=device), torch.randn(dim, device=device)
        relevance = torch.nn.functional.normalize(torch.randn(channels, dim, device=device), dim=1)
        made.append(
            (
                "relevance_mask",
                f"{batch} x {channels}, E {dim}",
                lambda d=delta_s, r=relevance, t=delta_t: relevance_mask(d, r, t, 0.1, 1.0),
                (delta_s, relevance, delta_t),
            )
        )
    return made


def seconds(call: Callable[[], Tensor], device: str) -> list[float]:
    """Wall seconds of single calls, after two that are not counted."""
    found: list[float] = []
    for number in range(RUNS + 2):
        start = time.perf_counter()
        call()
        if device != "cpu":
            torch.cuda.synchronize()
        if number >= 2:
            found.append(time.perf_counter() - start)
        if sum(found) > SECONDS:
            break
    return found


def main() -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    load = f", load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores" if hasattr(os, "getloadavg") else ""
    print(f"torch {torch.__version__}, {device}, {torch.get_num_threads()} threads{load}")
    running = build.describe()
    for name, shape, call, inputs in cases(device):
        with torch.inference_mode():
            found = seconds(call, device)
            moved = sum(x.nbytes for x in (*inputs, call()))
        middle = statistics.median(found)
        print(
            f"{name:15} {running[name][0]:4} {shape:26} {1e3 * middle:8.2f} ms "
            f"({1e3 * min(found):.2f} to {1e3 * max(found):.2f}, {len(found)} runs) {moved / middle / 1e9:6.2f} GB/s"
        )


if __name__ == "__main__":
    main()
