"""ViT-B/32 at its full size, 151 million numbers: what importing and using it costs in memory."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import clip_files
import pytest
import tiny_project
from safetensors.torch import save_file

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[2]
MEASURE = """
import sys
from pathlib import Path

def kilobytes(name):
    return int(next(line for line in open("/proc/self/status") if line.startswith(name)).split()[1])

def costs(work, file):
    # the peak of resident memory over what was there before, in sizes of the file
    before = kilobytes("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    work()
    return (kilobytes("VmHWM") - before) * 1024 / Path(file).stat().st_size

import torch
from pipeline.checkpoints import clip
from pipeline.models.clip import Clip
from pipeline.networks import Networks
from pipeline.storage import domains
from deltaspace.cli import app

file, *options = sys.argv[1:]
numbers = clip.named("ViT-B-32-quickgelu")
torch.nn.functional.conv2d(torch.ones(1, 3, 64, 64), torch.ones(4, 3, 3, 3))
vision, text = dict(image_size=32, layers=1, width=64, patch_size=32), dict(width=64, heads=1, layers=1)
Clip(dict(embed_dim=8, vision=vision, text=text))
root = Path.cwd()

def take_in():
    assert app.run(["import", "clip", file, "--domain", "tiny", *options]) == 0

imported = costs(take_in, file)

def use():
    network = Networks(domains.load("tiny", root), root).clip
    with torch.no_grad():
        assert network.embed_images(torch.zeros(1, 3, 64, 64)).shape == (1, 512)
        assert network.embed_texts(["a face"]).shape == (1, 512)
    assert sum(p.numel() for p in network.parameters()) == 151_277_313

used = costs(use, "data/pretrained/tiny/clip.safetensors")
print(f"imported {imported:.3f} used {used:.3f}")
"""


@pytest.mark.parametrize("kind", ["archive", "safetensors"])
def test_importing_and_using_a_full_size_clip_takes_little_more_memory_than_its_file(tmp_path: Path, kind: str) -> None:
    root = tiny_project.make(tmp_path / "project")
    (root / "data/pretrained/tiny/clip.safetensors").unlink()
    sizes = {"vision": 768, "text": 512, "patch": 32, "grid": 7, "vision_layers": 12, "text_layers": 12}
    state, path, options = clip_files.openai(embed=512, **sizes), tmp_path / "clip", []
    if kind == "archive":
        clip_files.archive(path, state)
    else:
        save_file({name: value.contiguous() for name, value in clip_files.hugging_face(state).items()}, path)
        options = ["--model", "ViT-B-32-quickgelu"]
    del state
    environment = {**os.environ, "DELTASPACE_ROOT": str(root), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", MEASURE, str(path), *options]
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    _, imported, _, used = done.stdout.splitlines()[-1].split()
    print(f"{kind}: {path.stat().st_size:,} bytes, import {imported}, use {used} of the file")
    assert float(imported) <= 1.2 and float(used) <= 1.2
