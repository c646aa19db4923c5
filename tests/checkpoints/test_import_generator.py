"""Published generators: each layout gives the images of its own arithmetic; other files are refused by name."""

from __future__ import annotations

import argparse
import math
import re
import shutil
from pathlib import Path

import foreign_files as files
import numpy as np
import pytest
import tiny_project
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from deltaspace.cli import app
from pipeline.checkpoints import generators
from pipeline.models.stylegan2 import Generator
from pipeline.networks import Networks
from pipeline.runtime.errors import InputError
from pipeline.storage import domains, weights


@pytest.fixture(scope="module")
def original() -> Generator:
    return files.generator()


def saved(path: Path, content: object, legacy: bool = False) -> Path:
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    return path


def same(imported: generators.Imported, original: Generator) -> None:
    assert imported.model == files.MODEL
    expected = original.state_dict() | {"w_mean": original.w_mean}
    found = imported.tensors()
    assert set(found) == set(expected)
    assert [name for name, value in expected.items() if not torch.allclose(found[name], value, atol=1e-6)] == []


# ---------------------------------------------------------------- rosinality


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("kind", ["g_ema", "bare", "e4e"])
def test_rosinalitys_files_give_the_same_tensors(tmp_path: Path, original: Generator, kind: str, legacy: bool) -> None:
    state, mean = original.state_dict(), original.w_mean
    content: object = {
        "g_ema": {"g": {"x": torch.ones(3)}, "g_ema": state, "latent_avg": mean},
        "bare": {**state, "latent_avg": mean},
        "e4e": {
            "state_dict": {f"decoder.{k}": v for k, v in state.items()} | {"encoder.x": torch.ones(2)},
            "latent_avg": mean.expand(8, -1),
            "opts": argparse.Namespace(device="cuda", start_from_latent_avg=True),
        },
    }[kind]
    same(generators.load(saved(tmp_path / "g.pt", content, legacy)), original)


def test_a_file_of_our_own_gives_itself(tmp_path: Path, original: Generator) -> None:
    path = tmp_path / "generator.safetensors"
    weights.save(path, {**original.state_dict(), "w_mean": original.w_mean}, {}, half=False)
    imported = generators.load(path)
    assert imported.notes == []
    same(imported, original)


def test_what_is_missing_is_drawn_from_the_seed_and_said(tmp_path: Path, original: Generator) -> None:
    state = {k: v for k, v in original.state_dict().items() if "noises" not in k and "kernel" not in k}
    path = saved(tmp_path / "netG.pth", state)
    first, again, other = (generators.load(path, seed=seed) for seed in (0, 0, 1))
    assert any("7 noise images were missing" in note for note in first.notes)
    assert any("mean w was missing" in note for note in first.notes)
    assert torch.equal(first.tensors()["noises.noise_3"], again.tensors()["noises.noise_3"])
    assert not torch.equal(first.tensors()["noises.noise_3"], other.tensors()["noises.noise_3"])
    with torch.no_grad():
        drawn = original.mapping(torch.randn(20_000, files.D, generator=torch.Generator().manual_seed(9)))
    assert torch.allclose(first.generator.w_mean, drawn.mean(dim=0), atol=0.1)


# ---------------------------------------------------------------- NVIDIA


