"""Independent jobs over worker processes with one thread each, which is faster and steadier on busy CPUs than threads.

A job must give the same bytes in any process; `run` sets one thread everywhere for that.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pipeline.runtime import files, progress

if TYPE_CHECKING:
    from pipeline.runtime import resumable

Job = TypeVar("Job")
Result = TypeVar("Result")

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
MAX_WORKERS = 8  # each has its own copy of the networks


def count() -> int:
    """Number of worker processes: $DELTASPACE_WORKERS, else the CPUs this process may use, at most MAX_WORKERS."""
    wanted = os.environ.get("DELTASPACE_WORKERS", "")
    return max(1, int(wanted)) if wanted.isdigit() else min(MAX_WORKERS, len(os.sched_getaffinity(0)))


def device() -> str:
    """Device of the networks in stages: $DELTASPACE_DEVICE, else cuda if available, else cpu."""
    import torch

    return os.environ.get("DELTASPACE_DEVICE") or ("cuda" if torch.cuda.is_available() else "cpu")


def run(function: Callable[[Job], Result], jobs: Sequence[Job], processes: int) -> Iterator[tuple[Job, Result]]:
    """Yield (job, function(job)) as the jobs finish. With one process they run in this one.

    function, jobs: picklable.
    """
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
    work: resumable.Work,
    folder: str,
    write: Callable[[Job, Path], None],
    jobs: Sequence[Job],
    processes: int,
    ending: str = ".parquet",
    rows: Sequence[int] | None = None,
) -> list[str]:
    """Write one shard of `folder` per job with `write(job, path)`, except those that an earlier run finished.

    Returns the names of all shards in the order of the jobs.

    work: keeps the shards until they are published.
    write, jobs: picklable.
    processes: number of worker processes; 1: this one alone.
    ending: of the shards' names.
    rows: of each job, the unit of progress where jobs differ in size; None: shards are the unit.
    """
    names = [f"{folder}/{files.shard_name(index, ending)}" for index in range(len(jobs))]
    todo = [(write, job, name, work.path(name)) for job, name in zip(jobs, names) if not work.done(name)]
    sizes = dict(zip(names, rows or [1] * len(jobs), strict=True))
    total, left = sum(sizes.values()), sum(sizes[task[2]] for task in todo)
    results = progress.track(
        run(_write, todo, processes),
        total,
        folder,
        step=lambda result: sizes[result[0][2]],
        done=total - left,
        unit="rows" if rows else "shards",
    )
    for task, _ in results:
        work.mark(task[2])
    return names


def _write(task: tuple[Callable[[Any, Path], None], Any, str, Path]) -> None:
    write, job, _, path = task
    write(job, path)


def one_thread() -> None:
    """Make torch compute with one thread in this process, whether it is imported already or later."""
    os.environ["OMP_NUM_THREADS"] = "1"
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(1)


def idle_threads() -> None:
    """Make torch compute with as many threads as cores are idle, unless OMP_NUM_THREADS is set.

    Threads that share a core wait for each other: two on one free core trained a generator 40 times slower than one.
    """
    if "OMP_NUM_THREADS" not in os.environ:
        import torch

        torch.set_num_threads(max(1, (os.cpu_count() or 1) - round(os.getloadavg()[0])))


def keep_memory(wanted: bool = True) -> None:
    """Make glibc reuse freed blocks of up to 32 MB, 512 MB of them, instead of returning them to the system at once.

    The pages of a network's activations are then not cleared for each pass: 32 images of the portraits generator took
    0.104 s instead of 0.133 s of one core. Results do not change. Not `wanted`: glibc's own limits.
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
    """End this worker when its parent is killed, so that it writes no further shards."""
    from multiprocessing import connection, parent_process
    from threading import Thread

    parent: Any = parent_process()

    def wait() -> None:
        connection.wait([parent.sentinel])
        os._exit(1)

    Thread(target=wait, daemon=True).start()
