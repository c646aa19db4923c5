"""The wheel outside a clone: what it installs, and an edit in an empty folder."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from tiny_project import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.weights]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the content of the wheel, built from a copy of the clone."""
    clone = tmp_path_factory.mktemp("clone")
    for name in ("deltaspace", "domains", "kernels", "pipeline", "pretrain", "stages", "data/pretrained/portraits"):
        shutil.copytree(ROOT / name, clone / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.py", "pyproject.toml", "params.yaml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, clone)
    subprocess.run([sys.executable, "setup.py", "--quiet", "bdist_wheel"], cwd=clone, check=True)
    (wheel,) = (clone / "dist").glob("*.whl")
    folder = tmp_path_factory.mktemp("site")
    zipfile.ZipFile(wheel).extractall(folder)
    return folder


def test_the_only_package_at_the_top_is_deltaspace(site: Path) -> None:
    (info,) = site.glob("*.dist-info")
    assert {path.name for path in site.iterdir()} == {"deltaspace", info.name}
    assert (info / "top_level.txt").read_text().split() == ["deltaspace"]


def test_an_edit_in_an_empty_folder_uses_the_shipped_domain_and_writes_there(site: Path, tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "DELTASPACE_ROOT"}
    before = {path for path in site.rglob("*") if path.suffix != ".pyc" and path.name != "__pycache__"}
    done = subprocess.run(
        [sys.executable, "-m", "deltaspace.cli.app", "edit", "--portrait", "58007", "face with red hair"],
        cwd=tmp_path,
        env={**environment, "PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "edited/portrait-58007-face-with-red-hair.png").is_file()
    assert {path for path in site.rglob("*") if path.suffix != ".pyc" and path.name != "__pycache__"} == before


def test_a_command_that_writes_weights_asks_for_a_project(site: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "deltaspace.cli.app", "fetch", "ffhq"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2 and "no project here" in done.stderr
