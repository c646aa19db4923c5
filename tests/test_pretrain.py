"""The trainings of a domain's networks: each goes on where it was killed, and ends in a file the pipeline reads."""

from __future__ import annotations

import functools
import math
import shutil
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_project
import torch
import yaml
from torch import Tensor, nn
from torch.nn import functional as F

from kernels.upfirdn2d import binomial_kernel, upfirdn2d
from pipeline import domains, generator, portraits, sampling, weights
from pipeline.backbones import Backbones
from pipeline.domains import Domain
from pipeline.values import InputError
from pretrain import clip, encoder, identity, oracle, renders, session
from pretrain import denoiser as pretrain_denoiser
from pretrain import generator as gan
from pretrain.augment import degrade

R, D, BATCH, CHUNK, PEOPLE = tiny_project.R, tiny_project.D, 8, 24, 5
PARTS = ("generator", "clip", "identity", "oracle", "encoder", "denoiser")  # as they build on one another
GAN = {
    "size": R,
    "style_dim": D,
    "n_mlp": 2,
    "widths": {4: 8, 8: 7, 16: 6},
    "split": [2, 4],
    "discriminator": {16: 4, 8: 6, 4: 9},
}
MODELS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {  # the network's numbers, and options of its training
    "generator": (GAN, {"images_half_size": 21}),  # 21 is no multiple of the batch
    "clip": (tiny_project.CLIP, {}),
    "identity": ({"widths": [6, 8], "dim": 9}, {"people": PEOPLE}),
    "oracle": ({"widths": [6, 8]}, {}),
    "encoder": (tiny_project.ENCODER, {"progressive": [8, 8]}),
    "denoiser": ({"channels": 8, "mult": [1, 2], "attention": [], "time_dim": 16, "style_dim": 12}, {}),
}


