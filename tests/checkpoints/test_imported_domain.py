"""Somebody's own generator, from its file to a report, beside a domain that was there before (a quarter of an hour)."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import foreign_files as files
import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from test_dag import content, copied, ran, shell
from tiny_project import ROOT

from pipeline.storage import weights

pytestmark = pytest.mark.slow
NAME, PHOTOGRAPHS = "mine", 40
CLI = ("python", "-m", "deltaspace.cli.app")
BEFORE = ("data/pretrained/tiny", "domains/tiny.yaml", "data/tiny/images")


@pytest.fixture(scope="module")
def project(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny project in git, its first stage run, and a folder of photographs beside it."""
    folder = tmp_path_factory.mktemp("imported")
    root = copied(tiny, folder / "project")
    shutil.copy(ROOT / "domains/imagenet.txt", root / "domains")
    for words in ("init --quiet", "config user.name test", "config user.email test@example.invalid", "add --all"):
        shell(root, "git", *words.split())
    shell(root, "git", "commit", "--quiet", "--message", "tiny")
    shell(root, "dvc", "repro", "prepare@tiny")
    shell(root, "git", "add", "--all")
    shell(root, "git", "commit", "--quiet", "--message", "prepared")
    (folder / "photographs").mkdir()
    rng = np.random.default_rng(0)
    for number in range(PHOTOGRAPHS):
        small = Image.fromarray(rng.integers(0, 255, (4, 4, 3), dtype=np.uint8))
        small.resize((48, 48), Image.Resampling.BICUBIC).save(folder / f"photographs/{number}.png")
    return root


def fill_in(root: Path) -> None:
    """What README asks the owner for: prompts, photographs, how many."""
    path = root / f"domains/{NAME}.yaml"
    domain = yaml.safe_load(path.read_text())
    domain["prompts"] = [{"text": "red face"}, {"text": "happy face"}]
    domain["defaults"]["prepare"] = {"source": str(root.parent / "photographs"), "train": 30, "val": 6, "test": 6}
    path.write_text(yaml.safe_dump(domain, sort_keys=False))


def test_each_layout_becomes_a_domain_and_one_of_them_runs_to_its_report(project: Path) -> None:
    original = files.generator()
    torch.save({"g_ema": original.state_dict(), "latent_avg": original.w_mean}, project.parent / "rosinality.pt")
    files.ada(project.parent / "ada.pkl", original)
    files.tensorflow(project.parent / "tf.pkl", original)
    for name, file in (("one", "rosinality.pt"), ("two", "tf.pkl"), (NAME, "ada.pkl")):
        shell(project, *CLI, "import", "generator", str(project.parent / file), "--domain", name, "--neutral", "face")
        found = weights.load(project / f"data/pretrained/{name}/generator.safetensors")[0]
        torch.testing.assert_close(found["conv1.conv.weight"], original.state_dict()["conv1.conv.weight"])
    before = {path: content(project / path) for path in BEFORE}
    locked = yaml.safe_load((project / "dvc.lock").read_text())["stages"]

    shell(project, *CLI, "import", "clip", "data/pretrained/tiny/clip.safetensors", "--domain", NAME)
    fill_in(project)
    drawn = shell(project, *CLI, "edit", "--sample", "3", "red face", "--domain", NAME, "--editor", "styleclip_gd")
    assert "has no relevance matrix" in drawn and "wrote" in drawn
    told = shell(project, "python", "-m", "stages.prepare", NAME)
    assert f"{NAME} has no encoder, which later stages need: run `deltaspace pretrain {NAME} encoder`" in told
    for network in ("encoder", "denoiser"):
        shell(project, *CLI, "pretrain", NAME, network, "--images", "64")

    output = shell(project, "dvc", "exp", "run", "--set-param", f"domains=[{NAME}]")
    stages = {stage.partition("@")[0] for stage in ran(output)}
    assert {"sample", "invert", "cache", "relevance", "mapper", "diffusion", "evaluate", "report"} <= stages
    assert all(stage.partition("@")[2].split("-")[0] == NAME for stage in ran(output))
    row = json.loads((project / f"reports/{NAME}/metrics.json").read_text())["editors"]
    assert {"deltaedit_g", "deltaedit_d", "deltaedit_dm", "styleclip_gd"} <= set(row)
    assert row["deltaedit_g"]["clip_direction"]["value"] is not None
    assert (project / f"reports/{NAME}/index.html").stat().st_size > 10_000

    shell(project, "git", "checkout", "HEAD", "params.yaml")
    shell(project, "dvc", "checkout", "prepare@tiny")  # DVC takes away what params.yaml does not list for the time
    assert {path: content(project / path) for path in BEFORE} == before
    after = yaml.safe_load((project / "dvc.lock").read_text())["stages"]
    assert {name: after[name] for name in locked} == locked
    (project.parent / "me.png").write_bytes((project.parent / "photographs/0.png").read_bytes())
    edited = shell(project, *CLI, "edit", str(project.parent / "me.png"), "red face", "--domain", NAME)
    assert "wrote" in edited and "no relevance matrix" not in edited
