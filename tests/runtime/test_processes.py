"""Jobs over processes: every job runs once, errors come through, workers end with their parent."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch

from pipeline.runtime import processes, resumable
from pipeline.runtime.errors import InputError

ORPHANS = """
import time
from pipeline.runtime import processes

def wait(seconds):
    time.sleep(seconds)

if __name__ == "__main__":
    list(processes.run(wait, [60, 60], 2))
"""


def double(job: int) -> tuple[int, str]:
    if job < 0:
        raise InputError("a job below zero")
    return 2 * job, os.environ.get("OMP_NUM_THREADS", "")


def note(job: str, path: Path) -> None:
    path.write_text(job)


@pytest.mark.parametrize("count", [1, 2])
def test_every_job_is_done_once_with_one_thread(count: int) -> None:
    found = dict(processes.run(double, [3, 1, 2], count))
    assert found == {job: (2 * job, "1") for job in (1, 2, 3)}


@pytest.mark.parametrize("count", [1, 2])
def test_bad_input_in_a_worker_reaches_the_caller_as_it_is(count: int) -> None:
    with pytest.raises(InputError, match="below zero"):
        list(processes.run(double, [1, -1], count))


def test_the_environment_sets_the_number_of_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DELTASPACE_WORKERS", "3")
    assert processes.count() == 3
    monkeypatch.delenv("DELTASPACE_WORKERS")
    assert 1 <= processes.count() <= processes.MAX_WORKERS


def test_only_unfinished_shards_are_made(tmp_path: Path) -> None:
    with resumable.open("cache", "tiny", {"a": 1}, tmp_path) as work:
        names = processes.fill(work, "codes", note, ["first", "second"], 1)
        assert [work.path(name).read_text() for name in names] == ["first", "second"]
        before = work.path(names[0]).stat().st_mtime_ns
        work.path(names[1]).write_text("cut")
    with resumable.open("cache", "tiny", {"a": 1}, tmp_path) as work:
        processes.fill(work, "codes", note, ["first", "second"], 1)
        assert work.path(names[0]).stat().st_mtime_ns == before
        assert work.path(names[1]).read_text() == "second"


def test_workers_end_when_their_parent_is_killed(tmp_path: Path) -> None:
    (tmp_path / "parent.py").write_text(ORPHANS)
    parent = subprocess.Popen(
        [sys.executable, "parent.py"], cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    )
    deadline = time.monotonic() + 120
    while len(found := [p for p in psutil.Process(parent.pid).children() if "spawn_main" in " ".join(p.cmdline())]) < 2:
        assert parent.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    time.sleep(1)
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    _, alive = psutil.wait_procs(found, timeout=60)
    assert not alive


def test_a_training_uses_the_idle_cores_unless_the_environment_sets_the_number(monkeypatch: pytest.MonkeyPatch) -> None:
    before, taken = torch.get_num_threads(), []
    monkeypatch.setattr(torch, "set_num_threads", taken.append)
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    for load in (0.2, 2.9, 30.0):
        monkeypatch.setattr(os, "getloadavg", lambda load=load: (load, 0.0, 0.0))
        processes.idle_threads()
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    processes.idle_threads()
    assert taken == [8, 5, 1] and torch.get_num_threads() == before
