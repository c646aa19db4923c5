"""The command line as a person uses it: what it writes, what it prints, and one line for whatever is wrong."""

from __future__ import annotations

import importlib
import io
import json
import os
import resource
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest
import tiny_project
from PIL import Image

from pipeline import faces, portraits, weights
from stages import app
from stages._training import TRAINED

TEXT = "face with red hair"
R = tiny_project.R


class Outcome(NamedTuple):
    code: int
    out: str
    err: str

    @property
    def line(self) -> str:
        """The one line of an error: exit code 2, nothing on stdout."""
        lines = self.err.strip().splitlines()
        assert (self.code, self.out, len(lines)) == (2, "", 1), self
        assert lines[0].startswith("deltaspace: ") and "Traceback" not in self.err
        return lines[0]


Deltaspace = Callable[..., Outcome]


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_project.make(tmp_path_factory.mktemp("cli"))


@pytest.fixture
def deltaspace(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Deltaspace:
    """Run a command line in an empty folder, on the tiny project."""
    monkeypatch.setenv("DELTASPACE_ROOT", str(project))
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> Outcome:
        capsys.readouterr()
        code = app.run(arguments)
        return Outcome(code, *capsys.readouterr())

    return run


def edit(*arguments: str) -> tuple[str, ...]:
    return ("edit", *arguments, "--domain", "tiny", "--device", "cpu")


def photo(path: Path, mode: str = "RGB", size: tuple[int, int] = (40, 40), **options: object) -> Path:
    pixels = np.random.default_rng(1).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).convert(mode).save(path, **options)
    return path


def outside(project: Path, *arguments: str, **options: object) -> subprocess.CompletedProcess:
    """Run the command in a process of its own."""
    command = [sys.executable, "-m", "stages.app", *arguments]
    environment = {**os.environ, "DELTASPACE_ROOT": str(project), "PYTHONPATH": str(tiny_project.ROOT)}
    environment |= options.pop("env", {})  # type: ignore[operator]
    return subprocess.run(command, capture_output=True, env=environment, **options)  # type: ignore[call-overload]


# ---------------------------------------------------------------- help