def ada_pictures(module: files.Module, z: Tensor) -> Tensor:
    """stylegan2-ada-pytorch's arithmetic with its own tensors, written down a second time: z -> images."""
    parts = module.state["_modules"]

    def tensors(layer: files.Module) -> dict[str, Tensor]:
        return {k: v.detach().double() for k, v in {**layer.state["_parameters"], **layer.state["_buffers"]}.items()}

    x = z.double()
    x = x / (x.square().mean(dim=1, keepdim=True) + 1e-8).sqrt()
    for layer in parts["mapping"].state["_modules"].values():
        t = tensors(layer)
        x = F.leaky_relu(x @ (t["weight"] * 0.01 / math.sqrt(x.shape[1])).T + t["bias"] * 0.01, 0.2) * math.sqrt(2)
    w = x

    def styles(layer: files.Module) -> Tensor:
        t = tensors(layer.state["_modules"]["affine"])
        return w @ (t["weight"] / math.sqrt(w.shape[1])).T + t["bias"]

    taps = torch.tensor([1.0, 3, 3, 1], dtype=torch.float64)
    blur = torch.outer(taps, taps)[None, None] / 64

    def filtered(x: Tensor) -> Tensor:
        return F.conv2d(x.flatten(0, 1)[:, None], blur * 4)[:, 0].unflatten(0, x.shape[:2])

    def spread(x: Tensor, trailing: bool) -> Tensor:
        """A zero after every sample; the last one only when `trailing`."""
        result = x.new_zeros(*x.shape[:2], 2 * x.shape[2], 2 * x.shape[3])
        result[:, :, ::2, ::2] = x
        return result if trailing else result[:, :, :-1, :-1]

    def convolved(x: Tensor, layer: files.Module, up: bool) -> Tensor:
        t, rows = tensors(layer), []
        for sample, style in zip(x, styles(layer), strict=True):  # one sample after another: no grouped trick
            kernel = t["weight"] * style[None, :, None, None]
            kernel = kernel / (kernel.square().sum(dim=(1, 2, 3), keepdim=True) + 1e-8).sqrt()
            if up:
                y = F.conv2d(spread(sample[None], False), kernel.flip(2, 3), padding=2)
                rows.append(filtered(F.pad(y, (1, 1, 1, 1))))
            else:
                rows.append(F.conv2d(sample[None], kernel, padding=1))
        y = torch.cat(rows) + t["noise_const"] * t["noise_strength"]
        return F.leaky_relu(y + t["bias"][None, :, None, None], 0.2) * math.sqrt(2)

    def coloured(x: Tensor, layer: files.Module) -> Tensor:
        t, gain = tensors(layer), 1 / math.sqrt(x.shape[1])
        y = torch.einsum("bihw,oi,bi->bohw", x, t["weight"][:, :, 0, 0], styles(layer) * gain)
        return y + t["bias"][None, :, None, None]

    image: Tensor | None = None
    for name, block in parts["synthesis"].state["_modules"].items():
        layers = block.state["_modules"]
        if name == "b4":
            x = tensors(block)["const"][None].expand(len(z), -1, -1, -1)
        else:
            x = convolved(x, layers["conv0"], up=True)
        x = convolved(x, layers["conv1"], up=False)
        if image is not None:
            image = filtered(F.pad(spread(image, True), (2, 1, 2, 1)))
        colour = coloured(x, layers["torgb"])
        image = colour if image is None else image + colour
    assert image is not None
    return image


