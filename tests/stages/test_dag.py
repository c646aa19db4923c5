"""The whole workflow through DVC on the tiny domain: what runs, what does not run again, resuming after kill -9."""

from __future__ import annotations

import functools
import hashlib
import html
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import polars as pl
import psutil
import pytest
import torch
import yaml
from test_architecture import PLUMBING, REGISTRIES, covered, has_code

from pipeline import sampling, sources
from pipeline.models.feature_residual import FeatureResidual
from pipeline.networks import Networks
from pipeline.report import columns
from pipeline.storage import artefacts, domains
from stages import _edit
from stages._stage import Stage

WATCH = """
import atexit, os, pathlib, sys

def write_imports():
    main = getattr(sys.modules.get("__main__"), "__spec__", None)
    rooms = ("kernels", "pipeline", "stages")
    names = [getattr(m, "__file__", None) for n, m in list(sys.modules.items()) if n.split(".")[0] in rooms]
    out = pathlib.Path(os.environ["WATCHED"]) / f"{main.name if main else 'none'}-{os.getpid()}"
    out.write_text("\\n".join(name for name in names if name))

if "WATCHED" in os.environ:
    atexit.register(write_imports)
"""
ALL = {
    *("prepare", "sample", "invert", "cache", "relevance", "mapper", "mapper_wplus", "diffusion"),
    *("evaluate", "report"),
}
EDITS = {
    "edit_latent@tiny-deltaedit_g",
    "edit_latent@tiny-deltaedit_gp",
    "edit_latent@tiny-deltaedit_g_unmasked",
    "edit_latent@tiny-deltaedit_g_wplus",
    "edit_latent@tiny-clip_target",
    "edit_baseline@tiny-identity_editor",
    "edit_baseline@tiny-counterfactual",
    "edit_baseline@tiny-styleclip_gd",
    *(f"edit_diffusion@tiny-{name}" for name in ("deltaedit_d", "deltaedit_dm", "diffedit", "encode_decode", "sdedit")),
}


@dataclass(frozen=True)
class Repro:
    """A project after one undisturbed `dvc repro`: its folder, the output, and a folder of the stages' imports."""

    root: Path
    output: str
    watched: Path

    @property
    def data(self) -> Path:
        return self.root / "data/tiny"


def environment(**extra: str) -> dict[str, str]:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("DVC_", "DELTASPACE_ROOT"))}
    return {**kept, "PATH": path, "DVC_NO_ANALYTICS": "1", "DELTASPACE_WORKERS": "1", **extra}


def shell(root: Path, *command: str, **extra: str) -> str:
    """Output of a command, which must succeed."""
    done = subprocess.run(command, cwd=root, env=environment(**extra), capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}\n{done.stderr}"
    return done.stdout + done.stderr


def ran(output: str) -> set[str]:
    """Stages that `dvc repro` executed, by its output."""
    return set(re.findall(r"Running stage '([^']+)'", output))


def copied(source: Path, to: Path) -> Path:
    return Path(shutil.copytree(source, to, symlinks=True, ignore=shutil.ignore_patterns("__pycache__")))