@pytest.fixture(scope="module", autouse=True)
def few_pictures(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Small chunks of renders, a short vocabulary, and a project of our own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(renders, "CHUNK", CHUNK)
        patch.setattr(clip, "vocabulary", functools.partial(clip.vocabulary, 200))
        draw = renders.unseen
        patch.setattr(renders, "unseen", lambda count, resolution: draw(min(count, 16), resolution))
        patch.setenv("DELTASPACE_ROOT", str(tmp_path_factory.mktemp("nowhere")))
        yield


def domain_at(root: Path, **changes: Any) -> Domain:
    """The tiny domain with a plan for every training, written into `root`."""
    plans = {
        name: {"model": model, "images": 2 * BATCH + 3, "renders": CHUNK + 1, "batch": BATCH, **options}
        for name, (model, options) in MODELS.items()
    }
    (root / "domains").mkdir(parents=True, exist_ok=True)
    content = {**tiny_project.DOMAIN, "defaults": {"pretrain": plans}, **changes}
    (root / "domains/tiny.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    return domains.load("tiny", root)


@pytest.fixture(scope="module")
def trained(few_pictures: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project in which every training has run for two steps."""
    root = tmp_path_factory.mktemp("trained")
    for name in PARTS:
        import_module(f"pretrain.{name}").train(domain_at(root), root)
    return root


@pytest.fixture
def project(trained: Path, tmp_path: Path) -> Path:
    """A copy of it that a test may change."""
    return Path(shutil.copytree(trained, tmp_path / "project"))


def state_of(root: Path, name: str) -> dict[str, Any]:
    return torch.load(root / f"data/pretraining/tiny/{name}.pt", weights_only=True)


# ---------------------------------------------------------------- every training


@pytest.mark.parametrize("name", PARTS)
def test_a_training_takes_its_steps_and_keeps_its_state(name: str, trained: Path) -> None:
    state = state_of(trained, name)
    assert state["step"] == 2  # 19 pictures are two whole batches
    assert "ema" in state and any(part.startswith("adam") for part in state)


@pytest.mark.parametrize("name", PARTS)
def test_what_was_trained_is_read_by_the_pipeline(name: str, trained: Path) -> None:
    networks = Backbones(domain_at(trained), trained)
    images = torch.rand(3, 3, R, R) * 2 - 1
    outputs: dict[str, Callable[[Any], Tensor]] = {
        "generator": lambda net: net(net.repeat(net.truncate(net.mapping(torch.randn(3, D)), 0.7))),
        "clip": lambda net: torch.cat([net.embed_images(images), net.embed_texts(["face", "red hair", ""])]),
        "identity": lambda net: net(images),
        "oracle": lambda net: torch.cat(list(net(images).values()), dim=1),
        "encoder": lambda net: net(images),
        "denoiser": lambda net: net(
            images, torch.tensor([1, 500, 999]), torch.randn(3, networks.generator.layout.size)
        ),
    }
    network = getattr(networks, name)
    with torch.no_grad():
        assert torch.isfinite(outputs[name](network)).all()
    assert not network.training and not any(parameter.requires_grad for parameter in network.parameters())


@pytest.mark.parametrize("name", PARTS)
def test_the_file_holds_the_averaged_weights_as_half_precision_with_what_builds_them(name: str, trained: Path) -> None:
    path = trained / f"data/pretrained/tiny/{name}.safetensors"
    tensors, meta = weights.load(path)
    averaged = state_of(trained, name)["ema"]
    assert set(averaged) == set(tensors) - {"w_mean"}
    for key, value in averaged.items():
        torch.testing.assert_close(tensors[key], value, atol=1e-3, rtol=1e-3, check_dtype=False)
    floats = sum(value.numel() for value in tensors.values() if value.is_floating_point())
    assert path.stat().st_size < 2 * floats + 60_000  # two bytes a number, and a heading
    assert meta["network"] == name and meta["domain"] == "tiny" and meta["steps"] == 2


@pytest.mark.parametrize("name", PARTS)
def test_a_finished_training_called_again_changes_no_byte(name: str, project: Path) -> None:
    path = project / f"data/pretrained/tiny/{name}.safetensors"
    before = path.read_bytes()
    import_module(f"pretrain.{name}").train(domain_at(project), project)
    assert path.read_bytes() == before


@pytest.mark.parametrize("name", PARTS)
def test_asked_for_more_pictures_it_goes_on(name: str, project: Path) -> None:
    import_module(f"pretrain.{name}").train(domain_at(project), project, images=3 * BATCH)
    assert state_of(project, name)["step"] == 3


@pytest.mark.parametrize("name", ["oracle", "generator"])
def test_started_anew_it_puts_the_old_state_aside(name: str, project: Path) -> None:
    old = project / f"data/pretraining/tiny/{name}.pt"
    before = old.read_bytes()
    import_module(f"pretrain.{name}").train(domain_at(project), project, images=BATCH, resume=False)
    assert state_of(project, name)["step"] == 1
    assert old.with_suffix(".pt.old").read_bytes() == before


@pytest.mark.parametrize("name", PARTS)
def test_without_its_state_it_goes_on_from_the_weights(name: str, project: Path) -> None:
    (project / f"data/pretraining/tiny/{name}.pt").unlink()
    kept, _ = weights.load(project / f"data/pretrained/tiny/{name}.safetensors")
    module = import_module(f"pretrain.{name}")
    module.train(domain_at(project), project)  # which was finished: nothing is to be learnt
    again = state_of(project, name)
    assert again["step"] == 2
    for key, value in again["ema"].items():
        torch.testing.assert_close(value, kept[key], check_dtype=False)
    module.train(domain_at(project), project, images=3 * BATCH)
    state = state_of(project, name)
    assert state["step"] == 3 and any(part.startswith("adam") for part in state)
    part = "d" if name == "generator" else "ema"  # the generator waits for its discriminator to settle
    assert any(not torch.equal(value, again[part][key]) for key, value in state[part].items())


def test_the_generator_goes_on_against_the_discriminator_it_knows(project: Path) -> None:
    known = state_of(project, "generator")["d"]
    for name in ("generator", "generator-half"):
        (project / f"data/pretraining/tiny/{name}.pt").unlink()
    gan.train(domain_at(project), project)
    assert not (project / "data/pretraining/tiny/generator-half.pt").exists()
    for key, value in state_of(project, "generator")["d"].items():
        torch.testing.assert_close(value, known[key], atol=1e-3, rtol=1e-3)


def test_weights_of_other_numbers_are_no_start(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (project / "data/pretraining/tiny/oracle.pt").unlink()
    plan = {"model": {"widths": [7, 9]}, "images": BATCH, "renders": CHUNK, "batch": BATCH}
    oracle.train(domain_at(project, defaults={"pretrain": {"oracle": plan}}), project)
    assert "oracle starts anew" in capsys.readouterr().out
    assert state_of(project, "oracle")["step"] == 1


def test_a_damaged_state_is_named_in_one_line(project: Path) -> None:
    path = project / "data/pretraining/tiny/oracle.pt"
    path.write_bytes(path.read_bytes()[:-900])
    with pytest.raises(InputError, match=r"oracle\.pt is damaged") as caught:
        oracle.train(domain_at(project), project, images=3 * BATCH)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", PARTS)
def test_promoting_what_was_never_trained_names_the_command(name: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=rf"{name}\.pt is missing: run `deltaspace pretrain tiny {name}`"):
        import_module(f"pretrain.{name}").promote(domain_at(tmp_path), tmp_path)


@pytest.mark.parametrize("name", PARTS)
def test_a_domain_without_a_plan_is_told_so(name: str, project: Path) -> None:
    with pytest.raises(InputError, match=rf"domains/tiny.yaml has no defaults.pretrain.{name}"):
        import_module(f"pretrain.{name}").train(domain_at(project, defaults={}), project)


@pytest.mark.parametrize("name", session.TOLD)
def test_what_a_renderer_tells_cannot_be_learnt_from_photographs(name: str, project: Path) -> None:
    train = import_module(f"pretrain.{name}").train
    with pytest.raises(InputError, match="domain 'tiny' draws no pictures of its own"):
        train(domain_at(project, renderer=None), project)


def loop_of(name: str, root: Path, state: Path, seconds: float | None = None) -> Iterator[tuple[int, Any, nn.Module]]:
    """Four steps of a training on the networks of `root`, with its state in `state`."""
    domain, images = domain_at(root), 4 * BATCH
    plan, networks = session.plan(domain, name, images), Backbones(domain, root)
    data = renders.Renders(root, R, PEOPLE if name == "identity" else None)
    options: dict[str, Any] = {"batch": BATCH, "seconds": seconds}
    if name == "generator":
        smaller = root / "data/pretraining/tiny/generator-half.pt"
        return gan.steps(plan.model, data, state, images, smaller=smaller, settle=2 * BATCH, **options)
    if name == "encoder":
        judge = encoder.judge(domain, root)
        nets = networks.generator, judge, networks.identity
        return encoder.steps(plan.model, *nets, data, state, images, progressive=(BATCH, BATCH), **options)
    if name == "denoiser":
        spread = sampling.spread(networks.generator)
        nets = networks.encoder, networks.generator
        return pretrain_denoiser.steps(plan.model, data, *nets, *spread, state, images, **options)
    people = {"people": PEOPLE} if name == "identity" else {}
    return import_module(f"pretrain.{name}").steps(plan.model, data, state, images, **people, **options)


@pytest.mark.parametrize("name", PARTS)
def test_stopped_after_every_step_it_ends_with_the_bytes_of_an_undisturbed_run(
    name: str, trained: Path, tmp_path: Path
) -> None:
    whole, pieces = tmp_path / "whole.pt", tmp_path / "pieces.pt"
    assert [seen for seen, *_ in loop_of(name, trained, whole)] == [8, 16, 24, 32]
    for expected in (8, 16, 24, 32):
        torch.manual_seed(expected)  # what else the process drew must not matter
        assert [seen for seen, *_ in loop_of(name, trained, pieces, seconds=0)] == [expected]
    one, other = torch.load(whole, weights_only=True), torch.load(pieces, weights_only=True)
    assert one.keys() == other.keys()
    for part in one.keys() - {"step"}:
        for a, b in zip(leaves(one[part]), leaves(other[part]), strict=True):
            assert torch.equal(a, b), part


def leaves(state: Any) -> list[Tensor]:
    """All tensors and numbers of a nested state, in order."""
    if isinstance(state, Tensor):
        return [state]
    if isinstance(state, dict):
        return [leaf for key in state for leaf in leaves(state[key])]
    if isinstance(state, list | tuple):
        return [leaf for part in state for leaf in leaves(part)]
    return [torch.tensor(float(state))] if isinstance(state, int | float) else []


@pytest.mark.parametrize("name", ["identity", "oracle", "clip"])
def test_training_learns_the_pictures_it_is_shown(name: str, trained: Path, tmp_path: Path) -> None:
    plan = session.plan(domain_at(trained), name)
    data = renders.Renders(trained, R, PEOPLE if name == "identity" else None)
    people = {"people": PEOPLE, "margin": 0.0} if name == "identity" else {"warmup": 16} if name == "clip" else {}
    steps = import_module(f"pretrain.{name}").steps
    loop = steps(plan.model, data, tmp_path / "state.pt", 40 * 16, batch=16, lr=5e-3, **people)
    losses = [metrics["loss"] for _, metrics, _ in loop]
    assert np.mean(losses[-8:]) < 0.95 * np.mean(losses[:8])


# ---------------------------------------------------------------- the generator's two sizes


def test_out_of_time_at_half_the_size_nothing_is_promoted_and_the_next_call_goes_on(
    tmp_path: Path, trained: Path
) -> None:
    shutil.copytree(trained / "data/pretraining/portraits", tmp_path / "data/pretraining/portraits")
    domain, file = domain_at(tmp_path), tmp_path / "data/pretrained/tiny/generator.safetensors"
    gan.train(domain, tmp_path, minutes=1e-9)
    assert state_of(tmp_path, "generator-half")["step"] == 1
    assert not file.exists() and not (tmp_path / "data/pretraining/tiny/generator.pt").exists()
    gan.train(domain, tmp_path, minutes=1e-9)  # ends the half size, and begins the whole
    assert state_of(tmp_path, "generator-half")["step"] == 2
    assert state_of(tmp_path, "generator")["step"] == 1 and file.exists()
    gan.train(domain, tmp_path)
    assert state_of(tmp_path, "generator")["step"] == 2


def test_halving_leaves_out_the_largest_resolution_of_both_networks() -> None:
    half = gan.halved({**GAN, "widths": {"4": 8, "8": 7, "16": 6}})
    assert half == {**GAN, "size": 8, "widths": {4: 8, 8: 7}, "discriminator": {8: 6, 4: 9}}
    assert generator.build(half).size == 8


def grown() -> tuple[Any, Any, generator.Generator, gan.Discriminator]:
    """Networks of half the size with random weights, and those grown from them."""
    torch.manual_seed(3)
    half = gan.halved(GAN)
    small, small_d = generator.build(half), gan.Discriminator(8, half["discriminator"])
    with torch.no_grad():
        for parameter in (*small.parameters(), *small_d.parameters()):
            parameter.add_(0.2 * torch.randn_like(parameter))
    whole, whole_d = generator.build(GAN), gan.Discriminator(R, GAN["discriminator"])
    gan.grow({"ema": small.state_dict(), "d": small_d.state_dict()}, whole, whole_d)
    return small, small_d, whole, whole_d


def test_the_first_pictures_of_a_grown_generator_are_the_smaller_ones_enlarged() -> None:
    small, _, whole, _ = grown()
    z = torch.randn(4, D)
    with torch.no_grad():
        w = whole.mapping(z)
        torch.testing.assert_close(w, small.mapping(z))
        enlarged = upfirdn2d(small(small.repeat(w)), binomial_kernel(2), up=2, pad=(2, 1))
        torch.testing.assert_close(whole(whole.repeat(w)), enlarged, atol=1e-5, rtol=1e-5)


def test_the_new_colours_of_a_grown_generator_can_still_learn() -> None:
    _, _, whole, _ = grown()
    (whole(whole.repeat(whole.mapping(torch.randn(2, D)))) * torch.randn(2, 3, R, R)).sum().backward()
    assert whole.to_rgbs[-1].conv.weight.grad.abs().max() > 0  # type: ignore[union-attr, operator]


def test_a_grown_discriminator_judges_features_of_half_the_size_as_before() -> None:
    _, small_d, _, whole_d = grown()
    x = torch.randn(4, 6, 8, 8)
    with torch.no_grad():
        for old, new in zip(small_d.blocks, whole_d.blocks[1:], strict=True):
            torch.testing.assert_close(new(x), old(x))
    for name in ("conv.weight", "linear.weight", "out.bias"):
        assert torch.equal(whole_d.state_dict()[name], small_d.state_dict()[name])
    assert whole_d.from_rgb.weight.shape[0] == 4


def test_the_discriminator_learns_alone_until_the_new_resolution_has_settled(trained: Path, tmp_path: Path) -> None:
    loop = loop_of("generator", trained, tmp_path / "state.pt")
    weights_after = []
    for _ in loop:
        frame = loop.gi_frame.f_locals  # type: ignore[attr-defined]
        networks = frame["generator"], frame["discriminator"]
        weights_after.append([torch.cat([p.detach().flatten() for p in net.parameters()]) for net in networks])
    (g1, d1), (g2, d2), (g3, d3), _ = weights_after
    assert torch.equal(g1, g2) and not torch.equal(g2, g3)
    assert not torch.equal(d1, d2) and not torch.equal(d2, d3)


def test_the_mean_w_is_the_average_of_many_mapped_codes() -> None:
    torch.manual_seed(0)
    made = generator.build(GAN)
    with torch.no_grad():
        many = made.mapping(torch.randn(50_000, D)).mean(dim=0)
    torch.testing.assert_close(gan.mean_w(made), many, atol=0.06, rtol=0)
    assert torch.equal(gan.mean_w(made), gan.mean_w(made))


# ---------------------------------------------------------------- the discriminator


def test_the_discriminator_sees_how_alike_the_pictures_of_a_group_are() -> None:
    torch.manual_seed(0)
    net = gan.Discriminator(R, GAN["discriminator"])
    seen: dict[str, Tensor] = {}
    net.conv.register_forward_pre_hook(lambda _, inputs: seen.update(x=inputs[0]))
    images = torch.randn(8, 3, R, R)
    assert net(images).shape == (8,)
    features = net.blocks(net.from_rgb(images))
    for i in range(8):  # 4 to a group: pictures i, i + 2, i + 4, i + 6
        group = features[[(i + 2 * k) % 8 for k in range(4)]]
        spread = (group.var(dim=0, unbiased=False) + 1e-8).sqrt().mean()
        torch.testing.assert_close(seen["x"][i, -1], spread.expand(4, 4))
    net(images[:1].expand(8, -1, -1, -1))
    assert seen["x"][:, -1].max() < 1e-3  # all the same: no spread


@pytest.mark.parametrize("taps", [1, 3])
def test_a_downward_convolution_is_a_blur_and_every_second_result(taps: int) -> None:
    torch.manual_seed(0)
    conv = gan.EqualConv(5, 6, taps, down=True, activate=False).double()
    x = torch.randn(2, 5, 8, 8, dtype=torch.float64)
    line = torch.tensor([1, 3, 3, 1], dtype=torch.float64) / 8
    blur = torch.outer(line, line).expand(5, 1, 4, 4)
    pad = 1 if taps == 1 else 2
    blurred = F.conv2d(F.pad(x, (pad,) * 4), blur, groups=5)
    expected = F.conv2d(blurred, conv.weight / math.sqrt(5 * taps**2))[:, :, ::2, ::2]
    assert conv(x).shape == (2, 6, 4, 4)
    torch.testing.assert_close(conv(x), expected, atol=1e-6, rtol=1e-6)


def test_the_gradient_penalty_can_be_differentiated_again() -> None:
    net = gan.Discriminator(R, GAN["discriminator"])
    images = torch.randn(4, 3, R, R, requires_grad=True)
    (slope,) = torch.autograd.grad(net(images).sum(), images, create_graph=True)
    slope.square().sum().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for n, p in net.named_parameters() if "weight" in n)


# ---------------------------------------------------------------- the other losses


def test_the_arcface_loss_by_hand() -> None:
    angles = np.array([[0.4, 1.2, 2.0], [1.0, 0.7, 1.5]])
    cosine, label = torch.from_numpy(np.cos(angles)), torch.tensor([0, 2])
    expected = 0.0
    for row, own in enumerate(label.tolist()):
        logits = [8.0 * math.cos(angle + (0.3 if k == own else 0.0)) for k, angle in enumerate(angles[row])]
        expected += (math.log(sum(math.exp(value) for value in logits)) - logits[own]) / 2
    assert identity.arcface(cosine, label, margin=0.3, scale=8.0).item() == pytest.approx(expected)
    plain = F.cross_entropy(8.0 * cosine, label)
    assert identity.arcface(cosine, label, margin=0.0, scale=8.0).item() == pytest.approx(plain.item(), rel=1e-5)
    assert identity.arcface(cosine, label, 0.5, 8.0) > identity.arcface(cosine, label, 0.3, 8.0) > plain


def test_the_arcface_loss_has_a_slope_even_at_a_perfect_match() -> None:
    cosine = torch.tensor([[1.0, -1.0], [1.0, -1.0]], requires_grad=True)
    identity.arcface(cosine, torch.tensor([0, 1]), 0.3, 24.0).backward()
    assert cosine.grad is not None and torch.isfinite(cosine.grad).all()


def test_what_a_picture_cannot_show_teaches_the_oracle_nothing() -> None:
    people = [portraits.sample(row) for row in range(60)]
    labels = oracle.labels(people)
    hidden = 0
    for i, person in enumerate(people):
        for name, seen in portraits.visible(person).items():
            value = labels[name][i].item()
            hidden += not seen
            assert value == (portraits.ATTRIBUTES[name].index(portraits.attributes(person)[name]) if seen else -100)
    assert hidden > 5
    logits = torch.randn(60, len(portraits.ATTRIBUTES["bangs"]), requires_grad=True)
    F.cross_entropy(logits, labels["bangs"], ignore_index=oracle.HIDDEN).backward()
    assert logits.grad is not None and torch.equal(logits.grad.abs().sum(dim=1) == 0, labels["bangs"] == oracle.HIDDEN)


def test_what_clip_cannot_read_yet_is_what_hard_captions_name(trained: Path) -> None:
    people = list(renders.Renders(trained, R).people(torch.arange(40)))
    places = [(name, value) for name, values in portraits.ATTRIBUTES.items() for value in values]
    said = {
        portraits.in_a_phrase("face", p): place for place in places for p in portraits.PHRASES[place[0]][place[1]][0]
    }

    class Reader:
        """Knows the attributes `learnt` without error, and nothing of the rest."""

        def __init__(self, *learnt: str) -> None:
            self.learnt = learnt

        def place(self, name: str, value: str) -> Tensor:
            return (
                torch.eye(len(places))[places.index((name, value))] if name in self.learnt else torch.ones(len(places))
            )

        def embed_images(self, images: Tensor) -> Tensor:
            truths = [portraits.attributes(person) for person in people]
            return torch.stack([sum(self.place(name, truth[name]) for name in self.learnt) for truth in truths])  # type: ignore[misc]

        def embed_texts(self, texts: list[str]) -> Tensor:
            return torch.stack([self.place(*said[text]) for text in texts])

    learnt = ("hair_color", "background", "skin")
    found = clip.unlearnt(Reader(*learnt), torch.zeros(40, 3, R, R), people)  # type: ignore[arg-type]
    assert found is not None and not set(found) & set(learnt) and {"expression", "facial_hair", "lips"} <= set(found)
    assert clip.unlearnt(Reader(*portraits.ATTRIBUTES), torch.zeros(40, 3, R, R), people) is None  # type: ignore[arg-type]


def test_the_vocabulary_is_the_words_of_training_captions() -> None:
    known = clip.vocabulary()
    assert known == sorted(set(known)) and {"face", "hair"} <= set(known)
    rng = np.random.default_rng(9)
    caption = portraits.caption(portraits.sample(renders.FIRST_ID), rng, "train")
    assert caption and "elderly" not in known  # a word that is held out of all training


def test_rows_of_latent_codes_are_judged_one_by_one_and_features_are_unit_per_pixel() -> None:
    torch.manual_seed(0)
    assert encoder.LatentDiscriminator(D)(torch.randn(5, D)).shape == (5,)
    judge = gan.Discriminator(32, {32: 4, 16: 5, 8: 6, 4: 7})
    maps = encoder.feature_maps(judge, torch.randn(2, 3, 32, 32))
    assert [tuple(m.shape) for m in maps] == [(2, 5, 16, 16), (2, 6, 8, 8), (2, 7, 4, 4)]
    for features in maps:
        torch.testing.assert_close(features.norm(dim=1), torch.ones(2, *features.shape[2:]))


def test_the_encoder_is_judged_by_the_generators_own_opponent_where_it_is_still_there(project: Path) -> None:
    judge = encoder.judge(domain_at(project), project)
    trained_weights = state_of(project, "generator")["d"]
    for name, value in judge.state_dict().items():
        torch.testing.assert_close(value, trained_weights[name], atol=1e-3, rtol=1e-3)
    (project / "data/pretrained/tiny/discriminator.safetensors").unlink()
    assert encoder.judge(domain_at(project), project).from_rgb.weight.shape == judge.from_rgb.weight.shape


def test_the_encoder_begins_at_the_mean_code(trained: Path, tmp_path: Path) -> None:
    list(loop_of("encoder", trained, tmp_path / "state.pt"))
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    mean = Backbones(domain_at(trained), trained).generator.w_mean
    for part in ("encoder", "ema"):
        torch.testing.assert_close(state[part]["latent_avg"], mean.expand(6, D))


# ---------------------------------------------------------------- pictures


def test_renders_are_the_training_people_in_order(trained: Path) -> None:
    data = renders.Renders(trained, R)
    assert len(data) == 2 * CHUNK  # 25 asked for, whole chunks made
    rows = torch.tensor([0, 30, 7])
    for image, person, row in zip(data.images(rows), data.people(rows), rows.tolist(), strict=True):
        assert person == portraits.sample(renders.FIRST_ID + row)
        drawn = torch.from_numpy(portraits.render(person, R)).permute(2, 0, 1)
        assert torch.equal(((image + 1) * 127.5).round().byte(), drawn)
        assert image.min() >= -1 and image.max() <= 1


def test_with_few_people_each_is_met_again_in_other_circumstances(trained: Path) -> None:
    data = renders.Renders(trained, R, PEOPLE)
    first, again = data.people(torch.tensor([1, 1 + PEOPLE]))
    assert first.identity == again.identity == portraits.sample(renders.FIRST_ID + 1).identity
    assert first.traits != again.traits and first.look != again.look
    images = data.images(torch.tensor([1, 1 + PEOPLE]))
    assert not torch.equal(images[0], images[1])


def test_finished_chunks_stay_and_new_ones_are_seen_after_a_refresh(project: Path) -> None:
    data, folder = renders.Renders(project, R), renders.folder(project, R)
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    renders.make(project, R, 3 * CHUNK)
    assert len(data) == 2 * CHUNK
    data.refresh()
    assert len(data) == 3 * CHUNK
    assert {name: (folder / name).stat().st_mtime_ns for name in before} == before
    (folder / "00003.partial").write_bytes(b"half")
    (folder / "00004.npy").write_bytes((folder / "00000.npy").read_bytes())  # beyond a gap
    data.refresh()
    assert len(data) == 3 * CHUNK


def test_people_for_the_measure_of_far_pictures_are_neither_trainings_nor_the_benchmarks() -> None:
    images = renders.unseen(3, R)
    drawn = torch.from_numpy(portraits.render(portraits.sample(renders.FIRST_ID - 3), R)).permute(2, 0, 1)
    assert torch.equal(((images[2] + 1) * 127.5).round().byte(), drawn)


def test_flaws_are_small_differ_from_picture_to_picture_and_stay_in_range() -> None:
    images = (torch.rand(1, 3, 32, 32) * 1.6 - 0.8).expand(16, -1, -1, -1)
    before = images.clone()
    torch.manual_seed(0)
    flawed = degrade(images)
    assert flawed.shape == images.shape and flawed.abs().max() <= 1
    assert torch.equal(images, before)
    assert len({tuple(image.flatten()[:20].tolist()) for image in flawed}) == 16
    torch.manual_seed(0)
    assert torch.equal(degrade(images), flawed)
    flat = degrade(torch.full((64, 3, 16, 16), 0.3))
    assert (flat.mean(dim=(1, 2, 3)) - 0.3).abs().mean() < 0.1