@pytest.mark.parametrize("nested", [True, False])
@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_an_ada_file_gives_the_pictures_of_adas_own_arithmetic(
    tmp_path: Path, original: Generator, nested: bool, protocol: int
) -> None:
    path = files.ada(tmp_path / "network.pkl", original, nested, protocol)
    imported = generators.load(path)
    same(imported, original)
    z = torch.randn(3, files.D, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        g = imported.generator
        found = g(g.repeat(g.mapping(z)))
    expected = ada_pictures(files.ada_module(original), z)
    assert expected.std() > 0.1
    assert (found - expected).abs().max() <= 1e-4


def test_a_tensorflow_file_gives_the_same_tensors(tmp_path: Path, original: Generator) -> None:
    imported = generators.load(files.tensorflow(tmp_path / "stylegan2.pkl", original))
    assert imported.kind == "NVIDIA's TensorFlow" and imported.notes == []
    same(imported, original)


# ---------------------------------------------------------------- refused by name


def refused(path: Path) -> str:
    with pytest.raises(InputError) as caught:
        generators.load(path)
    assert "\n" not in str(caught.value) and path.name in str(caught.value)
    return str(caught.value)


def changed(original: Generator, **parts: files.Module) -> files.Module:
    module = files.ada_module(original)
    module.state["_modules"] |= parts
    return module


def test_other_architectures_are_refused_by_name(tmp_path: Path, original: Generator) -> None:
    layer = files.Module("SynthesisLayer", {"weight": torch.ones(2)}, {}, {})
    three = changed(original, synthesis=files.Module("SynthesisNetwork", {}, {}, {"L0_36_512": layer}))
    assert "StyleGAN3" in refused(files.pickled(tmp_path / "3.pkl", {"G_ema": three}))
    conditional = files.ada_module(original)
    conditional.state["_modules"]["mapping"].state["_modules"]["embed"] = layer
    assert "conditional" in refused(files.pickled(tmp_path / "c.pkl", {"G_ema": conditional}))
    filtered = files.ada_module(original, filters=torch.tensor([1.0, 2, 2, 1]))
    assert "another filter" in refused(files.pickled(tmp_path / "f.pkl", {"G_ema": filtered}))
    residual = files.ada_module(original)
    residual.state["_modules"]["synthesis"].state["_modules"]["b8"].state["_modules"]["skip"] = layer
    assert "synthesis.b8.skip.weight has no place" in refused(files.pickled(tmp_path / "r.pkl", {"G_ema": residual}))


def test_what_does_not_fit_together_is_named(tmp_path: Path, original: Generator) -> None:
    state = original.state_dict()

    def without(pattern: str, **more: Tensor) -> Path:
        kept = {k: v for k, v in state.items() if not re.search(pattern, k)}
        return saved(tmp_path / "g.pt", {**kept, **more})

    assert "convs.1.activate.bias missing" in refused(without(r"convs\.1\.activate"))
    assert "conv1.conv.weight is not among its keys" in refused(without(r"^conv1"))
    assert "extra.weight have no place" in refused(without("^$", **{"extra.weight": torch.ones(2)}))
    assert "[3]: [7] is expected" in refused(without("^$", **{"convs.5.activate.bias": torch.ones(3)}))
    assert "not finite" in refused(without("^$", **{"convs.5.activate.bias": torch.full((7,), math.nan)}))
    assert "only equal ones" in refused(without("^$", **{"style.1.weight": torch.ones(files.D, 5)}))
    assert "convolutions behind the first" in refused(without(r"convs\.5"))


# ---------------------------------------------------------------- the command


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    root = tiny_project.make(tmp_path / "project")
    shutil.copy(tiny_project.ROOT / "domains/imagenet.txt", root / "domains")
    monkeypatch.setenv("DELTASPACE_ROOT", str(root))
    return root


def test_the_command_makes_a_domain_whose_generator_the_pipeline_reads(
    project: Path, tmp_path: Path, original: Generator, capsys: pytest.CaptureFixture[str]
) -> None:
    path = files.ada(tmp_path / "my cäts: \U0001f600.pkl", original)
    assert app.run(["import", "generator", str(path), "--domain", "my_cats", "--neutral", 'cat "x"']) == 0
    told = capsys.readouterr()
    assert "NVIDIA's PyTorch, 32 pixels, style dimension 12" in told.out and told.err == ""
    assert "import clip FILE --domain my_cats, then: deltaspace pretrain my_cats" in told.out
    domain = domains.load("my_cats", project)
    assert (domain.resolution, domain.neutral, domain.level_split) == (files.R, 'cat "x"', (3, 7))
    assert domain.generator.original == path.name
    assert domain.generator.original_sha256 == weights.digest(path)
    assert domain.generator.sha256 == weights.digest(project / domain.generator.path)
    assert domain.prompts and domain.templates and "non-commercial" in domain.generator.licence
    g = Networks(domain, project).generator
    w_plus = torch.randn(2, g.num_ws, files.D)
    with torch.no_grad():
        assert torch.allclose(g(w_plus), original(w_plus), atol=1e-5)
    grid = np.asarray(Image.open(project / "data/pretrained/my_cats/generator.png"))
    assert grid.shape[0] < grid.shape[1] and grid.std() > 10


def test_an_existing_generator_is_only_replaced_by_force(
    project: Path, tmp_path: Path, original: Generator, capsys: pytest.CaptureFixture[str]
) -> None:
    path = str(saved(tmp_path / "g.pt", original.state_dict()))
    assert app.run(["import", "generator", path, "--domain", "mine"]) == 0
    written = (project / "domains/mine.yaml").read_bytes() + b"# filled in\n"
    (project / "domains/mine.yaml").write_bytes(written)
    for arguments in (
        ("--domain", "mine"),
        ("--domain", "tiny"),
        ("--domain", "tiny", "--force"),
        ("--domain", "../up"),
    ):
        capsys.readouterr()
        assert app.run(["import", "generator", path, *arguments]) == 2
        assert len(capsys.readouterr().err.splitlines()) == 1
    assert app.run(["import", "generator", path, "--domain", "mine", "--force", "--seed", "3"]) == 0
    assert "mean w was missing" in capsys.readouterr().err
    assert (project / "domains/mine.yaml").read_bytes() == written
