"""IR-SE50: published keys and sizes, and the published arithmetic, restated in arcface_files."""

from __future__ import annotations

import arcface_files as files
import pytest
import torch
from arcface_files import NARROW, Plain
from torch import Tensor

from pipeline import inversion
from pipeline.models import classifiers, e4e
from pipeline.models.e4e import PublishedEncoder, StyleEncoder
from pipeline.models.stylegan2 import Generator
from pipeline.storage import weights

ROWS, D, SIZE = 8, 12, 64  # 8 rows: a 32-pixel generator, so that all three maps are read
MODEL = {"backbone": "ir_se50", "widths": list(NARROW), "rows": ROWS, "style_dim": D, "size": SIZE}
FACE = {"backbone": "ir_se50", "widths": list(NARROW), "dim": 20}


def shapes(network: torch.nn.Module) -> files.Shapes:
    return {key: tuple(value.shape) for key, value in network.state_dict().items()}


@pytest.mark.parametrize(
    ("resolution", "parameters", "keys"),
    [(1024, 267_136_704, 621), (512, 238_293_696, 593), (256, 209_450_688, 565)],
)
def test_e4e_has_the_published_keys_and_numbers_of_parameters(resolution: int, parameters: int, keys: int) -> None:
    rows = 2 * resolution.bit_length() - 4
    model = {"backbone": "ir_se50", "widths": list(files.PUBLISHED), "rows": rows, "style_dim": 512}
    with torch.device("meta"):
        network = e4e.build(model)
    assert sum(parameter.numel() for parameter in network.parameters()) == parameters
    found = shapes(network)
    assert found.pop("latent_avg") == (rows, 512)  # beside the state dict in the published files
    assert len(found) == keys and found == files.encoder_shapes(rows)


def test_the_face_network_has_the_published_keys_and_numbers() -> None:
    with torch.device("meta"):
        network = classifiers.build_identity({"backbone": "ir_se50", "widths": list(files.PUBLISHED), "dim": 512})
    state = network.state_dict()
    assert len(state) == 397
    assert sum(value.numel() for value in state.values() if value.is_floating_point()) == 43_824_064
    assert shapes(network) == files.face_shapes()


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    return files.drawn(files.encoder_shapes(ROWS, NARROW, D, SIZE))


@pytest.fixture(scope="module")
def mean() -> Tensor:
    return torch.randn(ROWS, D, generator=torch.Generator().manual_seed(5))


def made(state: dict[str, Tensor], mean: Tensor, **numbers: object) -> StyleEncoder:
    network = e4e.build({**MODEL, **numbers}).eval().requires_grad_(False)
    network.load_state_dict(state | {"latent_avg": mean})
    return network


def pictures(size: int, seed: int = 1) -> Tensor:
    return torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(seed)) * 2 - 1


@pytest.mark.parametrize("psp", [False, True])
@pytest.mark.parametrize("resolution", [SIZE, 2 * SIZE, 4 * SIZE])
def test_codes_equal_those_of_the_published_arithmetic(
    state: dict[str, Tensor], mean: Tensor, resolution: int, psp: bool
) -> None:
    images = pictures(resolution)
    step = resolution // SIZE
    boxes = images.double().unfold(2, step, step).unfold(3, step, step).mean(dim=(4, 5))
    expected = Plain(state).codes(boxes, ROWS, mean, psp)
    found = made(state, mean, common=not psp)(images)
    assert found.shape == (2, ROWS, D) and expected.std() > 0.3 and (expected[0] - expected[1]).abs().max() > 0.1
    assert (found - expected).abs().max() <= 1e-4 * expected.abs().max()


def test_rows_are_a_common_offset_plus_an_own_one_plus_the_average_code(state: dict[str, Tensor], mean: Tensor) -> None:
    network = made(state, mean)
    images = pictures(SIZE)
    first = network(images, stage=0)
    assert torch.allclose(first - mean, (first - mean)[:, :1].expand(-1, ROWS, -1), atol=1e-6)
    whole = network(images)
    assert torch.equal(whole[:, 0], first[:, 0]) and not torch.allclose(whole[:, 1:], first[:, 1:], atol=1e-2)
    assert torch.allclose(made(state, mean + 1)(images), whole + 1, atol=1e-5)


