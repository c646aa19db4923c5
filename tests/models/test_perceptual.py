"""Inception and LPIPS from local files, against their arithmetic restated."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tiny_project
import torch
import yaml
from torch import Tensor
from torch.nn import functional as F

from pipeline.evaluation import metrics
from pipeline.networks import Networks
from pipeline.storage import domains

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def project(tmp_path: Path) -> Path:
    return tiny_project.make(tmp_path / "project")


def refused(outcome: tuple[int, str, str], words: str) -> None:
    code, out, err = outcome
    assert (code, out, len(err.splitlines())) == (2, "", 1), err
    assert words in err


def networks(project: Path) -> Networks:
    return Networks(domains.load("tiny", project), project)


def alexnet(seed: int = 0) -> dict[str, Tensor]:
    """torchvision's file, its classifier made small."""
    draw = torch.Generator().manual_seed(seed)
    convolutions = {0: (64, 3, 11), 3: (192, 64, 5), 6: (384, 192, 3), 8: (256, 384, 3), 10: (256, 256, 3)}
    state = {"classifier.6.weight": torch.ones(10, 4)}
    for place, (outputs, inputs, size) in convolutions.items():
        shape = (outputs, inputs, size, size)
        state[f"features.{place}.weight"] = torch.randn(shape, generator=draw) * (inputs * size * size) ** -0.5
        state[f"features.{place}.bias"] = torch.randn(outputs, generator=draw) * 0.1
    return state


def heads() -> list[Tensor]:
    """LPIPS's own, as torchmetrics ships them, [1,C,1,1] each."""
    spec = importlib.util.find_spec("torchmetrics")
    assert spec is not None and spec.origin is not None
    folder = Path(spec.origin).parent / "functional/image/lpips_models"
    found = torch.load(folder / "alex.pth", map_location="cpu", weights_only=True)
    return [found[f"lin{i}.model.1.weight"] for i in range(5)]


def plain_lpips(state: dict[str, Tensor], a: Tensor, b: Tensor) -> Tensor:
    shift, scale = (torch.tensor(v)[:, None, None] for v in ((-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)))
    x, total = (torch.cat([a, b]) - shift) / scale, torch.zeros(len(a))
    for place, (stride, padding), head in zip((0, 3, 6, 8, 10), ((4, 2), (1, 2), (1, 1), (1, 1), (1, 1)), heads()):
        if place in (3, 6):
            x = F.max_pool2d(x, 3, 2)
        weight, bias = (state[f"features.{place}.{part}"] for part in ("weight", "bias"))
        x = F.conv2d(x, weight, bias, stride, padding).clamp_min(0)
        unit = x / (x.square().sum(1, keepdim=True) + 1e-8).sqrt()
        first, second = unit.chunk(2)
        total += ((first - second).square() * head).sum(1).mean((1, 2))
    return total


def test_lpips_is_the_published_distance(run: Run, project: Path, tmp_path: Path) -> None:
    state, images = alexnet(), torch.rand(4, 3, 70, 70, generator=torch.Generator().manual_seed(1)) * 2 - 1
    torch.save(state, tmp_path / "alexnet-owt-7be5be79.pth")
    assert run("import", "lpips", tmp_path / "alexnet-owt-7be5be79.pth", "--domain", "tiny")[0] == 0
    found = networks(project).lpips
    torch.testing.assert_close(
        found(images[:2], images[2:]), plain_lpips(state, images[:2], images[2:]), atol=1e-5, rtol=1e-4
    )
    assert found(images, images).abs().max() < 1e-6
    assert found(images[:, :, :16, :16], images[:, :, -16:, -16:]).shape == (4,)  # AlexNet alone has no room for these
    assert (project / "data/pretrained/tiny/lpips.safetensors").stat().st_size < 12_000_000  # no classifier


def inception(seed: int = 0) -> dict[str, Tensor]:
    """pytorch-fid's file: torchvision's names, 1008 classes, random numbers that keep activations alive."""
    from torchvision.models.inception import Inception3

    torch.manual_seed(seed)
    network = Inception3(num_classes=1008, aux_logits=False, init_weights=False)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.weight.data.uniform_(1, 2)
            module.bias.data.normal_(std=0.2)
            module.running_mean.normal_(std=0.1)  # type: ignore[union-attr]
    return {name: value for name, value in network.state_dict().items() if "num_batches" not in name}


