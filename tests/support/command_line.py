"""The command line on the tiny project: what it is given, and what came of it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import tiny_project
from PIL import Image

from deltaspace.cli import app

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
    command = [sys.executable, "-m", "deltaspace.cli.app", *arguments]
    environment = {**os.environ, "DELTASPACE_ROOT": str(project), "PYTHONPATH": str(tiny_project.ROOT)}
    environment |= options.pop("env", {})  # type: ignore[operator]
    return subprocess.run(command, capture_output=True, env=environment, **options)  # type: ignore[call-overload]