def test_smaller_images_are_enlarged_first(state: dict[str, Tensor], mean: Tensor) -> None:
    images = pictures(SIZE // 2)
    large = torch.nn.functional.interpolate(images, scale_factor=2, mode="bilinear", align_corners=False)
    network = made(state, mean)
    assert torch.allclose(network(images), network(large), atol=1e-6)


def test_results_are_independent_of_the_batch(state: dict[str, Tensor], mean: Tensor) -> None:
    network, images = made(state, mean), pictures(SIZE)
    assert torch.allclose(torch.cat([network(image[None]) for image in images]), network(images), atol=1e-4)


def test_features_have_the_three_scales_of_the_small_encoder(state: dict[str, Tensor], mean: Tensor) -> None:
    network, images = made(state, mean), pictures(2 * SIZE)
    found = network.features(images)
    ours = e4e.Encoder(SIZE, (6, 8, 10, 14), ROWS, D).eval().features(pictures(SIZE))
    assert [maps.shape[2:] for maps in found] == [maps.shape[2:] for maps in ours]
    assert all(torch.allclose(maps.norm(dim=1), torch.ones(()), atol=1e-5) for maps in found)
    boxes = torch.nn.functional.avg_pool2d(images, 2)
    seen = [Plain(state).after(boxes)[index] for index in (2, 6, 20)]
    for maps, raw in zip(found, seen, strict=True):
        assert (maps - raw / raw.norm(dim=1, keepdim=True)).abs().max() < 1e-4


def test_refinement_with_its_features_lowers_the_error(state: dict[str, Tensor], mean: Tensor) -> None:
    torch.manual_seed(0)
    generator = Generator(32, D, {4: 12, 8: 10, 16: 8, 32: 6}, n_mlp=2).eval().requires_grad_(False)
    with torch.no_grad():
        images = generator(torch.randn(2, ROWS, D)).clamp(-0.9, 0.9)
    network = made(state, mean)
    first = network(images)
    moved = inversion.refine(network, generator, images, first, 8)
    before, after = (inversion.errors(generator, images, codes) for codes in (first, moved))
    assert bool((after <= before).all()) and after.mean() < 0.98 * before.mean()


@pytest.fixture(scope="module")
def face_state() -> dict[str, Tensor]:
    return files.drawn(files.face_shapes(NARROW, 20), seed=3)


@pytest.fixture(scope="module")
def face(face_state: dict[str, Tensor]) -> torch.nn.Module:
    network = classifiers.build_identity(FACE).eval().requires_grad_(False)
    network.load_state_dict(face_state)
    return network


@pytest.mark.parametrize("resolution", [64, 256, 512])
def test_embeddings_equal_those_of_the_published_arithmetic(
    face_state: dict[str, Tensor], face: torch.nn.Module, resolution: int
) -> None:
    images = pictures(resolution)
    expected = Plain(face_state).face(files.averaged(images.double(), 256))
    found = face(images)
    assert found.shape == (2, 20) and (expected[0] - expected[1]).abs().max() > 1e-2
    assert (found - expected).abs().max() < 1e-4
    assert torch.allclose(found.norm(dim=1), torch.ones(2), atol=1e-6)


def test_only_the_central_crop_affects_the_embedding(face: torch.nn.Module) -> None:
    images = pictures(256)
    before, around, within = face(images), images.clone(), images.clone()
    around[:, :, :35], around[:, :, 223:], around[..., :32], around[..., 220:] = 1, 1, 1, 1
    assert torch.equal(face(around), before)
    for row, column in ((35, 32), (222, 219)):
        within[:, :, row, column] += 5
    assert not torch.allclose(face(within), before, atol=1e-5)


def test_another_backbone_is_refused_by_name() -> None:
    for build in (e4e.build, classifiers.build_identity):
        with pytest.raises(ValueError, match=r"unknown backbone .*'resnet34'"):
            build({"backbone": "resnet34"})


def test_building_for_a_file_draws_no_random_numbers() -> None:
    before = torch.random.get_rng_state()
    with weights.Unfilled():
        network = e4e.build(MODEL)
    assert isinstance(network, PublishedEncoder)
    assert torch.equal(torch.random.get_rng_state(), before)
