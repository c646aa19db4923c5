"""A generator that copies the renderer first: what people are numbers by, what noise stands for, and the hand-over."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from kernels.upfirdn2d import binomial_kernel, upfirdn2d
from pipeline import portraits
from pipeline.models import stylegan2
from pipeline.portraits.traits import FREQUENCIES
from pipeline.runtime.errors import InputError
from pretrain import datasets, encoder, generator_supervised
from pretrain import generator as gan
from pretrain.common import Training

R, D, CHUNK, BATCH = 16, 128, 24, 8
MODEL: dict[str, Any] = {
    "size": R,
    "style_dim": D,
    "n_mlp": 3,
    "widths": {4: 8, 8: 8, 16: 6},
    "split": [2, 4],
    "discriminator": {16: 4, 8: 6, 4: 9},
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> datasets.Renders:
    root = tmp_path_factory.mktemp("drawn")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets, "RENDER_CHUNK", CHUNK)
        datasets.make_renders(root, R, CHUNK)
        return datasets.Renders(root, R)


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets, "RENDER_CHUNK", CHUNK)


def test_people_are_told_by_numbers_of_mean_zero_and_variance_one() -> None:
    people = [portraits.sample(row) for row in range(4000)]
    numbers = generator_supervised.parameters_of(people)
    assert numbers.shape == (4000, generator_supervised.parameter_count())
    assert numbers.mean(dim=0).abs().max() < 0.1 and (numbers.var(dim=0) - 1).abs().max() < 0.15


def test_two_people_are_told_alike_only_where_they_are_alike() -> None:
    someone = portraits.sample(3)
    values = portraits.ATTRIBUTES["hair_color"]
    another = next(value for value in values if value != someone.traits.hair_color.value)
    other = portraits.counterfactual(someone, {"hair_color": another})
    one, two = generator_supervised.parameters_of([someone, other])
    assert (one != two).sum() == 2  # the value it had, and the value it has


def test_noise_stands_for_people_in_the_shares_of_the_renderer() -> None:
    z = torch.randn(40_000, D, generator=torch.Generator().manual_seed(1))
    named = generator_supervised.parameters_of_noise(z)
    assert named.shape == (40_000, generator_supervised.parameter_count())
    start = generator_supervised.parameter_count() - sum(map(len, FREQUENCIES.values()))
    places = named[:, :start]
    assert places.mean(dim=0).abs().max() < 0.03 and (places.var(dim=0) - 1).abs().max() < 0.03
    assert places.abs().max() <= 3**0.5 + 1e-5  # uniform, as the renderer draws them
    for shares in FREQUENCIES.values():
        group = named[:, start : start + len(shares)]
        assert ((group > 0).sum(dim=1) == 1).all()  # exactly one value of every trait
        seen = (group > 0).float().mean(dim=0)
        torch.testing.assert_close(seen, torch.tensor(list(shares.values())), atol=0.012, rtol=0)
        start += len(shares)


def test_who_noise_stands_for_depends_on_its_direction_alone() -> None:
    z = torch.randn(100, D, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(
        generator_supervised.parameters_of_noise(z), generator_supervised.parameters_of_noise(3 * z)
    )


def test_people_enter_as_w_without_losing_what_tells_them_apart() -> None:
    people = [portraits.sample(row) for row in range(5)]
    made = stylegan2.build(MODEL)
    w_plus = generator_supervised.codes(made, people)
    assert w_plus.shape == (5, made.num_ws, D) and (w_plus == w_plus[:, :1]).all()
    torch.testing.assert_close(
        (w_plus[:, 0] - generator_supervised.SHIFT) @ generator_supervised.projection(D),
        generator_supervised.parameters_of(people),
    )


def test_a_code_too_short_to_name_every_person_is_refused() -> None:
    with pytest.raises(
        InputError, match=rf"style_dim is 64: portraits need at least {generator_supervised.parameter_count()}"
    ):
        generator_supervised.projection(64)


def test_pictures_differ_by_large_errors_more_than_by_many_small_ones() -> None:
    picture = torch.zeros(1, 3, R, R)
    spread, dense = picture + 0.02, picture.clone()
    dense[:, :, 4:8, 4:8] = 0.02 * R * R / 16  # the same mean absolute error, in one place
    assert generator_supervised.difference(picture, picture) == 0
    assert generator_supervised.difference(dense, picture) > 3 * generator_supervised.difference(spread, picture)


def test_copying_comes_nearer_to_the_renderer(data: datasets.Renders, tmp_path: Path) -> None:
    loop = generator_supervised.steps(MODEL, data, tmp_path / "copy.pt", 60 * BATCH, BATCH, lr=0.01, ema_images=20)
    found = [metrics["difference"] for _, metrics, _ in loop]
    assert sum(found[-10:]) < 0.6 * sum(found[:10])


def test_colours_come_from_features_that_an_edit_of_s_can_reach(data: datasets.Renders, tmp_path: Path) -> None:
    *_, (_, _, made) = generator_supervised.steps(MODEL, data, tmp_path / "copy.pt", 3 * BATCH, BATCH)
    w_plus, other = made.repeat(torch.randn(2, D)), made.repeat(torch.randn(2, D))
    with torch.no_grad():
        s = made.styles(w_plus)
        torch.testing.assert_close(made.synthesis(s, w_plus), made.synthesis(s, other))
        assert (made.synthesis(made.styles(other), w_plus) - made.synthesis(s, w_plus)).abs().mean() > 1e-3


def test_a_copy_stopped_and_resumed_has_the_bytes_of_an_undisturbed_one(data: datasets.Renders, tmp_path: Path) -> None:
    whole, pieces = tmp_path / "whole.pt", tmp_path / "pieces.pt"
    list(generator_supervised.steps(MODEL, data, whole, 3 * BATCH, BATCH))
    for _ in range(3):
        torch.manual_seed(99)
        list(generator_supervised.steps(MODEL, data, pieces, 3 * BATCH, BATCH, seconds=0))
    one, other = (torch.load(path, weights_only=True) for path in (whole, pieces))
    assert one["step"] == other["step"] == 3
    for key, value in one["g"].items():
        assert torch.equal(value, other["g"][key]), key


def test_the_larger_copy_begins_with_the_smaller_pictures(data: datasets.Renders, tmp_path: Path) -> None:
    half = tmp_path / "half.pt"
    *_, (_, _, small) = generator_supervised.steps(gan.halved(MODEL), data, half, 2 * BATCH, BATCH, ema_images=1e-9)
    *_, (_, _, large) = generator_supervised.steps(
        MODEL, data, tmp_path / "copy.pt", BATCH, BATCH, lr=1e-12, smaller=half
    )
    people = list(data.people(torch.arange(3)))
    with torch.no_grad():
        enlarged = upfirdn2d(small(generator_supervised.codes(small, people)), binomial_kernel(2), up=2, pad=(2, 1))
        torch.testing.assert_close(large(generator_supervised.codes(large, people)), enlarged, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("layers", [3, 6])
def test_the_mapping_network_makes_noise_the_people_it_stands_for(layers: int) -> None:
    made = stylegan2.build({**MODEL, "n_mlp": layers})
    drawing = made.conv1.conv.weight.clone()
    left = generator_supervised.fit_mapping(made)
    assert left < 0.05 and torch.equal(made.conv1.conv.weight, drawing)
    z = torch.randn(2000, D, generator=torch.Generator().manual_seed(7))
    with torch.no_grad():
        found = (made.half().float().mapping(z) - generator_supervised.SHIFT) @ generator_supervised.projection(
            D
        )  # as the weights are kept
    named = generator_supervised.parameters_of_noise(z)
    assert ((found - named).square().mean() / named.var()).item() < 0.05
    start = generator_supervised.parameter_count() - sum(map(len, FREQUENCIES.values()))
    for shares in FREQUENCIES.values():
        nearest, truth = (x[:, start : start + len(shares)].argmax(dim=1) for x in (found, named))
        assert (nearest == truth).float().mean() > 0.93
        start += len(shares)


def test_what_is_drawn_too_faintly_is_told_louder_and_nothing_else() -> None:
    made, z = stylegan2.build(MODEL), torch.randn(2000, D, generator=torch.Generator().manual_seed(7))
    numbers = []
    for trait_gain in ({}, {"age": 2.0, "pose": 0.5}):
        generator_supervised.fit_mapping(made, trait_gain)
        with torch.no_grad():
            numbers.append((made.mapping(z) - generator_supervised.SHIFT) @ generator_supervised.projection(D))
    start = generator_supervised.parameter_count() - sum(map(len, FREQUENCIES.values()))
    factors = [
        torch.full((len(shares),), {"age": 2.0, "pose": 0.5}.get(name, 1.0)) for name, shares in FREQUENCIES.items()
    ]
    expected = numbers[0] * torch.cat([torch.ones(start), *factors])
    errors = (numbers[1] - expected).square().mean(dim=0) / expected.var(dim=0)
    assert errors.max() < 0.05 and (numbers[0] - expected).square().mean(dim=0).max() > 0.2


def test_a_trait_that_nobody_has_cannot_be_told_louder() -> None:
    with pytest.raises(InputError, match=r"there is no trait agee \(did you mean 'age'\?\)"):
        generator_supervised.fit_mapping(stylegan2.build(MODEL), {"agee": 2.0})


def test_a_mapping_network_of_two_layers_is_refused() -> None:
    with pytest.raises(InputError, match="n_mlp is 2: a mapping network of portraits needs three layers or more"):
        generator_supervised.fit_mapping(stylegan2.build({**MODEL, "n_mlp": 2}))


def test_what_was_copied_is_handed_to_the_adversarial_training(data: datasets.Renders, tmp_path: Path) -> None:
    copy, state = tmp_path / "copy.pt", tmp_path / "generator.pt"
    *_, (_, _, copied) = generator_supervised.steps(MODEL, data, copy, BATCH, BATCH)
    generator_supervised.write_adversarial_state(MODEL, copy, state, {})
    handed = torch.load(state, weights_only=True)
    assert handed["step"] == 0
    for key, value in copied.state_dict().items():
        if not key.startswith("style."):
            assert torch.equal(handed["g"][key], value), key
    loop = gan.steps(MODEL, data, state, 3 * BATCH, BATCH, supervised=True, settle=BATCH, ema_images=1e-9)
    seen = [(metrics, made.to_rgb1.conv.weight.clone()) for _, metrics, made in loop]
    assert "loss_g" not in seen[0][0] and "difference" in seen[1][0]  # the discriminator learns alone at first
    torch.testing.assert_close(seen[0][1], copied.to_rgb1.conv.weight)
    assert not torch.equal(seen[1][1], seen[2][1])


def test_a_domain_that_is_drawn_copies_at_both_sizes_and_goes_on_from_its_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import tiny_project
    import yaml

    from pipeline.storage import domains

    monkeypatch.setenv("DELTASPACE_ROOT", str(tmp_path))
    model = {key: value for key, value in MODEL.items() if key != "split"}
    plan = {"model": model, "images": BATCH, "images_half_size": BATCH, "images_supervised": BATCH, "batch": BATCH}
    content = {**tiny_project.DOMAIN, "defaults": {"pretrain": {"generator": {**plan, "renders": CHUNK}}}}
    (tmp_path / "domains").mkdir()
    (tmp_path / "domains/tiny.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    job = Training(domains.load("tiny", tmp_path), tmp_path, "generator")
    states = tmp_path / "data/pretraining/tiny"
    gan.train(job)
    assert {path.stem for path in states.glob("*.pt")} == {"generator", "generator-copy", "generator-half"}
    weights = tmp_path / "data/pretrained/tiny"
    assert {path.stem for path in weights.glob("*.safetensors")} == {"generator", "discriminator"}
    for path in states.glob("*.pt"):
        path.unlink()
    gan.train(replace(job, images=2 * BATCH))
    assert {path.stem for path in states.glob("*.pt")} == {"generator"}
    assert torch.load(states / "generator.pt", weights_only=True)["step"] == 2


def test_an_encoder_first_learns_the_codes_of_renders_alone(data: datasets.Renders, tmp_path: Path) -> None:
    made = stylegan2.build(MODEL)
    made.w_mean.fill_(generator_supervised.SHIFT)
    judge = gan.Discriminator(R, MODEL["discriminator"])
    numbers = {"resolution": R, "widths": [4, 6, 8, 8], "rows": made.num_ws, "style_dim": D}
    loop = encoder.steps(
        numbers,
        made,
        judge,
        None,
        data,
        tmp_path / "e4e.pt",
        60 * BATCH,
        BATCH,
        known_codes=True,
        codes_first=59 * BATCH,
    )
    found = [metrics for _, metrics, _ in loop]
    assert all(set(metrics) == {"latent"} for metrics in found[:-1]) and "pixel" in found[-1]
    assert sum(metrics["latent"] for metrics in found[-11:-1]) < 0.99 * sum(metrics["latent"] for metrics in found[:10])