def content(path: Path) -> dict[str, str]:
    """sha256 of a file, or of every file in a folder."""
    files = [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())
    return {file.relative_to(path.parent).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


@pytest.fixture(scope="module")
def repro(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Repro:
    folder = tmp_path_factory.mktemp("dag")
    root, watched, hooks = copied(tiny, folder / "project"), folder / "watched", folder / "hooks"
    watched.mkdir()
    hooks.mkdir()
    (hooks / "sitecustomize.py").write_text(WATCH)
    shell(root, "git", "init", "--quiet")
    shell(root, "git", "add", "--all")
    for key, value in (("user.name", "test"), ("user.email", "test@example.invalid")):
        shell(root, "git", "config", key, value)
    shell(root, "git", "commit", "--quiet", "--message", "tiny")
    output = shell(root, "dvc", "repro", WATCHED=str(watched), PYTHONPATH=str(hooks))
    return Repro(root, output, watched)


def test_one_command_runs_every_stage(repro: Repro) -> None:
    assert ran(repro.output) == {f"{stage}@tiny" for stage in ALL} | EDITS
    summary = json.loads((repro.root / "reports/tiny/summary.json").read_text())
    assert "deltaedit_g_reached" in summary
    assert (repro.root / "reports/tiny/index.html").stat().st_size > 1000
    assert (repro.root / "reports/tiny/grid.png").read_bytes().startswith(b"\x89PNG")


def test_reconstructions_are_measured_and_on_the_page(repro: Repro) -> None:
    found = json.loads((repro.root / "reports/tiny/metrics.json").read_text())
    page = html.unescape((repro.root / "reports/tiny/index.html").read_text())
    for title, path in columns.RECONSTRUCTIONS:
        row = functools.reduce(lambda part, name: part[name], path, found)
        assert row["psnr"]["value"] is not None and title in page


def test_a_second_repro_has_nothing_to_do(repro: Repro) -> None:
    assert "Data and pipelines are up to date" in shell(repro.root, "dvc", "repro")


def test_no_unfinished_work_remains(repro: Repro) -> None:
    assert not [path for path in (repro.root / ".cache").rglob("*") if path.is_file()]


def test_deps_of_a_stage_cover_its_imports(repro: Repro) -> None:
    entries = yaml.safe_load((repro.root / "dvc.yaml").read_text())["stages"]
    editors = yaml.safe_load((repro.root / "params.yaml").read_text())["editors"]
    seen: dict[str, set[str]] = {}
    for file in repro.watched.iterdir():
        stage = file.name.rpartition("-")[0].removeprefix("stages.")
        if stage in entries:
            seen.setdefault(stage, set()).update(file.read_text().splitlines())
    assert set(seen) == set(entries)
    for stage, files in seen.items():
        names = editors.get(stage.removeprefix("edit_"), [""])
        deps = [dep.replace("${item.editor}", name) for dep in entries[stage]["deps"] for name in names]
        loaded = {Path(file).resolve().relative_to(repro.root.resolve()).as_posix() for file in files}
        loaded = {name for name in loaded if has_code(repro.root / name)} - PLUMBING - REGISTRIES
        assert not sorted(name for name in loaded if not covered(name, deps)), f"{stage} imports what deps do not name"


def test_strength_0_is_the_inversion_with_its_detail(repro: Repro) -> None:
    nets = Networks(domains.load("tiny", repro.root), repro.root)
    rows = artefacts.read(repro.data / "edits/deltaedit_g", "edits", ["id", "image"], {"strength": 0.0})
    ids = tuple(rows["id"].tolist())
    codes = artefacts.read(nets.paths.reals, "reals", ["w_plus"], {"id": ids})["w_plus"]
    w_plus, detail = codes.unflatten(1, (nets.generator.num_ws, -1)), sources.inversions(nets, ids).detail
    assert detail is not None and len(detail) == len(ids) and detail.any()
    known = FeatureResidual.of(nets.generator, detail, s := nets.generator.styles(w_plus), w_plus)
    drawn = nets.generator.synthesis(s, w_plus, detail=known).clamp(-1, 1)
    unedited = sampling.decode_images(rows["image"])
    assert torch.allclose(unedited, drawn, atol=0.01)
    assert not torch.allclose(unedited, nets.generator(w_plus).clamp(-1, 1), atol=0.01)


def test_artefacts_have_no_paths_of_this_machine(repro: Repro) -> None:
    for stage in ("fakes", "codes", "reals", "details", "images"):
        for file in (repro.data / stage).iterdir():
            assert str(repro.root).encode() not in file.read_bytes()


def test_an_experiment_with_a_new_learning_rate_reruns_the_mapper_and_its_dependents(
    repro: Repro, tmp_path: Path
) -> None:
    root = copied(repro.root, tmp_path / "project")
    before = content(root / "data/tiny/edits/styleclip_gd")
    assert ran(shell(root, "dvc", "exp", "run", "--set-param", "mapper.lr=0.1")) == {
        "mapper@tiny",
        "mapper_wplus@tiny",
        *(edit for edit in EDITS if edit.startswith(("edit_latent", "edit_diffusion"))),
        "evaluate@tiny",
        "report@tiny",
    }
    assert content(root / "data/tiny/edits/styleclip_gd") == before
    assert "mapper.lr" in shell(root, "dvc", "params", "diff")
    assert list(json.loads(shell(root, "dvc", "metrics", "show", "--json"))[""]["data"]) == [
        "reports/tiny/summary.json"
    ]


def run_stage(root: Path, name: str, **extra: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", f"stages.{name}", "tiny"]
    return subprocess.Popen(command, cwd=root, env=environment(**extra), text=True, stderr=subprocess.PIPE)


@pytest.fixture
def ready(repro: Repro, tmp_path: Path) -> Path:
    """A copy of the project in which every stage has run."""
    return copied(repro.root, tmp_path / "project")


def finished(root: Path, stage: str) -> dict[str, Path]:
    """Marked pieces of a killed stage's work by name, and its checkpoint."""
    found: dict[str, Path] = {}
    for folder in (root / ".cache").glob(f"{stage}-tiny/*"):
        with suppress(OSError, ValueError):
            found |= {name: folder / name for name in json.loads((folder / "manifest.json").read_text())}
        if (folder / "checkpoint.pt").exists():
            found["checkpoint.pt"] = folder / "checkpoint.pt"
    return found


@pytest.mark.parametrize(
    ("stage", "piece", "outputs"),
    [
        ("cache", "codes/shard-00001.parquet", ("codes", "s_stats.safetensors")),
        ("relevance", "rows/shard-00000.safetensors", ("relevance.safetensors",)),
        ("mapper", "checkpoint.pt", ("mapper.safetensors", "curves/mapper.csv")),
        ("mapper_wplus", "checkpoint.pt", ("mapper_wplus.safetensors", "curves/mapper_wplus.csv")),
        ("diffusion", "checkpoint.pt", ("diffusion.safetensors", "curves/diffusion.csv")),
    ],
)
def test_a_killed_stage_resumes_and_gives_the_bytes_of_an_undisturbed_run(
    stage: str, piece: str, outputs: tuple[str, ...], repro: Repro, ready: Path
) -> None:
    for name in outputs:  # as DVC does before it runs a stage
        target = ready / "data/tiny" / name
        shutil.rmtree(target) if target.is_dir() else target.unlink()
    first = run_stage(ready, stage, DELTASPACE_WORKERS="2")  # which must not show in the bytes either
    deadline = time.monotonic() + 120
    while piece not in finished(ready, stage):
        assert first.poll() is None and time.monotonic() < deadline, f"{stage} ended before it could be killed"
        time.sleep(0.002)
    children = psutil.Process(first.pid).children(recursive=True)
    first.send_signal(signal.SIGKILL)
    first.communicate()
    psutil.wait_procs(children, timeout=20)
    assert not [child for child in children if child.is_running()], "workers outlived their stage"
    assert not any((ready / "data/tiny" / name).exists() for name in outputs)
    kept = {name: path.stat().st_mtime_ns for name, path in finished(ready, stage).items()}

    second = run_stage(ready, stage)
    assert second.wait(timeout=240) == 0, second.communicate()[1]
    for name in outputs:
        assert content(ready / "data/tiny" / name) == content(repro.data / name)
    if stage == "cache":
        published = {name: (ready / "data/tiny" / name).stat().st_mtime_ns for name in kept}
        assert published == kept, "a finished shard was made again"


def test_edits_do_not_depend_on_the_number_of_processes(ready: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_edit, "BLOCK", 2)
    monkeypatch.setenv("DELTASPACE_TRACKING", "0")
    monkeypatch.setenv("DELTASPACE_ROOT", str(ready))
    edits = ready / "data/tiny/edits/deltaedit_gp"

    def edited(processes: int) -> pl.DataFrame:
        monkeypatch.setenv("DELTASPACE_WORKERS", str(processes))
        shutil.rmtree(edits)
        _edit.edit(Stage("edit_latent", ready, domains.load("tiny", ready), "deltaedit_gp"))
        assert len(list(edits.iterdir())) > 1
        return artefacts.table(edits).select("id", "prompt", "image", "mask").sort("prompt", "id")

    one, several = edited(1), edited(2)
    assert one["mask"].null_count() < len(one) and one.equals(several)


def test_diffusion_without_steps_copies_the_shipped_file(ready: Path) -> None:
    params = yaml.safe_load((ready / "params.yaml").read_text())
    params["diffusion"]["steps"] = 0
    (ready / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
    stage = run_stage(ready, "diffusion")
    assert stage.wait(timeout=120) == 0, stage.communicate()[1]
    shipped = ready / "data/pretrained/tiny/denoiser.safetensors"
    assert (ready / "data/tiny/diffusion.safetensors").read_bytes() == shipped.read_bytes()


def test_without_identity_and_oracle_the_page_names_the_missing_files_beside_other_metrics(ready: Path) -> None:
    pretrained = ready / "data/pretrained/tiny"
    for name in ("identity", "oracle"):
        (pretrained / f"{name}.safetensors").unlink()
    shell(ready, "dvc", "add", str(pretrained / "generator.safetensors"))  # as owners of a generator do
    assert ran(shell(ready, "dvc", "repro")) == {"evaluate@tiny", "report@tiny"}
    row = json.loads((ready / "reports/tiny/metrics.json").read_text())["editors"]["deltaedit_g"]
    note = "not computed: weights missing at data/pretrained/tiny/{}.safetensors"
    assert row["identity"] == {"value": None, "low": None, "high": None, "note": note.format("identity")}
    assert row["reached"]["note"] == note.format("oracle") and row["counterfactual_gain"]["value"] is not None
    page = (ready / "reports/tiny/index.html").read_text()
    assert note.format("identity") in page and note.format("oracle") in page
    assert "Data and pipelines are up to date" in shell(ready, "dvc", "repro")


def test_without_a_renderer_editors_of_rendered_images_write_no_edits_and_evaluate_runs(ready: Path) -> None:
    domain = yaml.safe_load((ready / "domains/tiny.yaml").read_text())
    (ready / "domains/tiny.yaml").write_text(yaml.safe_dump({**domain, "renderer": None}))
    shutil.rmtree(ready / "data/tiny/edits/counterfactual")
    assert "counterfactual: no edits" in shell(
        ready, sys.executable, "-m", "stages.edit_baseline", "tiny", "counterfactual"
    )
    assert artefacts.read(ready / "data/tiny/edits/counterfactual", "edits", ["id"])["id"].tolist() == []
    shell(ready, sys.executable, "-m", "stages.evaluate", "tiny")
    found = json.loads((ready / "reports/tiny/metrics.json").read_text())["editors"]
    assert "counterfactual" not in found and "deltaedit_g" in found


def test_bad_input_is_one_line_and_exit_code_2(ready: Path) -> None:
    params = yaml.safe_load((ready / "params.yaml").read_text())
    params["mapper"]["lr"] = "fast"
    (ready / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
    stage = run_stage(ready, "mapper")
    assert stage.wait(timeout=120) == 2
    message = stage.communicate()[1].strip()
    assert "mapper.lr" in message and len(message.splitlines()) == 1
