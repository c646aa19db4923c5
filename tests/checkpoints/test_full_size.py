"""The published files at their full size: read, written and run in little more memory than they take on the disk."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path

import arcface_files as files
import pytest
import tiny_project
import torch
from torch import Tensor

from pipeline.models import stylegan2

pytestmark = pytest.mark.slow
MOST = 1.2  # times the file
WIDTHS = {"4": 512, "8": 512, "16": 512, "32": 512, "64": 512, "128": 256, "256": 128, "512": 64, "1024": 32}
DOMAIN = "resolution: 1024\nneutral: face\n"
MEASURED = """
import sys
from pathlib import Path
import torch
from pipeline.checkpoints import encoders, generators
from pipeline.networks import Networks
from pipeline.storage import domains, weights
from deltaspace.cli import app

def memory(kind):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(kind)) * 1024

root, file = Path(sys.argv[1]), Path(sys.argv[2])
nets = Networks(domains.load("big", root), root)
{first}
Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
start = memory("VmRSS")
{then}
print((memory("VmHWM") - start) / file.stat().st_size)
"""
READING = {  # the file of each network -> what is measured
    "encoder": "imported = encoders.style_encoder(file, 1024)",
    "generator": "imported = generators.load(file)",
    "identity": "imported = encoders.face_network(file)",
}


def filled(shapes: files.Shapes) -> dict[str, Tensor]:
    """Numbers that need not be drawn: waves for filters, ones for what scales."""
    state, wave = {}, torch.linspace(-1, 1, 1009)
    for key, shape in shapes.items():
        count = math.prod(shape)
        if key.endswith("num_batches_tracked"):
            state[key] = torch.tensor(1)
        elif len(shape) == 1:
            state[key] = torch.full(shape, 1.0 if key.endswith(("weight", "running_var")) else 0.0)
        else:
            state[key] = wave.repeat(count // 1009 + 1)[:count].reshape(shape) / math.sqrt(count / shape[0])
    return state


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tiny_project.make(tmp_path_factory.mktemp("full") / "project")
    (root / "domains/big.yaml").write_text(DOMAIN)
    return root


@pytest.fixture(scope="module")
def published(project: Path) -> dict[str, Path]:
    """e4e_ffhq_encode.pt, a slim stylegan2-ffhq-config-f.pt and model_ir_se50.pth as they are laid out: 1.5 GB."""
    torch.manual_seed(0)
    decoder = stylegan2.build({"size": 1024, "style_dim": 512, "widths": WIDTHS}).state_dict()
    e4e = files.checkpoint(filled(files.encoder_shapes(18)), decoder, torch.zeros(18, 512), dataset_type="ffhq_encode")
    slim = {"g_ema": decoder, "latent_avg": torch.zeros(512)}
    return {
        "encoder": files.saved(project / "e4e_ffhq_encode.pt", e4e),
        "generator": files.saved(project / "stylegan2.pt", slim),
        "identity": files.saved(project / "model_ir_se50.pth", filled(files.face_shapes())),
    }


def peak(project: Path, file: Path, first: str, then: str) -> float:
    """The most memory that `then` takes on top of what is there after `first`, in sizes of the file."""
    script = MEASURED.format(first=first, then=then)
    done = subprocess.run(
        [sys.executable, "-c", script, project, file], capture_output=True, text=True, cwd=tiny_project.ROOT
    )
    assert done.returncode == 0, done.stderr
    print(f"{file.name}: {done.stdout.splitlines()[-1]} sizes of the file for {then}")
    return float(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def imported(project: Path, published: dict[str, Path]) -> dict[str, float]:
    """The domain `big` with what the e4e file and the face network hold; the peak of each command."""
    first = f"import os; os.environ['DELTASPACE_ROOT'] = {str(project)!r}"
    commands = {name: ["import", name, str(published[name]), "--domain", "big"] for name in ("encoder", "identity")}
    return {
        name: peak(project, published[name], first, f"assert app.run({words}) == 0") for name, words in commands.items()
    }


@pytest.mark.parametrize("name", ["encoder", "generator", "identity"])
def test_a_published_file_is_read_in_little_more_memory_than_it_takes(
    project: Path, published: dict[str, Path], name: str
) -> None:
    sizes = {
        "encoder": 1_201_649_680,
        "generator": 132_700_000,
        "identity": 175_367_323,
    }  # facts of the published files
    assert abs(published[name].stat().st_size / sizes[name] - 1) < 0.01
    assert peak(project, published[name], "", READING[name]) <= MOST


def test_importing_takes_little_more_memory_than_the_file(
    imported: dict[str, float],
) -> None:
    assert max(imported.values()) <= MOST


@pytest.mark.parametrize("name", ["encoder", "generator", "identity"])
def test_an_imported_network_is_loaded_in_little_more_memory_than_its_file_takes(
    project: Path, imported: dict[str, float], name: str
) -> None:
    touched = f"assert all(p.max() == p.max() for p in nets.{name}.state_dict().values())"
    path = project / f"data/pretrained/big/{name}.safetensors"
    assert peak(project, path, "from pipeline.models import classifiers, e4e, stylegan2", touched) <= MOST


def test_the_imported_networks_give_the_numbers_of_the_published_arithmetic(
    project: Path, imported: dict[str, float]
) -> None:
    from pipeline.networks import Networks
    from pipeline.storage import domains

    nets = Networks(domains.load("big", project), project)
    images = torch.rand(1, 3, 1024, 1024, generator=torch.Generator().manual_seed(0)) * 2 - 1
    boxes = images.unfold(2, 4, 4).unfold(3, 4, 4).mean(dim=(4, 5))
    with torch.no_grad():
        expected = files.Plain(filled(files.encoder_shapes(18))).codes(boxes, 18, torch.zeros(18, 512))
        assert expected.std() > 0
        assert (nets.encoder(images) - expected).abs().max() <= 1e-3 * expected.abs().max()
        face = files.Plain(filled(files.face_shapes())).face(boxes)
        assert (nets.identity(images) - face).abs().max() <= 1e-3
