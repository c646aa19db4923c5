"""The command line as a person uses it: what it writes, and what it prints."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import command_line
import numpy as np
import pytest
import tiny_project
from command_line import TEXT, Deltaspace, R, edit, outside, photo
from PIL import Image

from deltaspace.cli.train import TRAINED
from pipeline.editors import DEFAULT
from pipeline.storage import weights
from pretrain.common import Training

project, deltaspace = command_line.project, command_line.deltaspace  # fixtures


# ---------------------------------------------------------------- help


def test_help_imports_nothing_heavy() -> None:
    code = """
import sys
from deltaspace.cli import app
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
        for command in ("edit", "invert", "pretrain", "fetch", "import", "domains", "editors", "doctor"):
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
    assert outcome.code == 0 and report["domain"] == "tiny" and report["editor"] == DEFAULT
    assert [edit["strength"] for edit in report["edits"]] == [0.5, 1.0]
    for fact in report["edits"]:
        assert Path(fact["path"]).is_file() and fact["seconds"] >= 0
        assert fact["evaluations"] == (3 if fact["strength"] == 1 else 4) and fact["chosen_strength"] in (0.5, 1.0)
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


def test_a_bad_image_among_good_ones_is_skipped_with_its_reason(deltaspace: Deltaspace, tmp_path: Path) -> None:
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
    listing = "app.run(['editors']); app.run(['domains'])"
    code = f"import sys; from deltaspace.cli import app; {listing}; print('torch' in sys.modules)"
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

        def train(job: Training) -> None:
            called.append((name.removeprefix("pretrain."), job))
            (job.root / job.domain.weights(job.name).path).touch()

        return SimpleNamespace(train=train, promote=lambda job: called.append(("promoted", job)))

    monkeypatch.setattr("importlib.import_module", module)
    assert deltaspace("pretrain", "tiny", "clip", "--minutes", "0.5", "--fresh", "--device", "cpu").code == 0
    ((name, job),) = called
    assert (name, job.name, job.domain.name, job.minutes, job.images) == ("clip", "clip", "tiny", 0.5, None)
    assert (job.resume, job.device) == (False, "cpu")
    called.clear()
    assert deltaspace("pretrain", "tiny", "encoder", "--promote-only").code == 0
    assert [(name, job.name) for name, job in called] == [("promoted", "encoder")]
    called.clear()
    assert deltaspace("pretrain", "tiny", "--images", "64").code == 0
    assert [job.name for _, job in called] == list(TRAINED)


@pytest.mark.parametrize("part", (*TRAINED, "ship"))
def test_every_part_has_a_trainer(part: str) -> None:
    from importlib import import_module

    module = import_module(f"pretrain.{'oracle' if part == 'oracle2' else part}")
    assert callable(module.promote) and (part == "ship" or callable(module.train))


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
    assert found["device"]["bfloat16"] == ("bfloat16  multiplied in" in text.out)
