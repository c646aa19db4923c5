"""Independent jobs over worker processes with one thread each: on busy CPUs faster and steadier than threads.

A job must give the same bytes in whichever process it runs; `run` sets one thread everywhere, so it does.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pipeline.runtime import progress
from pipeline.storage import artefacts

if TYPE_CHECKING:
    from pipeline.runtime import resumable

Job = TypeVar("Job")
Result = TypeVar("Result")

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
MOST = 8  # processes; each holds its own copy of the networks


def count() -> int:
    """Worker processes to use: $DELTASPACE_WORKERS, else the CPUs this process may use, at most 8."""
    wanted = os.environ.get("DELTASPACE_WORKERS", "")
    return max(1, int(wanted)) if wanted.isdigit() else min(MOST, len(os.sched_getaffinity(0)))


def device() -> str:
    """Where networks run in the stages: $DELTASPACE_DEVICE, else cuda when there is one, else cpu."""
    import torch

    return os.environ.get("DELTASPACE_DEVICE") or ("cuda" if torch.cuda.is_available() else "cpu")


def run(function: Callable[[Job], Result], jobs: Sequence[Job], processes: int) -> Iterator[tuple[Job, Result]]:
    """(job, function(job)) as they finish. `function` and jobs are picklable; one process means this one."""
    if processes <= 1 or len(jobs) <= 1:
        one_thread()
        for job in jobs:
            yield job, function(job)
        return
    from concurrent.futures import ProcessPoolExecutor, as_completed
    from multiprocessing import get_context

    pool = ProcessPoolExecutor(min(processes, len(jobs)), get_context("spawn"), initializer=_start)
    try:
        futures = {pool.submit(function, job): job for job in jobs}
        for future in as_completed(futures):
            yield futures.pop(future), future.result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def fill(
    unit: resumable.Unit,
    folder: str,
    write: Callable[[Job, Path], None],
    jobs: Sequence[Job],
    processes: int,
    ending: str = ".parquet",
    rows: Sequence[int] | None = None,
) -> list[str]:
    """Let `write(job, path)` make one shard of `folder` per job, except those that a killed run finished before.

    rows: how many each job makes, where they differ much; progress is told in them, not in shards. Returns the names of
    all shards in the order of the jobs.
    """
    shards = [Path(artefacts.shard_name(index)).with_suffix(ending) for index in range(len(jobs))]
    names = [f"{folder}/{shard}" for shard in shards]
    todo = [(write, job, name, unit.path(name)) for job, name in zip(jobs, names) if not unit.done(name)]
    sizes = dict(zip(names, rows or [1] * len(jobs), strict=True))
    total, left = sum(sizes.values()), sum(sizes[task[2]] for task in todo)
    progressed = progress.track(
        run(_write, todo, processes),
        total,
        folder,
        step=lambda made: sizes[made[0][2]],
        done=total - left,
        unit="rows" if rows else "shards",
    )
    for task, _ in progressed:
        unit.mark(task[2])
    return names


def _write(task: tuple[Callable[[Any, Path], None], Any, str, Path]) -> None:
    write, job, _, path = task
    write(job, path)


def one_thread() -> None:
    """Let torch compute with one thread in this process, imported already or later."""
    os.environ["OMP_NUM_THREADS"] = "1"
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(1)


def idle_threads() -> None:
    """Let torch compute with as many threads as cores are idle, unless OMP_NUM_THREADS says how many.

    Threads that share a core wait for each other: two on one free core trained a generator 40 times slower than one.
    """
    if "OMP_NUM_THREADS" not in os.environ:
        import torch

        torch.set_num_threads(max(1, (os.cpu_count() or 1) - round(os.getloadavg()[0])))


def keep_memory(wanted: bool = True) -> None:
    """Let glibc reuse freed blocks of up to 32 MB, 512 MB of them, instead of handing them back at once.

    A network's pass is then 1.3 to 2 times faster on a CPU, since the pages of its activations are not cleared anew; no
    result changes. Not `wanted`: what glibc comes to by itself.
    """
    with suppress(OSError, AttributeError):  # another C library
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(M_MMAP_THRESHOLD, 32 << 20)
        libc.mallopt(M_TRIM_THRESHOLD, (512 if wanted else 64) << 20)


def _start() -> None:
    _end_with_parent()
    one_thread()
    keep_memory()


def _end_with_parent() -> None:
    """A worker whose parent was killed must not go on writing shards that nobody asked for."""
    from multiprocessing import connection, parent_process
    from threading import Thread

    parent: Any = parent_process()

    def wait() -> None:
        connection.wait([parent.sentinel])
        os._exit(1)

    Thread(target=wait, daemon=True).start()
