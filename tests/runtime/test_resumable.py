"""Unfinished work survives kill -9 and is checked before use: same bytes in the end, one process at a time."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from pipeline.runtime import files, resumable
from pipeline.runtime.errors import InputError

PRINT = {"params": {"lr": 0.1}, "inputs": {"codes": "abc"}, "code": "1"}
STAGE = """
    import os, signal, sys
    from pathlib import Path
    from pipeline.runtime import files, resumable

    root, stop = Path(sys.argv[1]), int(sys.argv[2])
    with resumable.open("cache", "tiny", {"seed": 1}, root) as work:
        for index in range(6):
            name = f"codes/shard-{index}"
            if work.done(name):
                continue
            files.write_bytes(work.path(name), bytes([index]) * 1000)
            if index == stop:
                work.path("codes/shard-5").write_bytes(b"half")
                os.kill(os.getpid(), signal.SIGKILL)
            work.mark(name)
            print("made", name, flush=True)
        work.publish({"codes": root / "data/codes"})
"""
TRAIN = """
    import os, signal, sys
    from pathlib import Path
    from pipeline.runtime import resumable

    root, stop = Path(sys.argv[1]), int(sys.argv[2])
    with resumable.open("mapper", "tiny", {"seed": 1}, root) as work:
        state = work.path("state").read_bytes() if work.done("state") else b""
        print("from", len(state), flush=True)
        while len(state) < 9:
            state += bytes([len(state)])
            with work.writing("state") as partial:
                partial.write_bytes(state)
                if stop == len(state):
                    os.kill(os.getpid(), signal.SIGKILL)
            if stop == -len(state):
                os.kill(os.getpid(), signal.SIGKILL)
        work.publish({"state": root / "data/mapper"})
"""


@pytest.fixture(autouse=True)
def project(tmp_path, monkeypatch):
    """The project is the working directory, here and in the processes that the tests start."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))


def opened(stage: str, domain: str, fingerprint: dict):
    return resumable.open(stage, domain, fingerprint, Path.cwd())


