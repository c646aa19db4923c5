"""The command line on bad input: one line for whatever is wrong."""

from __future__ import annotations

import io
import os
import resource
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import command_line
import pytest
import tiny_project
from command_line import TEXT, Deltaspace, edit, outside, photo
from PIL import Image

project, deltaspace = command_line.project, command_line.deltaspace  # fixtures


def bomb(path: Path) -> None:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    )


def truncated(path: Path) -> None:
    content = io.BytesIO()
    Image.effect_noise((200, 200), 80).convert("RGB").save(content, "JPEG")
    path.write_bytes(content.getvalue()[: len(content.getvalue()) // 2])


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda path: path.write_bytes(b""), "empty"),
        (lambda path: path.write_text("hello"), "not a picture"),
        (truncated, "cut short"),
        (bomb, "Mpixel"),
        (lambda path: photo(path, size=(4, 4), format="PNG"), "4 x 4"),
        (lambda path: path.mkdir(), "holds no images"),
        (lambda path: None, "does not exist"),
    ],
)
def test_an_unusable_image_file_is_one_line(
    deltaspace: Deltaspace, tmp_path: Path, make: Callable[[Path], object], reason: str
) -> None:
    make(tmp_path / "x.jpg")
    assert reason in deltaspace(*edit("x.jpg", TEXT)).line
    assert not (tmp_path / "edited").exists()


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("edti",), "Did you mean 'edit'"),
        (("edit",), "no image and no text"),
        (("edit", "me.png"), "no text"),
        (("edit", "--sample", "1"), "no text"),
        (("edit", "me.png", TEXT, "--sample", "1"), "give one of them"),
        (("edit", "me.png", ""), "the prompt is empty"),
        (("edit", "me.png", "\u200f "), "the prompt is empty"),
        (("edit", "me.png", TEXT, "--domain", "tinny"), "did you mean 'tiny'"),
        (edit("me.png", TEXT, "--editor", "deltaeditg"), "did you mean 'deltaedit_g'"),
        (edit("me.png", TEXT, "--source", " "), "the --source word is empty"),
        (edit("me.png", TEXT, "--strength", "strong"), "--strength 'strong' is not a number"),
        (edit("me.png", TEXT, "--strength", "1,,2"), "--strength '' is not a number"),
        (edit("me.png", TEXT, "--strength", "nan"), "out of range"),
        (edit("me.png", TEXT, "--strength", "1e6"), "out of range"),
        (edit("me.png", TEXT, "--threshold", "low"), "'--threshold'"),
        (edit("me.png", TEXT, "--threshold", "inf"), "out of range"),
        (edit("me.png", TEXT, "--editor", "identity_editor", "--threshold", "0.1"), "has no threshold"),
        (("edit", "me.png", TEXT, "--domain", "tiny", "--device", "cdua"), "did you mean 'cuda'"),
        (("edit", "me.png", TEXT, "--domain", "tiny", "--device", "cuda:99"), "is not there"),
        (edit("--sample", "one", TEXT), "--sample 'one' is not an id"),
        (edit("--sample", "-1", TEXT), "--sample '-1' is not an id"),
        (edit("--sample", "1", TEXT, "--seed", "x"), "'--seed'"),
        (edit("me.png", TEXT, "--strenth", "1"), "did you mean '--strength'"),
        (edit("me.png", TEXT, "happy face", "-o", "out.png"), "one file, but several"),
        (edit("me.png", TEXT, "-o", "me.png"), "is the image itself"),
        (edit("me.png", TEXT, "-o", "taken"), "is a file, not a folder"),
        (edit("me.png", TEXT, "-o", "taken/below"), "is a file, not a folder"),
        (edit(".", TEXT, "-o", "."), "is the folder of the images"),
        (edit("n" * 300, TEXT), "does not exist"),
        (("invert", "n" * 300, "--domain", "tiny"), "does not exist"),
        (edit("me.png", TEXT, "-o", "n" * 300), "File name too long"),
        (("invert",), "IMAGE"),
        (("invert", "nowhere.png", "--domain", "tiny"), "does not exist"),
        (("pretrain",), "DOMAIN"),
        (("pretrain", "tinny"), "did you mean 'tiny'"),
        (("pretrain", "tiny", "clop"), "did you mean 'clip'"),
        (("pretrain", "tiny", "clip", "--minutes", "0"), "--minutes 0"),
        (("pretrain", "tiny", "clip", "--images", "0"), "'--images'"),
    ],
)
def test_what_is_wrong_is_one_line_that_says_what_to_do(
    deltaspace: Deltaspace, tmp_path: Path, arguments: tuple[str, ...], reason: str
) -> None:
    photo(tmp_path / "me.png")
    before = (tmp_path / "me.png").read_bytes()
    (tmp_path / "taken").write_text("mine")
    assert reason in deltaspace(*arguments).line
    assert (tmp_path / "me.png").read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["me.png", "taken"]


def test_a_prompt_of_broken_bytes_is_one_line(project: Path, tmp_path: Path) -> None:
    done = outside(project, *edit("--sample", "1"), os.fsdecode(b"red \xff hair"), cwd=tmp_path)
    assert done.returncode == 2 and b"not valid UTF-8" in done.stderr and done.stderr.count(b"\n") == 1


def test_a_full_disk_is_one_line_and_leaves_nothing_half_written(project: Path, tmp_path: Path) -> None:
    old = tmp_path / "out.png"
    old.write_bytes(b"an older result")

    def small_files() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))

    done = outside(project, *edit("--sample", "1", TEXT, "-o", "out.png"), cwd=tmp_path, preexec_fn=small_files)
    assert done.returncode == 2, done.stderr
    assert b"cannot write out.png" in done.stderr and b"Traceback" not in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["out.png"] and old.read_bytes() == b"an older result"


def test_broken_weights_are_one_line(
    deltaspace: Deltaspace, project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tiny_project.copy(project, tmp_path / "project")
    monkeypatch.setenv("DELTASPACE_ROOT", str(root))
    path = root / "data/pretrained/tiny/generator.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    assert "generator.safetensors" in deltaspace(*edit("--sample", "1", TEXT)).line


def test_a_traceback_is_shown_with_debug_only(deltaspace: Deltaspace) -> None:
    for arguments in (
        ("--debug", "domains"),
        ("edit", "none.png", TEXT, "--debug"),
        ("--debug", "edit", "none.png", TEXT),
    ):
        outcome = deltaspace(*arguments)
        assert ("Traceback" in outcome.err) == ("edit" in arguments)
    assert "Traceback" not in deltaspace("edit", "none.png", "--", "--debug").err


def test_a_fault_of_the_program_is_exit_code_1(deltaspace: Deltaspace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.storage.domains.names", lambda root: 1 / 0)
    outcome = deltaspace("domains")
    assert outcome.code == 1 and "a fault of the program" in outcome.err and outcome.err.count("\n") == 1
