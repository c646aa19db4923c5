"""The tiny world: a whole project, code included, whose domain has small random networks, all sizes different."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

os.environ.update(
    DELTASPACE_TRACKING="0", DVC_NO_ANALYTICS="1", ITERATIVE_DO_NOT_TRACK="1", HF_HUB_OFFLINE="1", OMP_NUM_THREADS="1"
)
ROOT = Path(__file__).resolve().parent.parent
os.environ.setdefault("DELTASPACE_KERNELS_CACHE", str(ROOT / ".cache" / "kernels"))  # copies of the project share it
CODE = ("deltaspace", "kernels", "pipeline", "pretrain", "stages")
LONG = ("pretrain", "stages/test_dag.py")  # train networks or run the workflow: left out by `make test-quick`
SET_UP = ("dvc.yaml", ".dvcignore", ".gitignore", ".dvc/config", ".dvc/.gitignore")
PROMPTS = (
    ("face with red hair", "hair_color", "red"),
    ("face with sunglasses", "glasses", "sunglasses"),
    ("happy face", "expression", "smile"),
)
SMALL = {  # what the tiny world asks for instead of params.yaml
    "domains": ["tiny"],
    "prepare": {"train": 20, "val": 6, "test": 5, "shard": 8},
    "sample": {"count": 100, "shard": 16},
    "relevance": {"images": 3},
    "mapper": {"steps": 600, "batch": 16, "lr": 0.5},
    "diffusion": {"steps": 120, "batch": 4},
    "edit_diffusion": {"deltaedit_d": {"steps": 4, "solver": "ddim"}},
    "edit_baseline": {
        "stylemc": {"images": 16},
        "styleclip_op": {"steps": 3},
        "styleclip_lm": {"steps": 3},
    },
    "evaluate": {"repeats": 40},
}


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests of the LONG files and folders."""
    tests = ROOT / "tests"
    for item in items:
        if any((tests / name) in (item.path, *item.path.parents) for name in LONG):
            item.add_marker(pytest.mark.long)


@pytest.fixture
def bfloat16_pays(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a processor that multiplies in it, whatever this one does."""
    from pipeline.runtime import precision

    monkeypatch.setattr(precision, "halves", lambda kind: True)


@pytest.fixture
def run(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """The command line in the fixture `project` of a test's file: arguments -> exit code, stdout, stderr."""
    from deltaspace.cli import app

    monkeypatch.setenv("DELTASPACE_ROOT", str(project))

    def run(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        code = app.run([str(argument) for argument in arguments])
        return code, *capsys.readouterr()

    return run


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The root of the tiny project; nothing has run in it. Tests that write take a copy."""
    root = tmp_path_factory.mktemp("tiny") / "project"
    for room in CODE:
        shutil.copytree(ROOT / room, root / room, ignore=shutil.ignore_patterns("__pycache__"))
    for name in SET_UP:
        (root / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, root / name)
    _networks(root)
    params = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    (root / "params.yaml").write_text(yaml.safe_dump(_laid_over(params, SMALL), sort_keys=False), encoding="utf-8")
    return root


def _laid_over(below: Any, above: Any) -> Any:
    """`above` where it says something, `below` elsewhere."""
    if not isinstance(below, dict) or not isinstance(above, dict):
        return above
    return {**below, **{key: _laid_over(below.get(key), value) for key, value in above.items()}}


def _networks(root: Path) -> None:
    """domains/tiny.yaml and the weights of its networks, drawn at random, always the same."""
    import tiny_project
    import torch

    from pipeline import denoiser_training, portraits
    from pipeline.models import classifiers, unet
    from pipeline.networks import Networks
    from pipeline.storage import weights
    from pipeline.storage.domains import load

    tiny_project.make(root)
    domain = {
        **tiny_project.DOMAIN,
        "clip_normalise": True,
        "words": None,
        "prompts": [{"text": text, "attribute": name, "value": value} for text, name, value in PROMPTS],
        "defaults": {
            **{stage: {} for stage in ("prepare", "sample", "relevance", "mapper", "diffusion")},
            **{stage: {"batch": 8} for stage in ("cache", "evaluate")},
            "invert": {"batch": 8, "detail": 8},
            "pretrain": {"denoiser": {"model": {"channels": 8, "mult": [1, 2], "attention": []}}},
        },
    }
    (root / "domains/tiny.yaml").write_text(yaml.safe_dump(domain), encoding="utf-8")
    folder = root / "data/pretrained/tiny"
    for name in ("mapper", "relevance"):  # the DAG makes its own
        (folder / f"{name}.safetensors").unlink()
    torch.manual_seed(8)
    layout = Networks(load("tiny", root), root).generator.layout
    attributes = {name: list(values) for name, values in portraits.ATTRIBUTES.items()}
    oracle, identity = {"widths": [8, 12], "attributes": attributes}, {"widths": [8, 12], "dim": 9}
    weights.save(folder / "oracle.safetensors", classifiers.Oracle(**oracle).state_dict(), {"model": oracle})  # type: ignore[arg-type]
    weights.save(folder / "identity.safetensors", classifiers.IdentityNet(**identity).state_dict(), {"model": identity})  # type: ignore[arg-type]
    small = {"channels": 8, "mult": (1, 2), "attention": (), "time_dim": 16, "style_dim": 12, "boundaries": (4, 8)}
    network = unet.Denoiser(tiny_project.R, layout.level_sizes, **small)  # type: ignore[arg-type]
    denoiser_training.save(folder / "denoiser.safetensors", network)