def test_help_imports_nothing_heavy() -> None:
    code = """
import sys
from stages import app
app.run(["--help"]), app.run(["edit", "--help"])
heavy = {"torch", "numpy", "PIL", "open_clip", "mlflow", "dvc", "polars", "pyarrow", "diffusers", "yaml"}
print(sorted(heavy & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tiny_project.ROOT)
    assert done.stdout.splitlines()[-1] == "[]", done.stderr


def test_help_names_every_command_and_example(deltaspace: Deltaspace) -> None:
    for arguments in ((), ("--help",), ("-h",)):
        outcome = deltaspace(*arguments)
        assert outcome.code == 0
        for command in ("edit", "invert", "pretrain", "domains", "editors", "doctor"):
            assert command in outcome.out


def test_version(deltaspace: Deltaspace) -> None:
    outcome = deltaspace("--version")
    assert outcome.code == 0 and outcome.out.startswith("deltaspace ")


# ---------------------------------------------------------------- edit


def test_editing_a_picture_writes_each_edit_and_a_grid_and_says_so(deltaspace: Deltaspace, tmp_path: Path) -> None:
    photo(tmp_path / "me.png")
    outcome = deltaspace(*edit("me.png", TEXT, "happy face"))
    assert outcome.code == 0, outcome.err
    written = sorted(path.name for path in (tmp_path / "edited").iterdir())
    assert written == ["me-face-with-red-hair.png", "me-grid.png", "me-happy-face.png"]
    assert all(f"edited/{name}" in outcome.out for name in written)
    assert Image.open(tmp_path / "edited/me-happy-face.png").size == (R, R)


def test_json_is_one_object_with_everything_and_nothing_else(deltaspace: Deltaspace, tmp_path: Path) -> None:
    photo(tmp_path / "me.png", "L", (60, 40))
    outcome = deltaspace(*edit("me.png", f"{TEXT} wizard", "--strength", "0.5,1", "--json", "-o", "out"))
    report = json.loads(outcome.out)
    assert outcome.code == 0 and report["domain"] == "tiny" and report["editor"] == "deltaedit_g"
    assert [edit["strength"] for edit in report["edits"]] == [0.5, 1.0]
    for fact in report["edits"]:
        assert Path(fact["path"]).is_file() and fact["evaluations"] == 1 and fact["seconds"] >= 0
        assert 0 < fact["channels_moved"] <= fact["channels"]
        assert (fact["prompt"], fact["source"]) == (f"{TEXT} wizard", "face")
    (picture,) = report["pictures"]
    assert picture["error"] > 0 and any("cropped" in note for note in picture["notes"])
    assert any("'wizard'" in warning for warning in report["warnings"])
    assert Path(report["grid"]).is_file()
    assert "warning: " in outcome.err and report["warnings"][0] in outcome.err


def test_a_folder_is_edited_picture_by_picture_as_each_alone(deltaspace: Deltaspace, tmp_path: Path) -> None:
    (tmp_path / "people").mkdir()
    photo(tmp_path / "people/a.png")
    photo(tmp_path / "people/b.jpg", size=(50, 70))
    (tmp_path / "people/notes.txt").write_text("not a picture")
    assert deltaspace(*edit("people", TEXT, "-o", "all")).code == 0
    assert deltaspace(*edit("people/b.jpg", TEXT, "-o", "one")).code == 0
    assert sorted(path.name for path in (tmp_path / "all").iterdir()) == [
        "a-face-with-red-hair.png",
        "b-face-with-red-hair.png",
        "grid.png",
    ]
    alone, among = (tmp_path / folder / "b-face-with-red-hair.png" for folder in ("one", "all"))
    assert alone.read_bytes() == among.read_bytes()


def test_a_bad_picture_among_good_ones_is_skipped_and_told(deltaspace: Deltaspace, tmp_path: Path) -> None:
    (tmp_path / "people").mkdir()
    photo(tmp_path / "people/a.png")
    (tmp_path / "people/broken.png").write_bytes(b"\x89PNG\r\n")
    outcome = deltaspace(*edit("people", TEXT, "--json"))
    assert outcome.code == 2 and "skipped" in outcome.err and "broken.png" in outcome.err
    report = json.loads(outcome.out)
    assert len(report["edits"]) == 1 and report["failed"][0]["picture"].endswith("broken.png")


def test_the_same_command_gives_the_same_bytes(deltaspace: Deltaspace, tmp_path: Path) -> None:
    contents = []
    for folder in ("first", "second"):
        assert deltaspace(*edit("--sample", "3,4", TEXT, "-o", folder)).code == 0
        contents.append({path.name: path.read_bytes() for path in (tmp_path / folder).iterdir()})
    assert contents[0] == contents[1]
    assert set(contents[0]) == {"sample-3-face-with-red-hair.png", "sample-4-face-with-red-hair.png", "grid.png"}
    assert deltaspace(*edit("--sample", "3,4", TEXT, "--seed", "9", "-o", "third")).code == 0
    assert (tmp_path / "third/grid.png").read_bytes() != contents[0]["grid.png"]


def test_a_drawn_person_can_be_edited_with_the_counterfactual(deltaspace: Deltaspace, tmp_path: Path) -> None:
    outcome = deltaspace(*edit("--portrait", "58000", TEXT, "--editor", "counterfactual", "-o", "out.png"))
    assert outcome.code == 0, outcome.err
    assert sorted(path.name for path in tmp_path.glob("out*")) == ["out-grid.png", "out.png"]
    assert "--portrait" in deltaspace(*edit("--sample", "1", TEXT, "--editor", "counterfactual")).line


@pytest.mark.parametrize(
    ("name", "mode", "size", "options"),
    [
        ("grey.png", "L", (40, 40), {}),
        ("alpha.png", "RGBA", (40, 40), {}),
        ("cmyk.jpg", "CMYK", (40, 40), {}),
        ("palette.gif", "P", (40, 40), {}),
        ("wide.png", "RGB", (90, 20), {}),
        ("tall.webp", "RGB", (20, 90), {}),
        ("turned.jpg", "RGB", (40, 60), {"exif": Image.Exif()}),
    ],
)
def test_photographs_of_every_kind_are_edited(
    deltaspace: Deltaspace, tmp_path: Path, name: str, mode: str, size: tuple[int, int], options: dict
) -> None:
    if "exif" in options:
        options["exif"][274] = 6
    photo(tmp_path / name, mode, size, **options)
    outcome = deltaspace(*edit(name, TEXT, "--json"))
    assert outcome.code == 0, outcome.err
    notes = json.loads(outcome.out)["pictures"][0]["notes"]
    assert ("turned as its EXIF data say" in notes) == (name == "turned.jpg")


@pytest.mark.parametrize(
    "text", ["وجه بشعر أحمر", "顔に赤い髪", "visage roux 👩‍🦰", "\u202eface\u202c", "x" * 3000, "a " * 3000]
)
def test_prompts_in_any_script_and_length_are_edited_with_a_warning(deltaspace: Deltaspace, text: str) -> None:
    outcome = deltaspace(*edit("--sample", "1", text, "--json"))
    assert outcome.code == 0, outcome.err
    (fact,) = json.loads(outcome.out)["edits"]
    assert Path(fact["path"]).is_file() and not set(fact["prompt"]) & set("\u202e\u202c")
    assert text == "\u202eface\u202c" or fact["warnings"]


def test_a_terminal_without_unicode_still_gets_its_answer(project: Path, tmp_path: Path) -> None:
    done = outside(project, *edit("--sample", "1", "顔"), cwd=tmp_path, env={"PYTHONIOENCODING": "ascii"})
    assert done.returncode == 0, done.stderr
    assert b"wrote" in done.stdout and (tmp_path / "edited/sample-1-顔.png").is_file()


# ---------------------------------------------------------------- faces


def turned_portrait(row: int, degrees: float, size: int = 160) -> tuple[np.ndarray, np.ndarray]:
    """A portrait, turned about its middle; and its landmarks in pixels."""
    person = portraits.sample(row)
    picture = Image.fromarray(portraits.render(person, size)).rotate(-degrees, Image.Resampling.BICUBIC)
    angle, middle = np.radians(degrees), size / 2
    matrix = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    return np.asarray(picture), (portraits.landmarks(person) * size - middle) @ matrix.T + middle - 0.5


@pytest.fixture
def aligned(project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The tiny project, whose domain says that its faces are aligned; two.png and one.png to edit, with a finder."""
    root = tiny_project.copy(project, tmp_path / "project")
    monkeypatch.setenv("DELTASPACE_ROOT", str(root))
    path = root / "domains/tiny.yaml"
    path.write_text(path.read_text().replace("aligned: null", "aligned: ffhq"))
    small, at_small = turned_portrait(5, 10, 80)
    large, at_large = turned_portrait(9, -20)
    two = np.full((200, 300, 3), 127, np.uint8)
    two[60:140, 10:90], two[20:180, 120:280] = small, large
    found = {(300, 200): [at_large + np.array((120, 20)), at_small + np.array((10, 60))], (160, 160): [at_large]}
    Image.fromarray(two).save(tmp_path / "two.png")
    Image.fromarray(large).save(tmp_path / "one.png")
    Image.fromarray(two[:, :100]).save(tmp_path / "none.png")
    monkeypatch.setattr(faces, "finder", lambda: lambda picture: found.get(picture.size, []))
    return tmp_path


