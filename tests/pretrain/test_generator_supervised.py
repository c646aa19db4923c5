"""Supervised training of a generator: parameters of portraits, of noise, and the state of adversarial training."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from kernels.upfirdn2d import binomial_kernel, upfirdn2d
from pipeline import portraits
from pipeline.models import stylegan2
from pipeline.portraits.traits import FREQUENCIES
from pipeline.runtime.errors import InputError
from pipeline.storage import images
from pretrain import datasets, encoder, generator_supervised, perceptual_features, portrait_parameters
from pretrain import generator as gan
from pretrain.common import Training
from pretrain.discriminator import Discriminator

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
    root = tmp_path_factory.mktemp("renders")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets, "RENDER_CHUNK", CHUNK)
        datasets.make_renders(root, R, CHUNK)
        return datasets.Renders(root, R)


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets, "RENDER_CHUNK", CHUNK)


def test_parameters_have_mean_zero_and_variance_one() -> None:
    people = [portraits.sample(row) for row in range(4000)]
    parameters = portrait_parameters.parameters_of(people)
    assert parameters.shape == (4000, portrait_parameters.parameter_count())
    assert parameters.mean(dim=0).abs().max() < 0.1 and (parameters.var(dim=0) - 1).abs().max() < 0.15


def test_a_changed_value_changes_two_parameters() -> None:
    person = portraits.sample(3)
    values = portraits.ATTRIBUTES["hair_color"]
    another = next(value for value in values if value != person.traits.hair_color.value)
    other = portraits.counterfactual(person, {"hair_color": another})
    one, two = portrait_parameters.parameters_of([person, other])
    assert (one != two).sum() == 2  # the value it had, and the value it has


def test_parameters_of_noise_have_the_renderers_distribution() -> None:
    z = torch.randn(40_000, D, generator=torch.Generator().manual_seed(1))
    parameters = portrait_parameters.parameters_of_noise(z)
    assert parameters.shape == (40_000, portrait_parameters.parameter_count())
    start = portrait_parameters.parameter_count() - sum(map(len, FREQUENCIES.values()))
    continuous = parameters[:, :start]
    assert continuous.mean(dim=0).abs().max() < 0.03 and (continuous.var(dim=0) - 1).abs().max() < 0.03
    assert continuous.abs().max() <= 3**0.5 + 1e-5  # uniform, as the renderer draws them
    for frequencies in FREQUENCIES.values():
        group = parameters[:, start : start + len(frequencies)]
        assert ((group > 0).sum(dim=1) == 1).all()  # exactly one value of every trait
        seen = (group > 0).float().mean(dim=0)
        torch.testing.assert_close(seen, torch.tensor(list(frequencies.values())), atol=0.012, rtol=0)
        start += len(frequencies)


def test_parameters_of_noise_depend_on_its_direction_alone() -> None:
    z = torch.randn(100, D, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(
        portrait_parameters.parameters_of_noise(z), portrait_parameters.parameters_of_noise(3 * z)
    )


def test_parameters_can_be_recovered_from_codes() -> None:
    people = [portraits.sample(row) for row in range(5)]
    generator = stylegan2.build(MODEL)
    w_plus = generator_supervised.codes(generator, people)
    assert w_plus.shape == (5, generator.num_ws, D) and (w_plus == w_plus[:, :1]).all()
    torch.testing.assert_close(
        (w_plus[:, 0] - generator_supervised.SHIFT) @ generator_supervised.projection(D),
        portrait_parameters.parameters_of(people),
    )


def test_a_style_dim_below_the_number_of_parameters_is_refused() -> None:
    with pytest.raises(
        InputError, match=rf"style_dim is 64: portraits need at least {portrait_parameters.parameter_count()}"
    ):
        generator_supervised.projection(64)


def test_difference_weighs_large_errors_more_than_many_small_ones() -> None:
    picture = torch.zeros(1, 3, R, R)
    spread, dense = picture + 0.02, picture.clone()
    dense[:, :, 4:8, 4:8] = 0.02 * R * R / 16  # the same mean absolute error, in one place
    assert generator_supervised.difference(picture, picture) == 0
    assert generator_supervised.difference(dense, picture) > 3 * generator_supervised.difference(spread, picture)


def test_supervised_training_reduces_the_difference(data: datasets.Renders, tmp_path: Path) -> None:
    loop = generator_supervised.steps(
        MODEL, data, tmp_path / "supervised.pt", 60 * BATCH, BATCH, lr=0.01, ema_images=20
    )
    errors = [metrics["difference"] for _, metrics, _ in loop]
    assert sum(errors[-10:]) < 0.6 * sum(errors[:10])


def test_to_rgb_layers_do_not_depend_on_w(data: datasets.Renders, tmp_path: Path) -> None:
    *_, (_, _, generator) = generator_supervised.steps(MODEL, data, tmp_path / "supervised.pt", 3 * BATCH, BATCH)
    w_plus, other = generator.repeat(torch.randn(2, D)), generator.repeat(torch.randn(2, D))
    with torch.no_grad():
        s = generator.styles(w_plus)
        torch.testing.assert_close(generator.synthesis(s, w_plus), generator.synthesis(s, other))
        assert (
            generator.synthesis(generator.styles(other), w_plus) - generator.synthesis(s, w_plus)
        ).abs().mean() > 1e-3


def test_a_resumed_training_ends_with_the_same_bytes(data: datasets.Renders, tmp_path: Path) -> None:
    whole, pieces = tmp_path / "whole.pt", tmp_path / "pieces.pt"
    list(generator_supervised.steps(MODEL, data, whole, 3 * BATCH, BATCH))
    for _ in range(3):
        torch.manual_seed(99)
        list(generator_supervised.steps(MODEL, data, pieces, 3 * BATCH, BATCH, seconds=0))
    one, other = (torch.load(path, weights_only=True) for path in (whole, pieces))
    assert one["step"] == other["step"] == 3
    for key, value in one["g"].items():
        assert torch.equal(value, other["g"][key]), key


def test_full_size_starts_with_the_images_of_half_the_size_enlarged(data: datasets.Renders, tmp_path: Path) -> None:
    half = tmp_path / "half.pt"
    *_, (_, _, small) = generator_supervised.steps(gan.halved(MODEL), data, half, 2 * BATCH, BATCH, ema_images=1e-9)
    *_, (_, _, large) = generator_supervised.steps(
        MODEL, data, tmp_path / "supervised.pt", BATCH, BATCH, lr=1e-12, smaller=half
    )
    people = list(data.people(torch.arange(3)))
    with torch.no_grad():
        enlarged = upfirdn2d(small(generator_supervised.codes(small, people)), binomial_kernel(2), up=2, pad=(2, 1))
        torch.testing.assert_close(large(generator_supervised.codes(large, people)), enlarged, atol=1e-3, rtol=1e-3)


def test_every_parameter_is_drawn_by_one_level() -> None:
    names = [name for level in portrait_parameters.PARAMETER_LEVELS.values() for name in level.split()]
    person = portraits.sample(0)
    assert sorted(names) == sorted([*asdict(person.identity), *asdict(person.look), *FREQUENCIES])
    levels = portrait_parameters.parameter_levels()
    assert levels.shape == (portrait_parameters.parameter_count(),) and set(levels.tolist()) == {0, 1, 2}


@pytest.mark.parametrize(("attribute", "level"), [("hair_style", 0), ("expression", 1), ("lips", 2)])
def test_a_changed_attribute_changes_the_styles_of_its_level_alone(attribute: str, level: int) -> None:
    person = portraits.sample(3)
    value = next(v for v in portraits.ATTRIBUTES[attribute] if v != getattr(person.traits, attribute).value)
    people = [person, portraits.counterfactual(person, {attribute: value})]
    one, two = portrait_parameters.parameters_of(people)
    assert set(portrait_parameters.parameter_levels()[one != two].tolist()) == {level}
    generator = stylegan2.build(MODEL)
    generator_supervised.separate_levels(generator)
    with torch.no_grad():
        s = generator.styles(generator_supervised.codes(generator, people))
    for index, channels in enumerate(generator.layout.levels.values()):
        change = (s[0, channels] - s[1, channels]).abs().max()
        assert change > 0.01 if index == level else change < 1e-5


def test_mixed_parameters_keep_those_of_the_level_and_take_the_others_from_the_batch() -> None:
    parameters = portrait_parameters.parameters_of([portraits.sample(row) for row in range(40)])
    level_of = portrait_parameters.parameter_levels()
    rows = portrait_parameters.mixed_parameters(parameters, 0.5)
    assert rows.shape == (40, 3, portrait_parameters.parameter_count()) and (rows[20:] == parameters[20:, None]).all()
    for level in range(3):
        assert (rows[:, level, level_of == level] == parameters[:, level_of == level]).all()
        assert (rows[:20, level][:, level_of != level] != parameters[:20][:, level_of != level]).float().mean() > 0.5


def test_codes_with_mixed_rows_give_the_same_images(data: datasets.Renders, tmp_path: Path) -> None:
    loop = generator_supervised.steps(
        MODEL, data, tmp_path / "supervised.pt", 20 * BATCH, BATCH, lr=0.01, ema_images=20
    )
    *_, (_, _, generator) = loop
    people = list(data.people(torch.arange(8)))
    with torch.no_grad():
        equal, mixed = (generator_supervised.codes(generator, people, fraction) for fraction in (0.0, 1.0))
        assert (equal != mixed).any(dim=-1).float().mean() > 0.5
        torch.testing.assert_close(generator(equal), generator(mixed), atol=1e-4, rtol=1e-4)


def test_evaluation_uses_portraits_of_no_training_and_improves_with_it(data: datasets.Renders, tmp_path: Path) -> None:
    evaluate = generator_supervised.evaluate_held_out(R, 16, tmp_path / "grid.png")
    loop = generator_supervised.steps(
        MODEL, data, tmp_path / "supervised.pt", 60 * BATCH, BATCH, lr=0.01, ema_images=20
    )
    first, last = (evaluate(generator) for done, _, generator in loop if done in (BATCH, 60 * BATCH))
    assert set(first) == {"psnr", "psnr_mixed"}
    assert last["psnr"] > first["psnr"] + 1
    assert last["psnr"] == pytest.approx(last["psnr_mixed"], abs=0.01)
    grid = images.decode_png((tmp_path / "grid.png").read_bytes())
    assert grid.shape[1] >= 2 * R and grid.shape[2] >= 16 * R


def test_perceptual_features_learn_the_parameters_of_renders(data: datasets.Renders, tmp_path: Path) -> None:
    state = tmp_path / "features.pt"
    loop = perceptual_features.steps(data, state, 200 * 16, 16)
    unexplained = [metrics["unexplained"] for *_, metrics, _ in loop]
    assert sum(unexplained[-10:]) < 0.5 * sum(unexplained[:10])  # of few images, each seen again and again
    network, renders = perceptual_features.frozen(state), data.images(torch.arange(8))
    assert not any(p.requires_grad for p in network.parameters()) and not network.training
    assert network.difference(renders, renders) == 0 < network.difference(renders.roll(1, dims=0), renders)


def test_the_perceptual_loss_reduces_the_difference_of_features(data: datasets.Renders, tmp_path: Path) -> None:
    list(perceptual_features.steps(data, tmp_path / "features.pt", 100 * 16, 16))
    network, rows, differences = perceptual_features.frozen(tmp_path / "features.pt"), torch.arange(CHUNK), []
    for weight in (0.0, 1.0):
        options: dict[str, Any] = {"lr": 0.01, "ema_images": 20, "features": network, "perceptual_weight": weight}
        state = tmp_path / f"{weight}.pt"
        *_, (_, _, generator) = generator_supervised.steps(MODEL, data, state, 60 * BATCH, BATCH, **options)
        with torch.no_grad():
            generated = generator(generator_supervised.codes(generator, list(data.people(rows))))
            differences.append(network.difference(generated, data.images(rows)).item())
    assert differences[1] < 0.95 * differences[0]


@pytest.mark.parametrize("layers", [3, 6])
def test_fit_mapping_maps_noise_to_its_parameters(layers: int) -> None:
    generator = stylegan2.build({**MODEL, "n_mlp": layers})
    synthesis_weight = generator.conv1.conv.weight.clone()
    error = generator_supervised.fit_mapping(generator)
    assert error < 0.05 and torch.equal(generator.conv1.conv.weight, synthesis_weight)
    z = torch.randn(2000, D, generator=torch.Generator().manual_seed(7))
    with torch.no_grad():
        mapped = (generator.half().float().mapping(z) - generator_supervised.SHIFT) @ generator_supervised.projection(
            D
        )  # as the weights are kept
    parameters = portrait_parameters.parameters_of_noise(z)
    assert ((mapped - parameters).square().mean() / parameters.var()).item() < 0.05
    start = portrait_parameters.parameter_count() - sum(map(len, FREQUENCIES.values()))
    for frequencies in FREQUENCIES.values():
        nearest, expected_value = (x[:, start : start + len(frequencies)].argmax(dim=1) for x in (mapped, parameters))
        assert (nearest == expected_value).float().mean() > 0.93
        start += len(frequencies)


def test_trait_gain_scales_the_parameters_of_its_traits_alone() -> None:
    generator, z = stylegan2.build(MODEL), torch.randn(2000, D, generator=torch.Generator().manual_seed(7))
    numbers = []
    for trait_gain in ({}, {"age": 2.0, "pose": 0.5}):
        generator_supervised.fit_mapping(generator, trait_gain)
        with torch.no_grad():
            numbers.append((generator.mapping(z) - generator_supervised.SHIFT) @ generator_supervised.projection(D))
    start = portrait_parameters.parameter_count() - sum(map(len, FREQUENCIES.values()))
    factors = [
        torch.full((len(frequencies),), {"age": 2.0, "pose": 0.5}.get(name, 1.0))
        for name, frequencies in FREQUENCIES.items()
    ]
    expected = numbers[0] * torch.cat([torch.ones(start), *factors])
    errors = (numbers[1] - expected).square().mean(dim=0) / expected.var(dim=0)
    assert errors.max() < 0.05 and (numbers[0] - expected).square().mean(dim=0).max() > 0.2


def test_trait_gain_of_an_unknown_trait_is_refused() -> None:
    with pytest.raises(InputError, match=r"there is no trait agee \(did you mean 'age'\?\)"):
        generator_supervised.fit_mapping(stylegan2.build(MODEL), {"agee": 2.0})


def test_a_mapping_network_of_two_layers_is_refused() -> None:
    with pytest.raises(InputError, match="n_mlp is 2: a mapping network of portraits needs three layers or more"):
        generator_supervised.fit_mapping(stylegan2.build({**MODEL, "n_mlp": 2}))


def test_adversarial_training_starts_from_the_supervised_weights(data: datasets.Renders, tmp_path: Path) -> None:
    finished, state = tmp_path / "supervised.pt", tmp_path / "generator.pt"
    *_, (_, _, supervised) = generator_supervised.steps(MODEL, data, finished, BATCH, BATCH)
    generator_supervised.write_adversarial_state(MODEL, finished, state, {})
    initial = torch.load(state, weights_only=True)
    assert initial["step"] == 0
    for key, value in supervised.state_dict().items():
        if not key.startswith("style."):
            assert torch.equal(initial["g"][key], value), key
    loop = gan.steps(MODEL, data, state, 3 * BATCH, BATCH, supervised=True, settle=BATCH, ema_images=1e-9)
    seen = [(metrics, generator.to_rgb1.conv.weight.clone()) for _, metrics, generator in loop]
    assert "loss_g" not in seen[0][0] and "difference" in seen[1][0]  # at first only the discriminator is trained
    torch.testing.assert_close(seen[0][1], supervised.to_rgb1.conv.weight)
    assert not torch.equal(seen[1][1], seen[2][1])


def test_rendered_domains_are_supervised_at_both_sizes_and_resume_from_the_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import tiny_project
    import yaml

    from pipeline.storage import domains

    monkeypatch.setenv("DELTASPACE_ROOT", str(tmp_path))
    model = {key: value for key, value in MODEL.items() if key != "split"}
    plan = {"model": model, "images": BATCH, "images_half_size": BATCH, "images_supervised": BATCH, "batch": BATCH}
    plan["perceptual"] = {"images": 128, "weight": 0.1}
    content = {**tiny_project.DOMAIN, "defaults": {"pretrain": {"generator": {**plan, "renders": CHUNK}}}}
    (tmp_path / "domains").mkdir()
    (tmp_path / "domains/tiny.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    job = Training(domains.load("tiny", tmp_path), tmp_path, "generator")
    states = tmp_path / "data/pretraining/tiny"
    gan.train(job)
    assert {path.stem for path in states.glob("*.pt")} == {"features", "generator", "generator-copy", "generator-half"}
    weights = tmp_path / "data/pretrained/tiny"
    assert {path.stem for path in weights.glob("*.safetensors")} == {"generator", "discriminator"}
    for path in states.glob("*.pt"):
        path.unlink()
    gan.train(replace(job, images=2 * BATCH))
    assert {path.stem for path in states.glob("*.pt")} == {"generator"}
    assert torch.load(states / "generator.pt", weights_only=True)["step"] == 2


def test_an_encoder_first_learns_the_codes_of_renders_alone(data: datasets.Renders, tmp_path: Path) -> None:
    generator = stylegan2.build(MODEL)
    generator.w_mean.fill_(generator_supervised.SHIFT)
    discriminator = Discriminator(R, MODEL["discriminator"])
    numbers = {"resolution": R, "widths": [4, 6, 8, 8], "rows": generator.num_ws, "style_dim": D}
    loop = encoder.steps(
        numbers,
        generator,
        discriminator,
        None,
        data,
        tmp_path / "e4e.pt",
        60 * BATCH,
        BATCH,
        known_codes=True,
        codes_first=59 * BATCH,
    )
    history = [metrics for _, metrics, _ in loop]
    assert all(set(metrics) == {"latent"} for metrics in history[:-1]) and "pixel" in history[-1]
    assert sum(metrics["latent"] for metrics in history[-11:-1]) < 0.99 * sum(
        metrics["latent"] for metrics in history[:10]
    )
