"""Downloads: a published file arrives whole and verified, or not at all, whatever server and disk do."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import published_model
import pytest
from full_disk import full_after
from published_model import CONTENT, SHA, Get, left
from published_server import File, Server

from pipeline.checkpoints import download
from pipeline.checkpoints.download import WebPageError
from pipeline.runtime.errors import InputError

server, get = published_model.server, published_model.get  # fixtures
ROOT = Path(download.__file__).resolve().parents[2]


def unfinished(folder: Path, url: str, have: int, validator: str | None = '"first"') -> Path:
    """As a fetch that was killed leaves it."""
    part = folder / "model.pt.part"
    part.write_bytes(CONTENT[:have])
    part.with_name("model.pt.part.json").write_text(json.dumps({"url": url, "validator": validator}))
    return part


# ---------------------------------------------------------------- whole and verified


def test_a_file_arrives_whole_and_leaves_nothing_beside_it(get: Get, tmp_path: Path) -> None:
    assert get().read_bytes() == CONTENT
    assert left(tmp_path) == ["model.pt"]


def test_a_file_of_unknown_size_and_digest_arrives_whole(get: Get, server: Server) -> None:
    server.files["/model.pt"].tell = False
    assert get(size=None, sha256=None).read_bytes() == CONTENT


def test_dropped_connections_are_gone_on_with_where_they_broke(
    get: Get, server: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    server.files["/model.pt"].drops = [100_000, 0, 150_000]
    assert get().read_bytes() == CONTENT
    assert server.ranges() == [None, "bytes=100000-", "bytes=100000-", "bytes=250000-"]
    assert capsys.readouterr().err.count("trying again in 0.001 s") == 2  # what came in between ends a row of failures


def test_pauses_grow_until_it_is_given_up_and_what_came_is_kept(
    get: Get, server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server.files["/model.pt"].drops = [1000] + [0] * 20
    with pytest.raises(InputError, match="5 times one after another; 1,000 of 300,000 bytes are kept, run again"):
        get()
    pauses = [line.rpartition(" in ")[2] for line in capsys.readouterr().err.splitlines()]
    assert pauses == ["0.001 s", "0.002 s", "0.004 s", "0.008 s"]
    server.files["/model.pt"].drops = []
    assert get().read_bytes() == CONTENT and server.ranges()[-1] == "bytes=1000-"


def test_a_busy_server_is_asked_again(get: Get, server: Server) -> None:
    server.files["/model.pt"].statuses = [503, 429, 500]
    assert get().read_bytes() == CONTENT and len(server.requests) == 4


def test_a_refused_connection_is_one_line(get: Get, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"127\.0\.0\.1:9/x: Connection refused, 5 times .*; try again later"):
        get("http://127.0.0.1:9/x")
    assert left(tmp_path) == []


def test_a_server_whose_file_never_stays_the_same_is_given_up(get: Get, server: Server) -> None:
    server.files["/model.pt"] = File(CONTENT, [f'"{n}"' for n in range(99)], drops=[100_000] * 99)
    with pytest.raises(InputError, match="5 times one after another"):
        get()


# ---------------------------------------------------------------- going on


def test_a_fetch_that_is_killed_goes_on_where_it_was(get: Get, server: Server, tmp_path: Path) -> None:
    server.files["/model.pt"].drops, server.files["/model.pt"].hold = [100_000], threading.Event()
    file = f"PublishedFile({server.url('/model.pt')!r}, {len(CONTENT)}, {SHA!r})"
    path = f"Path({str(tmp_path / 'model.pt')!r})"
    code = f"from pipeline.checkpoints.download import *; download({file}, {path}, 'model.pt')"
    running = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT)
    part, end = tmp_path / "model.pt.part", time.monotonic() + 20
    while not (part.is_file() and part.stat().st_size == 100_000) and time.monotonic() < end:
        time.sleep(0.01)
    running.kill()
    assert running.wait() == -signal.SIGKILL and not (tmp_path / "model.pt").exists()
    server.files["/model.pt"].hold.set()
    assert get().read_bytes() == CONTENT
    assert server.ranges() == [None, "bytes=100000-"] and left(tmp_path) == ["model.pt"]


def test_what_a_killed_fetch_left_is_gone_on_with(get: Get, server: Server, tmp_path: Path) -> None:
    unfinished(tmp_path, server.url("/model.pt"), 120_000)
    assert get().read_bytes() == CONTENT
    assert server.ranges() == ["bytes=120000-"] and left(tmp_path) == ["model.pt"]


def test_a_server_without_ranges_restarts_cleanly(get: Get, server: Server, tmp_path: Path) -> None:
    unfinished(tmp_path, server.url("/model.pt"), 120_000)
    server.files["/model.pt"].ranges = False
    assert get().read_bytes() == CONTENT and server.ranges() == ["bytes=120000-"]


@pytest.mark.parametrize("honest", [True, False])
def test_a_file_that_changed_meanwhile_restarts_cleanly(get: Get, server: Server, tmp_path: Path, honest: bool) -> None:
    unfinished(tmp_path, server.url("/model.pt"), 120_000, '"older"').write_bytes(bytes(120_000))
    server.files["/model.pt"].honest = honest  # not honest: the part is given although another state is asked for
    assert get(size=None, sha256=None).read_bytes() == CONTENT
    assert len(server.requests) == (1 if honest else 2)  # If-Range was sent


def test_a_file_that_changes_between_two_tries_restarts_cleanly(get: Get, server: Server, tmp_path: Path) -> None:
    server.files["/model.pt"] = File(bytes(300_000), '"older"', drops=[100_000] + [0] * 9)
    with pytest.raises(InputError, match="100,000 of 300,000 bytes are kept"):
        get(size=None, sha256=None)
    server.files["/model.pt"] = File(CONTENT)
    assert get(size=None, sha256=None).read_bytes() == CONTENT


@pytest.mark.parametrize("about", ["{", "[]", '{"url": 1}', '{"url": "https://elsewhere", "validator": "\\"first\\""}'])
def test_the_part_of_another_source_is_never_used(get: Get, server: Server, tmp_path: Path, about: str) -> None:
    unfinished(tmp_path, server.url("/model.pt"), 120_000).with_name("model.pt.part.json").write_text(about)
    assert get().read_bytes() == CONTENT and server.ranges() == [None]


def test_without_a_name_for_its_state_only_a_digest_lets_it_go_on(get: Get, server: Server, tmp_path: Path) -> None:
    server.files["/model.pt"].etag = None
    unfinished(tmp_path, server.url("/model.pt"), 120_000, None)
    assert get().read_bytes() == CONTENT
    unfinished(tmp_path, server.url("/model.pt"), 120_000, None)
    assert get(sha256=None).read_bytes() == CONTENT
    assert server.ranges() == ["bytes=120000-", None]


def test_wrong_bytes_in_a_part_are_fetched_once_more_at_one_go(get: Get, server: Server, tmp_path: Path) -> None:
    unfinished(tmp_path, server.url("/model.pt"), 120_000).write_bytes(bytes(120_000))
    assert get().read_bytes() == CONTENT and server.ranges() == ["bytes=120000-", None]


def test_all_that_is_missing_from_a_whole_part_is_its_name(get: Get, server: Server, tmp_path: Path) -> None:
    unfinished(tmp_path, server.url("/model.pt"), len(CONTENT))
    assert get().read_bytes() == CONTENT and server.requests == []
    unfinished(tmp_path, server.url("/model.pt"), len(CONTENT))
    assert get(size=None, sha256=None).read_bytes() == CONTENT and server.ranges() == ["bytes=300000-"]


def test_two_processes_do_not_fetch_the_same_file(get: Get, tmp_path: Path) -> None:
    from filelock import FileLock

    with FileLock(tmp_path / ".model.pt.lock"), pytest.raises(InputError, match="another process is fetching"):
        get()


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize("pieces", [False, True])
def test_wrong_bytes_are_never_kept(get: Get, server: Server, tmp_path: Path, pieces: bool) -> None:
    server.files["/model.pt"] = File(bytes(300_000), drops=[1000] if pieces else [])
    with pytest.raises(InputError, match=f"gives other bytes than published .*expected is {SHA}"):
        get()
    assert left(tmp_path) == [] and len(server.requests) == (3 if pieces else 1)


@pytest.mark.parametrize("length", [299_999, 300_001])
def test_a_file_of_another_size_is_refused_before_it_is_fetched(
    get: Get, server: Server, tmp_path: Path, length: int
) -> None:
    server.files["/model.pt"] = File(bytes(length))
    with pytest.raises(InputError, match=f"offers {length:,} bytes, 300,000 are published"):
        get()
    assert left(tmp_path) == []


@pytest.mark.parametrize("known", [True, False])
def test_an_endless_body_is_cut_off(
    get: Get, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, known: bool
) -> None:
    monkeypatch.setattr(download, "MAX_SIZE", 300_000)
    server.files["/model.pt"] = File(bytes(50_000), tell=False, times=10_000)
    with pytest.raises(InputError, match="sends more than the 300,000 bytes"):
        get(size=300_000 if known else None)
    assert left(tmp_path) == []


def test_a_truncated_body_is_not_the_file(get: Get, server: Server, tmp_path: Path) -> None:
    server.files["/model.pt"] = File(CONTENT[:200_000], tell=False)
    with pytest.raises(InputError, match="200,000 of 300,000 bytes"):
        get()
    assert not (tmp_path / "model.pt").exists()


@pytest.mark.parametrize("status", [404, 403, 410, 304, 418])
def test_a_refusal_is_one_line(get: Get, server: Server, tmp_path: Path, status: int) -> None:
    server.files["/model.pt"].status = status
    with pytest.raises(
        InputError, match=rf"answers {status} \(.*\): nothing was fetched|to nowhere: nothing was fetched"
    ):
        get()
    assert left(tmp_path) == [] and len(server.requests) == 1


@pytest.mark.parametrize(
    "answer",
    [
        File(b"<p>Quota exceeded</p>", kind="text/html; charset=utf-8"),
        File(b"\n<!DOCTYPE html><title>Sign in</title>"),
        File(b"<HTML>"),
        File(b"denied", kind="text/html", status=403),
    ],
)
def test_a_web_page_is_not_the_file(get: Get, server: Server, tmp_path: Path, answer: File) -> None:
    server.files["/model.pt"] = answer
    with pytest.raises(WebPageError, match="gives a web page instead of the file"):
        get(size=None)
    assert left(tmp_path) == []


@pytest.mark.parametrize(
    "url",
    [
        *("http://example.org/x", "HTTP://elsewhere/", "ftp://127.0.0.1/x", "file:///etc/passwd", "data:,x", "x"),
        *("https:///x", "https://a b/x", "https://[::1/x", "https://a/\r\nHost: b", "gdrive:", "gdrive:../../etc"),
    ],
)
def test_only_encrypted_addresses_are_asked(get: Get, url: str) -> None:
    with pytest.raises(InputError, match="is no address to fetch from") as caught:
        get(url)
    assert "\n" not in str(caught.value)


# ---------------------------------------------------------------- the disk


def test_a_full_disk_is_one_line_and_the_part_is_gone_on_with(get: Get, server: Server, tmp_path: Path) -> None:
    with full_after(150_000), pytest.raises(InputError, match=r"cannot write .*model\.pt\.part: File too large"):
        get()
    assert (tmp_path / "model.pt.part").stat().st_size == 150_000
    assert get().read_bytes() == CONTENT and server.ranges() == [None, "bytes=150000-"]


def test_a_file_that_does_not_fit_is_not_begun(
    get: Get, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 1000}))
    with pytest.raises(InputError, match=r"model\.pt needs 300,000 bytes more, but only 1,000 are free"):
        get()
    assert left(tmp_path) == []


def test_piped_progress_is_plain_lines_in_megabytes(get: Get, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    told = {}

    def track(stream, total, label, *, done, unit):
        told.update(total=total, label=label, done=done, unit=unit)
        told["steps"] = sum(1 for _ in stream)
        return iter(())

    monkeypatch.setattr(download.progress, "track", track)
    monkeypatch.setattr(download, "MB", 70_000)
    get(size=None)
    assert told == {"total": 5, "label": "model.pt", "done": 0, "unit": "MB", "steps": 4}
