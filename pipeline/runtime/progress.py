"""Progress of long work: a bar on a terminal, plain lines at most every ten seconds where output is piped."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TextIO, TypeVar

Item = TypeVar("Item")
LINE_EVERY = 10.0  # seconds
SILENT_BELOW = 1.0  # seconds: shorter work prints nothing when piped


def track(
    iterable: Iterable[Item],
    total: int | None = None,
    label: str = "working",
    *,
    step: int | Callable[[Item], int] = 1,
    done: int = 0,
    unit: str = "",
    stream: TextIO | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> Iterator[Item]:
    """Yield the items of `iterable` and show on stderr the progress, the rate and the time left.

    total: number of units; None: len() of the iterable where it has one and `step` is a number.
    label: what is worked on, at the start of the line.
    step: units per item (a batch's size), or a function of the item.
    done: units finished before (by an interrupted run), which do not count in the rate.
    unit: name of the units.
    """
    stream = stream or sys.stderr
    if total is None and not callable(step) and hasattr(iterable, "__len__"):
        total = done + step * len(iterable)  # type: ignore[arg-type]
    show = _bar if stream and stream.isatty() else _lines
    units = step if callable(step) else lambda _: step
    yield from show(iterable, total, label, units, done, unit, stream, clock)


def describe(label: str, count: int, total: int | None, fresh: int, seconds: float, unit: str = "") -> str:
    """One plain line: "codes: 5,000 of 200,000 images, 412/s, 7:53 left".

    label, unit: name of the work and of its units.
    count, total: units finished, and of all; None: not known.
    fresh, seconds: units finished by this run, and the time that they took.
    """
    amount = f"{count:,}" + (f" of {total:,}" if total is not None else "") + (f" {unit}" if unit else "")
    rate = fresh / seconds if seconds > 0 else 0.0
    parts = [f"{label}: {amount}"]
    if rate > 0:
        parts.append(f"{rate:.0f}/s" if rate >= 10 else f"{rate:.2g}/s")
        if total is not None and count < total:
            parts.append(f"{duration((total - count) / rate)} left")
    if total is None or count >= total:
        parts.append(f"{duration(seconds)} in all")
    return ", ".join(parts)


def duration(seconds: float) -> str:
    """Seconds as 0:07, 12:34 or 1:02:03."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _lines(iterable, total, label, units, done, unit, stream, clock):
    start = last = clock()
    count = done
    for item in iterable:
        yield item
        count = count + units(item) if total is None else min(count + units(item), total)
        now = clock()
        if now - last >= LINE_EVERY and (total is None or count < total):
            print(describe(label, count, total, count - done, now - start, unit), file=stream, flush=True)
            last = now
    seconds = clock() - start
    if seconds >= SILENT_BELOW:
        print(describe(label, count, count, count - done, seconds, unit), file=stream, flush=True)


def _bar(iterable, total, label, units, done, unit, stream, clock):
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[amount]}"), TimeRemainingColumn()
    start, count = clock(), done
    with Progress(*columns, console=Console(file=stream)) as progress:
        task = progress.add_task(label, total=total, completed=done, amount="")
        for item in iterable:
            yield item
            count = count + units(item) if total is None else min(count + units(item), total)
            amount = describe("", count, total, count - done, clock() - start, unit).removeprefix(": ")
            progress.update(task, completed=count, amount=", ".join(amount.split(", ")[:2]))