def inverted(deltaspace: Deltaspace, *arguments: str) -> tuple[Outcome, np.ndarray]:
    """The outcome, and the picture as it was cut out: the left one of the grid."""
    outcome = deltaspace("invert", *arguments, "--domain", "tiny", "--device", "cpu", "--json", "-o", "out")
    grid = np.asarray(Image.open("out/" + Path(arguments[0]).stem + "-grid.png").convert("RGB"))
    return outcome, grid[8 : 8 + 8 * R : 8, 8 : 8 + 8 * R : 8]


def test_the_largest_face_is_aligned_with_a_warning_and_another_one_on_demand(
    deltaspace: Deltaspace, aligned: Path
) -> None:
    alone, large = inverted(deltaspace, "one.png")
    assert alone.code == 0 and "found" not in alone.err, alone.err
    assert "aligned by its face" in json.loads(alone.out)["pictures"][0]["notes"]
    outcome, largest = inverted(deltaspace, "two.png")
    warning = "two.png: 2 faces found, took the largest, number 2 from the left: --face N takes another"
    assert warning in json.loads(outcome.out)["warnings"] and warning in outcome.err
    assert np.abs(largest.astype(int) - large).mean() < 12
    first, small = inverted(deltaspace, "two.png", "--face", "1")
    second, again = inverted(deltaspace, "two.png", "--face", "2")
    assert "faces found" not in first.err + second.err
    assert np.array_equal(again, largest) and np.abs(small.astype(int) - largest).mean() > 20


