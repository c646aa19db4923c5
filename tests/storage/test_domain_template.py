"""The file of a new domain: its plans build networks that fit together, at every size."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import foreign_files as files
import pytest
import tiny_project
import torch
import yaml
from PIL import Image

from deltaspace.cli import app
from pipeline import denoiser_training
from pipeline.models import stylegan2, unet
from pipeline.models.e4e import Encoder
from pipeline.storage import dataset, domain_template, domains, params
from pretrain.common import Training
from pretrain.discriminator import Discriminator
from pretrain.generator import halved

SPLIT = (3, 7)


def built(plans: dict[str, Any], size: int, style_dim: int) -> None:
    """The plans' networks exist for a generator and read what it needs."""
    layout = stylegan2.build(
        {"size": size, "style_dim": style_dim, "n_mlp": 1, "split": SPLIT, "widths": {2**k: 4 for k in range(2, 12)}}
    )
    if size >= 16:
        network = Encoder(**plans["encoder"]["model"], split=SPLIT)
        assert (network.rows, network.latent_avg.shape[1]) == (layout.num_ws, style_dim)
    unet.Denoiser(**plans["denoiser"]["model"], **denoiser_training.network_sizes(layout))


@pytest.mark.parametrize("size", [8, 16, 32, 64, 128, 256, 512, 1024])
def test_every_imported_generator_gets_an_encoder_and_a_denoiser_that_fit(size: int) -> None:
    with torch.device("meta"):
        built(domain_template.plans_for({"size": size, "style_dim": 48}), size, 48)


@pytest.mark.parametrize("size", [16, 32, 64, 128, 256, 512, 1024])
def test_networks_trained_from_scratch_fit_together(size: int) -> None:
    plans = domain_template.plans_from_scratch(size)
    model = {**plans["generator"]["model"], "split": list(SPLIT)}
    with torch.device("meta"):
        for numbers in (model, halved(model)):
            stylegan2.build(numbers)
            Discriminator(numbers["size"], numbers["discriminator"])
        built(plans, size, model["style_dim"])


def test_an_encoder_sees_large_images_reduced() -> None:
    torch.manual_seed(0)
    network = Encoder(16, (6, 8, 12, 16), rows=6, style_dim=12).eval()
    large = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(network(large), network(torch.nn.functional.avg_pool2d(large, 4)))
        assert [m.shape[-1] for m in network.features(large)] == [8, 4, 2]


@pytest.mark.parametrize("count", [1, 2, 9, 30, 2000, 100_000])
def test_a_folder_is_split_into_rows_that_prepare_accepts(count: int) -> None:
    train, val, test = domain_template.split_counts(count)
    sizes = dataset.PrepareParams(None, train, val, test, 58_000, 512)
    assert 0 < len(dataset.row_ids(sizes)) <= count
    assert count != 2000 or (train, val, test) == (1800, 90, 200)


# ---------------------------------------------------------------- the commands


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    root = tiny_project.make(tmp_path / "project")
    content = yaml.safe_load((root / "params.yaml").read_text())
    content["prepare"] = {"source": None, "train": None, "val": None, "test": None, "test_start": 58_000, "shard": 8}
    (root / "params.yaml").write_text(yaml.safe_dump(content))
    shutil.copy(tiny_project.ROOT / "domains/imagenet.txt", root / "domains")
    monkeypatch.setenv("DELTASPACE_ROOT", str(root))
    monkeypatch.setenv("DELTASPACE_WORKERS", "1")
    return root


def photos(folder: Path, count: int = 20) -> Path:
    folder.mkdir()
    for place in range(count):
        Image.new("RGB", (40, 50), (place * 5, 100, 255 - place * 5)).save(folder / f"{place}.png")
    return folder


def test_a_folder_of_pictures_becomes_a_domain_whose_networks_can_be_trained(
    project: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = photos(tmp_path / 'my "cäts": #1')
    command = ["new-domain", "my_cats", "--pictures", str(folder), "--resolution", "16", "--neutral", 'cat "x"']
    assert app.run(command) == 0
    assert "20 images, 18 of them to train on" in capsys.readouterr().out
    domain = domains.load("my_cats", project)
    assert (domain.resolution, domain.neutral, domain.renderer) == (16, 'cat "x"', None)
    sizes = params.section(dataset.PrepareParams, project, "prepare", domain=domain)
    assert sizes.source == str(folder) and (sizes.train, sizes.val, sizes.test) == (18, 0, 2)
    assert len(Training(domain, project, "generator").training_images(0)) == 18
    for name in ("generator", "encoder", "denoiser"):
        assert Training(domain, project, name).plan.images > 0
    assert app.run(["pretrain", "my_cats", "generator", "--minutes", "0.00001"]) == 0
    assert (project / "data/pretraining/my_cats/generator-half.pt").exists()


def test_the_source_inside_the_project_is_relative_to_it(project: Path) -> None:
    photos(project / "cats")
    assert app.run(["new-domain", "cats", "--pictures", str(project / "cats")]) == 0
    assert domains.load("cats", project).defaults["prepare"]["source"] == "cats"


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"name": "tiny"}, "domains/tiny.yaml exists already"),
        ({"name": "../up"}, "is no name for a domain"),
        ({"name": "pretrained"}, "is no name for a domain"),
        ({"--resolution": "48"}, "--resolution 48 is no size"),
        ({"--resolution": "8"}, "--resolution 8 is no size"),
        ({"--pictures": "nowhere"}, "is no folder, .zip or .parquet file"),
    ],
)
def test_bad_arguments_are_one_line_and_write_no_file(
    changes: dict[str, str], told: str, project: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photos(tmp_path / "cats")
    words = {"name": "cats", "--pictures": str(tmp_path / "cats"), "--resolution": "16", **changes}
    name = words.pop("name")
    before = sorted((project / "domains").iterdir())
    assert app.run(["new-domain", name, *(part for pair in words.items() for part in pair)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert told in line
    assert sorted((project / "domains").iterdir()) == before


def test_an_encoder_can_be_trained_right_after_an_import(
    project: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save(files.generator().state_dict(), tmp_path / "g.pt")
    assert app.run(["import", "generator", str(tmp_path / "g.pt"), "--domain", "mine"]) == 0
    path = project / "domains/mine.yaml"
    content = yaml.safe_load(path.read_text())
    content["defaults"]["prepare"] |= {"source": str(photos(tmp_path / "cats")), "train": 18, "val": 4, "test": 2}
    path.write_text(yaml.safe_dump(content))
    for part in ("encoder", "denoiser"):
        assert app.run(["pretrain", "mine", part, "--images", "32"]) == 0
        assert (project / f"data/pretrained/mine/{part}.safetensors").exists()
    assert "compared by features of random weights" in capsys.readouterr().out
