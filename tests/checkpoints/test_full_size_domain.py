"""The domain `ffhq` as it is here, with random weights of the published sizes: every stage, at toy scale."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import arcface_files as files
import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from test_full_size import WIDTHS, filled
from tiny_project import ROOT

from pipeline import denoiser_training
from pipeline.models import clip, stylegan2, unet
from pipeline.storage import weights

pytestmark = pytest.mark.slow
VIT_B_32: dict[str, Any] = {
    "embed_dim": 512,
    "vision": {"image_size": 224, "layers": 12, "width": 768, "patch_size": 32},
    "text": {"context_length": 77, "width": 512, "heads": 8, "layers": 12},
    "quick_gelu": True,
}
TOY = {
    "domains": ["ffhq"],
    "editors": {
        "latent": ["deltaedit_g"],
        "baseline": ["identity_editor"],
        "diffusion": ["deltaedit_d"],
    },
    "prepare": {"train": 4, "val": 2, "test": 2},
    "sample": {"count": 6},
    "invert": {"batch": 8, "refine": 1},
    "cache": {"batch": 8},
    "relevance": {"images": 1, "layers": [15, 16]},
    "mapper": {"steps": 3, "batch": 2},
    "diffusion": {"init": "random", "steps": 1, "batch": 1},
    "edit_diffusion": {
        "deltaedit_d": {
            **{"strength": 1.0, "threshold": 0.1, "top_share": None, "max_sigma": None, "delta_ridge": None},
            **{"steps": 1, "solver": "ddim", "guidance": 1.0},
        }
    },
    "evaluate": {"repeats": 10, "batch": 1},
}
STAGES = (
    *("prepare", "sample", "invert", "cache", "relevance", "mapper", "mapper_wplus", "diffusion"),
    *("edit_latent", "edit_baseline", "edit_diffusion", "evaluate", "report"),
)
EDITORS = {"edit_latent": ["deltaedit_g"], "edit_baseline": ["identity_editor"], "edit_diffusion": ["deltaedit_d"]}


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ffhq.yaml, two prompts left, a folder of pictures, and the networks: 1.5 GB."""
    root = tmp_path_factory.mktemp("ffhq") / "project"
    (root / "domains").mkdir(parents=True)
    domain = yaml.safe_load((ROOT / "domains/ffhq.yaml").read_text())
    domain["prompts"] = domain["prompts"][:2]
    (root / "domains/ffhq.yaml").write_text(yaml.safe_dump(domain, sort_keys=False))
    for name in filter(lambda name: name.endswith(".txt"), os.listdir(ROOT / "domains")):
        shutil.copy(ROOT / "domains" / name, root / "domains" / name)
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    for section, values in TOY.items():
        params[section] = {**params[section], **values} if isinstance(values, dict) else values
    params["prepare"]["source"] = "photographs"
    params["prepare"]["test_start"] = 4
    (root / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
    shutil.copy(ROOT / "dvc.yaml", root)
    for room in ("kernels", "pipeline", "pretrain", "stages"):  # what dvc.yaml's deps name
        shutil.copytree(ROOT / room, root / room, ignore=shutil.ignore_patterns("__pycache__"))
    (root / "photographs").mkdir()
    rng = np.random.default_rng(0)
    for number in range(6):
        small = Image.fromarray(rng.integers(0, 255, (8, 8, 3), dtype=np.uint8))
        small.resize((512, 512)).save(root / f"photographs/{number}.png")
    torch.manual_seed(0)
    made = stylegan2.build({"size": 1024, "style_dim": 512, "widths": WIDTHS})
    e4e = files.checkpoint(filled(files.encoder_shapes(18)), made.state_dict(), torch.zeros(18, 512))
    file = files.saved(root / "e4e_ffhq_encode.pt", e4e)
    command(root, "deltaspace.cli.app", "import", "encoder", str(file), "--domain", "ffhq")  # and the generator in it
    file.unlink()
    network = clip.Clip(VIT_B_32)
    weights.save(root / "data/pretrained/ffhq/clip.safetensors", network.state_dict(), {"model": VIT_B_32})
    plan = domain["defaults"]["pretrain"]["denoiser"]["model"]
    untrained = unet.Denoiser(**plan, **denoiser_training.network_sizes(made))
    denoiser_training.save(
        root / "data/pretrained/ffhq/denoiser.safetensors", untrained
    )  # DVC wants the file, whatever init says
    return root


def command(root: Path, module: str, *words: str) -> str:
    environment = {**os.environ, "DELTASPACE_ROOT": str(root)}
    done = subprocess.run(
        [sys.executable, "-m", module, *words], capture_output=True, text=True, cwd=ROOT, env=environment
    )
    assert done.returncode == 0, f"{module}: {done.stderr[-2000:]}"
    return done.stdout + done.stderr


def test_every_stage_runs_on_networks_of_the_published_sizes(project: Path) -> None:
    for stage in STAGES:
        command(project, f"stages.{stage}", "ffhq", *EDITORS.get(stage, ()))
    found = json.loads((project / "reports/ffhq/metrics.json").read_text())
    assert set(found["editors"]) >= {"deltaedit_g", "deltaedit_d", "identity_editor"}
    matrix = weights.load(project / "data/ffhq/relevance.safetensors")[0]["relevance"]
    layout = stylegan2.build({"size": 1024, "style_dim": 512, "widths": WIDTHS}).layout
    tried = slice(layout.offsets[15], layout.size)
    assert matrix.shape == (6048, 512) and not matrix[: tried.start].any()
    torch.testing.assert_close(matrix[tried].norm(dim=1), torch.ones(96), atol=0.01, rtol=0)
    assert weights.load(project / "data/ffhq/mapper.safetensors")[1]["model"]["clip_dim"] == 512
    assert (project / "reports/ffhq/index.html").stat().st_size > 10_000