def test_a_face_that_is_not_there_and_a_picture_without_one(deltaspace: Deltaspace, aligned: Path) -> None:
    assert "--face 3: 2 faces found in two.png, give 1 to 2" in deltaspace(*edit("two.png", TEXT, "--face", "3")).line
    assert "--face 1: 0 faces found in none.png" in deltaspace(*edit("none.png", TEXT, "--face", "1")).line
    outcome = deltaspace(*edit("none.png", TEXT))
    assert outcome.code == 0 and "none.png: no face found, cropped to its centre and not aligned" in outcome.err
    assert deltaspace(*edit("one.png", TEXT, "--face", "0")).code == 2
    assert "give a picture" in deltaspace(*edit("--sample", "1", TEXT, "--face", "1")).line


def test_without_the_extra_one_line_says_that_nothing_was_aligned(
    deltaspace: Deltaspace, aligned: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(faces, "finder", lambda: None)
    outcome = deltaspace(*edit(".", TEXT))
    assert outcome.code == 0 and outcome.err.count("not aligned") == 1, outcome.err
    assert "pip install 'deltaspace[faces]'" in outcome.err
    assert "pip install 'deltaspace[faces]'" in deltaspace(*edit("one.png", TEXT, "--face", "1")).line


def test_a_domain_without_alignment_says_nothing_of_faces(
    deltaspace: Deltaspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(faces, "finder", lambda: pytest.fail("nobody asked for faces"))
    photo(tmp_path / "me.png")
    assert "aligned" not in deltaspace(*edit("me.png", TEXT)).err
    assert "leave --face out" in deltaspace(*edit("me.png", TEXT, "--face", "1")).line


# ---------------------------------------------------------------- bad input


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
        (lambda path: path.mkdir(), "holds no pictures"),
        (lambda path: None, "does not exist"),
    ],
)
def test_a_file_that_is_no_good_picture_is_one_line(
    deltaspace: Deltaspace, tmp_path: Path, make: Callable[[Path], object], reason: str
) -> None:
    make(tmp_path / "x.jpg")
    assert reason in deltaspace(*edit("x.jpg", TEXT)).line
    assert not (tmp_path / "edited").exists()


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("edti",), "Did you mean 'edit'"),
        (("edit",), "no picture and no text"),
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
        (edit("me.png", TEXT, "-o", "me.png"), "is the picture itself"),
        (edit("me.png", TEXT, "-o", "taken"), "is a file, not a folder"),
        (edit("me.png", TEXT, "-o", "taken/below"), "is a file, not a folder"),
        (edit(".", TEXT, "-o", "."), "is the folder of the pictures"),
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


def test_a_fault_of_the_program_is_told_apart(deltaspace: Deltaspace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.domains.names", lambda root: 1 / 0)
    outcome = deltaspace("domains")
    assert outcome.code == 1 and "a fault of the program" in outcome.err and outcome.err.count("\n") == 1


# ---------------------------------------------------------------- the other commands


def test_inverting_writes_picture_codes_and_error(deltaspace: Deltaspace, tmp_path: Path) -> None:
    photo(tmp_path / "me.png")
    outcome = deltaspace("invert", "me.png", "--domain", "tiny", "--device", "cpu", "--json")
    report = json.loads(outcome.out)
    (picture,) = report["pictures"]
    codes, meta = weights.load(Path(picture["codes"]))
    assert codes["w_plus"].shape == (6, tiny_project.D) and codes["s"].dim() == 1
    assert meta["error"] == picture["error"] > 0
    assert Image.open(picture["inversion"]).size == (R, R)
    assert Path(report["grid"]).is_file()


def test_editors_and_domains_are_listed_without_importing_torch(project: Path, deltaspace: Deltaspace) -> None:
    names = [row["name"] for row in json.loads(deltaspace("editors", "--json").out)["editors"]]
    assert {"deltaedit_g", "identity_editor", "counterfactual"} <= set(names)
    (row,) = json.loads(deltaspace("domains", "--json").out)["domains"]
    assert row["name"] == "tiny" and "generator" in row["networks"] and "oracle" in row["missing"]
    assert "tiny" in deltaspace("domains").out and "deltaedit_g" in deltaspace("editors").out
    code = (
        "import sys; from stages import app; app.run(['editors']); app.run(['domains']); print('torch' in sys.modules)"
    )
    environment = {**os.environ, "DELTASPACE_ROOT": str(project)}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, cwd=tiny_project.ROOT
    )
    assert done.stdout.splitlines()[-1] == "False"