def start(code: str, *arguments: object) -> subprocess.Popen:
    command = [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finished(code: str, *arguments: object) -> tuple[int, str]:
    process = start(code, *arguments)
    out, err = process.communicate(timeout=120)
    assert process.returncode in (0, -signal.SIGKILL), err
    return process.returncode, out


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_a_killed_stage_goes_on_where_it_was_and_ends_with_the_same_bytes(tmp_path):
    quiet, killed = tmp_path / "quiet", tmp_path / "killed"
    quiet.mkdir(), killed.mkdir()
    assert finished(STAGE, quiet, -1)[0] == 0
    assert finished(STAGE, killed, 3)[0] == -signal.SIGKILL
    assert not (killed / "data").exists()
    code, out = finished(STAGE, killed, -1)
    assert code == 0
    assert out.split("\n")[:-1] == [f"made codes/shard-{index}" for index in (3, 4, 5)]  # the half shard 5 as well
    assert content(killed / "data") == content(quiet / "data") and len(content(killed / "data")) == 6
    assert list((killed / ".cache/cache-tiny").iterdir()) == []  # nothing of it stays


@pytest.mark.parametrize(("stop", "resumed"), [(4, (3,)), (-4, (4,))])
def test_a_checkpoint_killed_while_written_is_the_old_one_and_after_it_the_new_one(tmp_path, stop, resumed):
    finished(TRAIN, tmp_path, stop)
    code, out = finished(TRAIN, tmp_path, 0)
    assert code == 0 and int(out.split()[1]) in resumed
    assert (tmp_path / "data/mapper").read_bytes() == bytes(range(9))


def test_a_checkpoint_killed_between_its_record_and_its_rename_still_counts(tmp_path):
    with opened("mapper", "tiny", PRINT) as work:
        with work.writing("state") as partial:
            partial.write_bytes(b"old")
        with pytest.raises(KeyboardInterrupt), work.writing("state") as partial:
            partial.write_bytes(b"newer")
            work._record("state", [*work._manifest["state"], resumable._entry(partial)])
            raise KeyboardInterrupt
    with opened("mapper", "tiny", PRINT) as work:
        assert work.done("state") and work.path("state").read_bytes() == b"old"


def test_a_second_process_gets_one_line_with_the_first_ones_id(tmp_path):
    holder = start(
        """
        import time
        from pathlib import Path
        from pipeline.runtime import resumable
        with resumable.open("mapper", "tiny", {"a": 1}, Path.cwd()):
            print("held", flush=True)
            time.sleep(60)
        """
    )
    try:
        assert holder.stdout.readline() == "held\n"
        error = rf"another repro is running: .*process {holder.pid}"
        with pytest.raises(InputError, match=error) as caught, opened("mapper", "tiny", {"a": 1}):
            pass
        assert "\n" not in str(caught.value)
        with opened("mapper", "tiny", {"a": 2}), opened("mapper", "other", {"a": 1}):
            pass  # other work is free
    finally:
        holder.kill()
        holder.wait()
    with opened("mapper", "tiny", {"a": 1}):
        pass  # a killed holder holds nothing


def test_many_processes_at_once_never_share_the_lock(tmp_path):
    code = """
        import os, sys, time
        from pathlib import Path
        from pipeline.runtime import resumable
        from pipeline.runtime.errors import InputError
        root, held = Path(sys.argv[1]), 0
        stop = time.time() + 1.5
        while time.time() < stop:
            try:
                with resumable.open("mapper", "tiny", {"a": 1}, root):
                    mark = os.open(root / "inside", os.O_CREAT | os.O_EXCL)
                    held += 1
                    os.close(mark)
                    (root / "inside").unlink()
            except InputError:
                pass
        print(held)
    """
    racers = [start(code, tmp_path) for _ in range(3)]
    for racer in racers:
        out, err = racer.communicate(timeout=60)
        assert racer.returncode == 0, err
        assert int(out) > 0


@pytest.mark.parametrize("damage", [b"", b"one!", b"onE", b"one more"])
def test_a_piece_that_is_no_longer_what_was_marked_is_not_done(damage):
    with opened("cache", "tiny", PRINT) as work:
        work.path("piece").write_bytes(b"one")
        assert not work.done("piece")
        work.mark("piece")
        assert work.done("piece")
    with opened("cache", "tiny", PRINT) as work:
        assert work.done("piece")
        work.path("piece").write_bytes(damage)
        assert not work.done("piece")
        work.path("piece").unlink()
        assert not work.done("piece")


@pytest.mark.parametrize("manifest", [b"", b"{", b'{"piece": 3}', b'{"piece": [{"size": 3}]}', b"[]", b"\xff"])
def test_a_broken_manifest_means_that_nothing_is_done(manifest):
    with opened("cache", "tiny", PRINT) as work:
        work.path("piece").write_bytes(b"one")
        work.mark("piece")
        (work.folder / resumable.MANIFEST).write_bytes(manifest)
    with opened("cache", "tiny", PRINT) as work:
        assert not work.done("piece")


def test_a_foreign_file_is_neither_done_nor_published(tmp_path):
    with opened("cache", "tiny", PRINT) as work:
        work.path("codes/mine").write_bytes(b"mine")
        work.mark("codes/mine")
        work.path("codes/foreign").write_bytes(b"foreign")
        assert not work.done("codes/foreign")
        work.publish({"codes": tmp_path / "codes"})
    assert content(tmp_path / "codes") == {"mine": b"mine"}


def test_any_change_of_the_fingerprint_starts_anew():
    @dataclass
    class Params:
        lr: float

    prints = [PRINT, {**PRINT, "code": "2"}, {**PRINT, "params": {"lr": 0.2}}, {"params": Params(0.1)}, {"params": 1}]
    assert len({resumable.fingerprint_of(one) for one in prints}) == len(prints)
    assert resumable.fingerprint_of({"a": 1, "b": Path("x")}) == resumable.fingerprint_of({"b": Path("x"), "a": 1})
    with pytest.raises(TypeError):
        resumable.fingerprint_of({"a": object()})
    with opened("cache", "tiny", PRINT) as work:
        work.path("piece").write_bytes(b"one")
        work.mark("piece")
    with opened("cache", "tiny", {**PRINT, "code": "2"}) as work:
        assert not work.done("piece")


def test_only_the_newest_fingerprints_stay_and_never_one_in_use(tmp_path):
    folders = []
    for number in range(5):
        with opened("cache", "tiny", {"n": number}) as work:
            folders.append(work.folder)
            os.utime(work.folder, (number, number))
    with opened("cache", "tiny", {"n": 0}) as held:
        os.utime(held.folder, (0, 0))
        with opened("cache", "tiny", {"n": 9}):
            assert [folder.exists() for folder in folders] == [True, False, False, True, True]
    assert (tmp_path / ".cache").is_dir()


def test_publishing_replaces_a_folder_as_a_whole_and_files_one_by_one(tmp_path):
    codes = tmp_path / "data/codes"
    codes.mkdir(parents=True)
    (codes / "stale").write_bytes(b"stale")
    with opened("cache", "tiny", PRINT) as work:
        for name in ("codes/a", "codes/deep/b"):
            work.path(name).write_bytes(name.encode())
            work.mark(name)
        work.path("stats").write_bytes(b"stats")
        work.publish({"codes": codes, "stats": tmp_path / "data/stats"})
        assert not work.folder.exists()
    assert content(tmp_path / "data") == {"a": b"codes/a", "b": b"codes/deep/b", "stats": b"stats"}
    assert sorted(path.name for path in (tmp_path / "data").iterdir()) == ["codes", "stats"]


def test_publishing_after_a_kill_in_the_middle_of_it_gives_the_same(tmp_path):
    codes = tmp_path / "data/codes"
    with opened("cache", "tiny", PRINT) as work:
        for name in ("codes/a", "codes/b"):
            work.path(name).write_bytes(name.encode())
            work.mark(name)
        resumable._publish_folder({"a": work.path("codes/a")}, codes)  # as far as it came
        (codes.with_name(".codes.fresh")).mkdir()
        (codes.with_name(".codes.old")).mkdir()
    with opened("cache", "tiny", PRINT) as work:
        assert work.done("codes/a") and work.done("codes/b")
        work.publish({"codes": codes})
    assert sorted(path.name for path in codes.parent.iterdir()) == ["codes"]
    assert content(codes) == {"a": b"codes/a", "b": b"codes/b"}


def test_unfinished_or_changed_pieces_cannot_be_published(tmp_path):
    with opened("cache", "tiny", PRINT) as work:
        with pytest.raises(ValueError, match="nothing is not finished"):
            work.publish({"nothing": tmp_path / "out"})
        work.path("codes/a").write_bytes(b"one")
        work.mark("codes/a")
        work.path("codes/a").write_bytes(b"two!")
        with pytest.raises(ValueError, match="codes/a is not finished"):
            work.publish({"codes": tmp_path / "out"})
    assert not (tmp_path / "out").exists()


def test_a_file_where_a_folder_is_needed_is_one_line_and_nothing_is_lost(tmp_path):
    (tmp_path / "codes").write_text("mine")
    with opened("cache", "tiny", PRINT) as work:
        work.path("codes/a").write_bytes(b"one")
        work.mark("codes/a")
        with pytest.raises(InputError, match="is a file where a folder is to be written"):
            work.publish({"codes": tmp_path / "codes"})
        with pytest.raises(InputError, match=r"cannot write .*codes/inner"):
            work.publish({"codes": tmp_path / "codes/inner"})
        assert work.done("codes/a")
    assert (tmp_path / "codes").read_text() == "mine"
    (tmp_path / ".cache").rename(tmp_path / "moved")
    (tmp_path / ".cache").write_text("in the way")
    with pytest.raises(InputError, match=r"cannot write .*\.cache"), opened("cache", "tiny", PRINT):
        pass


def test_a_full_disk_while_a_piece_is_written_keeps_the_finished_ones(tmp_path):
    code = """
        import resource
        from pathlib import Path
        from pipeline.runtime import files, resumable
        from pipeline.runtime.errors import InputError
        with resumable.open("cache", "tiny", {"a": 1}, Path.cwd()) as work:
            files.write_bytes(work.path("small"), b"s" * 1000)
            work.mark("small")
            resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))
            try:
                with work.writing("large") as partial:
                    partial.write_bytes(b"l" * 10_000)
            except InputError as error:
                print(error)
    """
    process = start(code)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert "cannot write" in out and "File too large" in out and out.count("\n") == 1
    with opened("cache", "tiny", {"a": 1}) as work:
        assert work.done("small") and not work.done("large")
        assert sorted(path.name for path in work.folder.iterdir()) == [resumable.MANIFEST, "small"]


def test_names_stay_inside_the_work():
    with opened("cache", "tiny", PRINT) as work:
        for name in ("../out", "/etc/passwd", "", "a/../../b", resumable.MANIFEST, "a//b"):
            with pytest.raises(ValueError):
                work.path(name)


def test_the_digest_of_a_folder_follows_names_and_contents_but_not_hidden_files(tmp_path):
    folder = tmp_path / "codes"
    (folder / "deep").mkdir(parents=True)
    (folder / "deep/a").write_bytes(b"a")
    first = resumable.digest_of(folder)
    (folder / ".hidden").write_bytes(b"x")
    os.utime(folder / "deep/a", (1, 1))
    assert resumable.digest_of(folder) == first
    (folder / "deep/a").rename(folder / "deep/b")
    second = resumable.digest_of(folder)
    (folder / "deep/b").write_bytes(b"b")
    assert len({first, second, resumable.digest_of(folder), resumable.digest_of(folder / "deep/b")}) == 4
    with pytest.raises(InputError, match="cannot read"):
        resumable.digest_of(tmp_path / "none")


def test_a_queued_experiment_keeps_its_work_in_the_main_checkout(tmp_path):
    inner = tmp_path / ".dvc/tmp/exps/tmpx"
    inner.mkdir(parents=True)
    with resumable.open("cache", "tiny", PRINT, inner) as work:
        assert work.folder.is_relative_to(tmp_path / ".cache")


def test_time_does_not_enter_the_bytes(tmp_path):
    for name in ("a", "b"):
        with opened("cache", name, PRINT) as work:
            files.write_bytes(work.path("codes/x"), b"x")
            work.mark("codes/x")
            work.publish({"codes": tmp_path / name})
        time.sleep(0.02)
    assert resumable.digest_of(tmp_path / "a") == resumable.digest_of(tmp_path / "b")