def plain_inception(state: dict[str, Tensor], images: Tensor, monkeypatch: pytest.MonkeyPatch) -> Tensor:
    """torchvision's own network, with the pooling that it calls in its blocks exchanged."""
    from torchvision.models import inception as blocks

    calls = []

    def pool(x: Tensor, kernel_size: int, stride: int, padding: int) -> Tensor:
        calls.append(x.shape[-1])
        if len(calls) == 9:  # the last of its nine blocks with such a branch
            return F.max_pool2d(x, kernel_size, stride, padding)
        inside = torch.ones_like(x[:1, :1])
        mean = torch.ones(1, 1, kernel_size, kernel_size)
        total = F.conv2d(x.flatten(0, 1)[:, None], mean, None, stride, padding).view_as(x)
        return total / F.conv2d(inside, mean, None, stride, padding)

    network = blocks.Inception3(num_classes=1008, aux_logits=False, init_weights=False).eval()
    network.load_state_dict(state, strict=False)
    network.fc = torch.nn.Identity()  # type: ignore[assignment]
    with monkeypatch.context() as patch, torch.no_grad():
        patch.setattr(blocks.F, "avg_pool2d", pool)
        found = network(F.interpolate((images + 1) / 2, (299, 299), mode="bilinear", align_corners=False) * 2 - 1)
    assert len(calls) == 9
    return found


def test_inception_equals_the_network_of_fid(
    run: Run, project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state, images = inception(), torch.rand(2, 3, 48, 48, generator=torch.Generator().manual_seed(1)) * 2 - 1
    torch.save(state, tmp_path / "pt_inception.pth")
    assert run("import", "inception", tmp_path / "pt_inception.pth", "--domain", "tiny")[0] == 0
    found = networks(project).inception(images)
    assert found.shape == (2, 2048) and found.std() > 0.01
    torch.testing.assert_close(found, plain_inception(state, images, monkeypatch), atol=1e-4, rtol=1e-3)
    refused(run("import", "inception", tmp_path / "pt_inception.pth", "--domain", "tiny"), "--force")

    def told(words: str, changed: dict[str, Tensor]) -> None:
        torch.save(changed, tmp_path / "x.pth")
        refused(run("import", "inception", tmp_path / "x.pth", "--domain", "tiny", "--force"), words)

    few = {name: value for name, value in state.items() if name.startswith(("fc.", "Conv2d_1a"))}
    told("1008 classes", {**few, "fc.weight": torch.ones(1000, 2048)})
    told("1008 classes", {**few, "AuxLogits.fc.weight": torch.ones(2)})
    told("missing", few)


def test_a_file_of_another_network_is_refused_as_alexnet(run: Run, project: Path, tmp_path: Path) -> None:
    path = tmp_path / "x.pth"

    def told(words: str, changed: object) -> None:
        torch.save(changed, path)
        refused(run("import", "lpips", path, "--domain", "tiny"), words)

    state = alexnet()
    told("not torchvision's AlexNet", {"x": torch.ones(2)})
    told("not torchvision's AlexNet", [torch.ones(2)])
    told("features.10.bias missing", {k: v for k, v in state.items() if k != "features.10.bias"})
    told("features.3.bias has the shape [3]", {**state, "features.3.bias": torch.ones(3)})
    told("not finite", {**state, "features.3.bias": torch.full((192,), torch.inf)})
    assert not (project / "data/pretrained/tiny/lpips.safetensors").exists()


def test_missing_perceptual_networks_are_named_in_the_error(project: Path) -> None:
    found = networks(project)
    assert found.absent("clip") is None
    assert found.absent("inception") == "not computed: weights missing at data/pretrained/tiny/inception.safetensors"
    with pytest.raises(domains.InputError, match=r"run `deltaspace import inception FILE --domain tiny`"):
        found.inception  # noqa: B018
    entry = {"original": "alexnet-owt-7be5be79.pth"}
    (project / "domains/tiny.yaml").write_text(yaml.safe_dump({**tiny_project.DOMAIN, "lpips": entry}))
    with pytest.raises(domains.InputError, match=r"import lpips alexnet-owt-7be5be79\.pth --domain tiny"):
        networks(project).lpips  # noqa: B018


def test_a_domain_lists_its_perceptual_networks(project: Path) -> None:
    drawn = domains.load("tiny", project)
    assert "oracle" in drawn.networks and "inception" not in drawn.networks
    (project / "domains/tiny.yaml").write_text(yaml.safe_dump({**tiny_project.DOMAIN, "renderer": None}))
    photographs = domains.load("tiny", project)
    assert {"inception", "lpips"} <= set(photographs.networks) and "oracle" not in photographs.networks


def test_gaussian_statistics_gathered_in_parts_are_those_of_the_whole() -> None:
    rows = torch.randn(50, 4, generator=torch.Generator().manual_seed(0)).double() * torch.tensor([1, 2, 3, 40.0]) + 7
    stats = metrics.GaussianStats()
    for part in rows.split(13):
        stats.add(part)
    mean, covariance = stats.moments()
    assert np.allclose(mean, rows.mean(0)) and np.allclose(covariance, np.cov(rows.numpy().T))
    again = metrics.frechet(stats.moments(), stats.moments())
    assert again == pytest.approx(0, abs=1e-6)
    assert np.isnan(metrics.frechet(metrics.GaussianStats().moments(), stats.moments()))