def test_alignment_measures_anyones_embeddings(deltaspace: Deltaspace, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    meanings = rng.normal(size=(9, 6)).astype(np.float32)
    np.save(tmp_path / "i.npy", meanings + 3)
    np.save(tmp_path / "t.npy", meanings - 5)
    outcome = deltaspace("alignment", "i.npy", "t.npy", "--json")
    assert json.loads(outcome.out)["delta_cos_paired"]["value"] > 0.8
    assert "retrieval_delta" in deltaspace("alignment", "i.npy", "t.npy").out
    np.save(tmp_path / "few.npy", meanings[:5])
    refused = deltaspace("alignment", "i.npy", "few.npy")
    assert refused.code == 2 and "[9, 6] and [5, 6]" in refused.err and refused.err.count("\n") == 1


def test_pretrain_trains_the_part_it_is_asked_for_or_all(
    deltaspace: Deltaspace, project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DELTASPACE_ROOT", str(tiny_project.copy(project, tmp_path / "project")))
    called, real = [], importlib.import_module

    def module(name: str, *rest: Any, **options: Any) -> Any:
        if not name.startswith("pretrain."):
            return real(name, *rest, **options)
        part = name.removeprefix("pretrain.")

        def train(domain: Any, root: Path, **options: Any) -> None:
            called.append((part, domain.name, options))
            (root / domain.weights(part).path).touch()

        return SimpleNamespace(train=train, promote=lambda domain, root: called.append((part, "promoted")))

    monkeypatch.setattr("importlib.import_module", module)
    assert deltaspace("pretrain", "tiny", "clip", "--minutes", "0.5", "--fresh", "--device", "cpu").code == 0
    options = {"minutes": 0.5, "images": None, "resume": False, "device": "cpu"}
    assert called == [("clip", "tiny", options)]
    called.clear()
    assert deltaspace("pretrain", "tiny", "encoder", "--promote-only").code == 0
    assert called == [("encoder", "promoted")]
    called.clear()
    assert deltaspace("pretrain", "tiny", "--images", "64").code == 0
    assert [part for part, *_ in called] == list(TRAINED)
    called.clear()
    assert deltaspace("pretrain", "tiny", "mapper").code == 0
    assert called == [("artefacts", "promoted")]


@pytest.mark.parametrize("part", (*TRAINED, "artefacts"))
def test_every_part_has_a_trainer(part: str) -> None:
    from importlib import import_module

    module = import_module(f"pretrain.{part}")
    assert callable(module.train) and callable(module.promote)


def test_doctor_tells_device_kernels_weights_and_what_to_mend(
    deltaspace: Deltaspace, project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tiny_project.copy(project, tmp_path / "project")
    monkeypatch.setenv("DELTASPACE_ROOT", str(root))
    folder = root / "data/pretrained/tiny"
    digest = weights.digest(folder / "clip.safetensors")
    with (root / "domains/tiny.yaml").open("a") as file:
        for name, value in (("clip", digest), ("encoder", "0" * 64)):
            file.write(f"{name}:\n  path: data/pretrained/tiny/{name}.safetensors\n  sha256: '{value}'\n")
    (folder / "mapper.safetensors").write_bytes(b"cut")
    outcome = deltaspace("doctor", "--json")
    found = json.loads(outcome.out)
    states = {name: entry["state"] for name, entry in found["domains"]["tiny"].items()}
    assert states["clip"] == "verified" and states["encoder"] == "changed" and states["mapper"] == "broken"
    assert states["generator"] == "present" and states["oracle"] == "missing"
    assert "pretrain tiny oracle" in found["domains"]["tiny"]["oracle"]["advice"]
    assert set(found["kernels"]) and all(entry["implementation"] for entry in found["kernels"].values())
    assert found["versions"]["torch"] and found["project"]["free_gb"] > 0 and found["device"]["default"]
    assert outcome.code == 1 and sum("encoder" in line or "mapper" in line for line in found["problems"]) == 2
    text = deltaspace("doctor")
    assert text.code == 1 and "changed" in text.out and "PROBLEM" in text.out
