"""The Delta Mapper: the released architecture key by key, its forward pass by hand, both losses, and its training."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline import delta_mapper
from pipeline.delta_mapper import DeltaMapper, MapperParams, Trainer, condition, losses, pairs, validate
from pipeline.models.stylespace import StyleLayout
from pipeline.runtime.errors import InputError
from pipeline.storage import artefacts
from pipeline.training import Curve, fit, generator_for

DIMS_1024 = (*[512] * 10, 256, 256, 128, 128, 64, 64, 32)
LAYOUT, E = StyleLayout((6, 6, 5, 5, 5, 4, 3), split=(2, 5)), 9  # coarse 2 x 6, medium 3 x 5, fine 4 + 3
PARAMS = MapperParams(steps=200, batch=32, lr=0.5, lr_decay=0.0, loss="code", source="both", rows=None, seed=3)


# ---------------------------------------------------------------- architecture


def key_table() -> dict[str, tuple[int, ...]]:
    """`net_face.pth`, key by key: four layers each, counted from 1 behind a norm and from 0 without one."""
    table: dict[str, tuple[int, ...]] = {}
    for level, width in (("coarse", 512), ("medium", 512), ("fine", 2464)):
        for kind, inputs, first in (("sm", width, 1), ("cm", 1024, 1), ("fm", 2 * width, 0)):
            for layer in range(4):
                name = f"{kind}_{level}.mapping.{first + layer}"
                table[f"{name}.weight"] = (width, width if layer else inputs)
                table[f"{name}.bias"] = (width,)
    return table


def test_the_mapper_of_a_1024_pixel_generator_is_the_released_one_key_by_key() -> None:
    released = DeltaMapper(StyleLayout(DIMS_1024), 512)
    state = released.state_dict()
    assert {name: tuple(tensor.shape) for name, tensor in state.items()} == key_table()
    assert len(state) == 72
    assert sum(parameter.numel() for parameter in released.parameters()) == 82_760_576


def test_initial_weights_are_divided_by_lr_mul() -> None:
    torch.manual_seed(0)
    weight = DeltaMapper(StyleLayout((64, 64)), 32).sm_coarse.mapping[1].weight  # type: ignore[union-attr, index]
    assert weight.std().item() == pytest.approx(100, rel=0.1)  # type: ignore[union-attr, operator]


def stack(state: dict[str, Tensor], name: str, first: int, x: Tensor) -> Tensor:
    """Four times sqrt(2) lrelu(x W' + b'), by the keys of a released file; a norm over axis 1 before if first is 1."""
    if first == 1:
        x = x / (x.square().mean(dim=1, keepdim=True) + 1e-8).sqrt()
    for layer in range(first, first + 4):
        weight, bias = state[f"{name}.mapping.{layer}.weight"], state[f"{name}.mapping.{layer}.bias"]
        x = x @ weight.T * (0.01 / math.sqrt(weight.shape[1])) + bias * 0.01
        x = math.sqrt(2) * torch.where(x > 0, x, 0.2 * x)
    return x


def test_forward_is_the_published_formula_with_the_norm_over_the_layers_of_a_level() -> None:
    torch.manual_seed(0)
    net = DeltaMapper(LAYOUT, E).double()
    state = net.state_dict()
    s, conditions = torch.randn(4, LAYOUT.size, dtype=torch.float64), torch.randn(4, 2 * E, dtype=torch.float64)
    parts, start = [], 0
    for level, count, width in (("coarse", 2, 6), ("medium", 3, 5)):
        x = s[:, start : start + count * width].reshape(4, count, width)
        style = stack(state, f"sm_{level}", 1, x)  # axis 1 of [B,layers,width] is the layers: the quirk
        text = stack(state, f"cm_{level}", 1, conditions)
        both = torch.stack([torch.cat([style[:, i], text], dim=1) for i in range(count)], dim=1)
        parts.append(stack(state, f"fm_{level}", 0, both).reshape(4, -1))
        start += count * width
    style, text = stack(state, "sm_fine", 1, s[:, start:]), stack(state, "cm_fine", 1, conditions)
    parts.append(stack(state, "fm_fine", 0, torch.cat([style, text], dim=1)))
    torch.testing.assert_close(net(s, conditions), torch.cat(parts, dim=1))


def test_scaling_one_channel_in_all_layers_of_a_level_changes_nothing() -> None:
    """What the norm's axis means: only the ratio of a channel's values across the layers counts."""
    torch.manual_seed(0)
    net, s, conditions = (
        DeltaMapper(LAYOUT, E).double(),
        torch.randn(2, LAYOUT.size).double(),
        torch.randn(2, 2 * E).double(),
    )
    scaled = s.clone()
    scaled[:, [1, 7]] *= 3  # channel 1 of both coarse layers
    torch.testing.assert_close(net(scaled, conditions), net(s, conditions))
    scaled[:, 7] *= 2
    assert not torch.allclose(net(scaled, conditions), net(s, conditions))


def test_levels_are_independent() -> None:
    torch.manual_seed(0)
    net, s, conditions = DeltaMapper(LAYOUT, E), torch.randn(1, LAYOUT.size), torch.randn(1, 2 * E)
    before = net(s, conditions)
    for level, channels in LAYOUT.levels.items():
        moved = s.clone()
        moved[:, channels] += torch.randn(channels.stop - channels.start)
        changed = (net(moved, conditions) != before)[0]
        assert changed[channels].any(), level
        changed[channels] = False
        assert not changed.any(), level


@pytest.mark.parametrize(
    ("dims", "split", "stacks"),
    [
        ((6, 5, 4, 3), (2, 3), {"sm_coarse": 11, "sm_medium": 4, "sm_fine": 3}),  # unequal widths: one flat vector
        ((6, 6), (3, 7), {"sm_coarse": 6}),
        ((6, 6, 5), (0, 2), {"sm_medium": 6, "sm_fine": 5}),
        ((4, 4, 4, 4), (1, 2), {"sm_coarse": 4, "sm_medium": 4, "sm_fine": 8}),
    ],
)
def test_other_layouts_get_a_stack_per_level_that_exists(dims, split, stacks) -> None:
    layout = StyleLayout(dims, split)
    net = DeltaMapper(layout, E)
    found = {name: tensor.shape[0] for name, tensor in net.state_dict().items() if name.endswith("mapping.1.weight")}
    assert {name.split(".")[0]: width for name, width in found.items() if name.startswith("sm_")} == stacks
    assert net(torch.randn(3, layout.size), torch.randn(3, 2 * E)).shape == (3, layout.size)


def test_metadata_of_a_file_builds_the_mapper_again() -> None:
    net = DeltaMapper(LAYOUT, E)
    again = delta_mapper.build(delta_mapper.numbers(LAYOUT, E))
    again.load_state_dict(net.state_dict())
    s, conditions = torch.randn(2, LAYOUT.size), torch.randn(2, 2 * E)
    assert torch.equal(again(s, conditions), net(s, conditions))


# ---------------------------------------------------------------- condition, losses, validation


def test_condition_is_the_unit_source_and_the_unit_difference() -> None:
    clip, unit = 7 * torch.randn(3, E), F.normalize(torch.randn(E), dim=0)
    conditions = condition(clip, unit)
    assert conditions.shape == (3, 2 * E)
    for row in range(3):
        torch.testing.assert_close(conditions[row, :E], clip[row] / clip[row].norm())
        assert torch.equal(conditions[row, E:], unit)
    assert torch.equal(condition(clip, unit.expand(3, -1)), conditions)


def test_pairs_have_the_normalised_difference_of_unit_embeddings_and_the_plain_difference_of_s() -> None:
    s, clip = torch.randn(5, LAYOUT.size).half(), 4 * torch.randn(5, E)
    first, second = torch.tensor([0, 3, 2]), torch.tensor([4, 1, 2])
    start, conditions, target = pairs(s, clip, first, second)
    assert torch.equal(start, s[first].float()) and torch.equal(target, s[second].float() - s[first].float())
    units = clip / clip.norm(dim=1, keepdim=True)
    for row, (i, j) in enumerate(zip((0, 3), (4, 1), strict=True)):
        difference = units[j] - units[i]
        torch.testing.assert_close(conditions[row], torch.cat([units[i], difference / difference.norm()]))
    assert not conditions[2, E:].any() and not target[2].any()  # a row with itself: no difference, and not nan


def test_losses_equal_hand_computed_values() -> None:
    predicted, target = torch.tensor([[3.0, 4.0], [1.0, 0.0]]), torch.tensor([[0.0, 0.0], [0.0, 2.0]])
    found = losses(predicted, target)
    assert found["code"].item() == pytest.approx((9 + 16 + 1 + 4) / 4)
    assert found["paper"].item() == pytest.approx((5 + math.sqrt(5)) / 2)
    assert found["cosine"].item() == pytest.approx(1)
    aligned = losses(torch.tensor([[3.0, 4.0], [5.0, 0.0]]), torch.tensor([[6.0, 8.0], [-1.0, 0.0]]))
    assert aligned["cosine"].item() == pytest.approx(1 - (1 - 1) / 2)


class Lookup(DeltaMapper):
    """Predicts a share of the true difference, looked up by the condition."""

    def __init__(self, s: Tensor, clip: Tensor, share: float) -> None:
        super().__init__(LAYOUT, E)
        difference = s[:, None].float() - s.float()
        _, conditions, _ = pairs(s, clip, *torch.cartesian_prod(*[torch.arange(len(s))] * 2).T)
        self.conditions, self.answers, self.share = conditions, -difference.flatten(0, 1), share

    def forward(self, s: Tensor, condition: Tensor) -> Tensor:
        return self.share * self.answers[torch.cdist(condition, self.conditions).argmin(dim=1)]


def test_validation_explains_all_for_a_perfect_mapper_and_nothing_for_a_zero_one() -> None:
    torch.manual_seed(0)
    s, clip = torch.randn(12, LAYOUT.size), torch.randn(12, E)
    perfect = validate(Lookup(s, clip, 1.0), s, clip, count=512)
    assert perfect["explained"] == pytest.approx(1, abs=1e-5) and perfect["val_mse"] == pytest.approx(0, abs=1e-5)
    assert perfect["val_cos"] == pytest.approx(11 / 12, abs=0.05)  # a row paired with itself has no direction
    half, zero = (validate(Lookup(s, clip, share), s, clip, count=512) for share in (0.5, 0.0))
    assert half["explained"] == pytest.approx(0.75, abs=1e-4)
    assert half["val_cos"] == pytest.approx(perfect["val_cos"], abs=1e-5)
    assert zero["explained"] == pytest.approx(0, abs=1e-6) and zero["val_cos"] == 0
    assert validate(Lookup(s, clip, 0.5), s, clip, count=512) == half


# ---------------------------------------------------------------- training


def world(count: int = 400) -> tuple[Tensor, Tensor]:
    """Codes whose s and CLIP feature are two linear views of the same hidden traits."""
    generator = torch.Generator().manual_seed(0)
    traits = torch.randn(count, 2, generator=generator)
    views = [torch.randn(2, dim, generator=generator) for dim in (LAYOUT.size, E)]
    return (traits @ views[0] + 1).half(), traits @ views[1] + torch.randn(E, generator=generator)


@pytest.mark.parametrize("loss", ["code", "paper"])
def test_training_explains_differences_of_unseen_pairs(loss: str) -> None:
    s, clip = world()
    trainer = Trainer(s[:350], clip[:350], LAYOUT, replace(PARAMS, loss=loss))
    measured = [metrics for _, metrics in fit(trainer.step, trainer.parts, PARAMS.steps)]
    first, last = (sum(m[loss] for m in part) / 20 for part in (measured[:20], measured[-20:]))
    assert last < 0.9 * first
    assert set(measured[0]) == {"code", "paper", "cosine"}
    fresh = DeltaMapper(LAYOUT, E)
    assert validate(trainer.mapper, s[350:], clip[350:])["explained"] > 0.35
    assert validate(fresh, s[350:], clip[350:])["explained"] < 0.1


def test_learning_rate_rises_stays_and_falls_to_zero_or_is_constant() -> None:
    params = replace(PARAMS, steps=1000, lr=2.0, lr_decay=0.4)
    rates = [params.rate(number) for number in range(1000)]
    assert rates[0] == pytest.approx(0.04) and set(rates[50:601]) == {2.0}
    assert rates[800] == pytest.approx(1.0) and 0 < rates[999] < 0.01
    assert {replace(params, lr_decay=0.0).rate(number) for number in range(1000)} == {2.0}
    with pytest.raises(ValueError, match=r"lr_decay is 1\.5"):
        replace(params, lr_decay=1.5)


def test_the_two_losses_give_different_weights() -> None:
    s, clip = world()
    states = []
    for loss in ("code", "paper"):
        trainer = Trainer(s, clip, LAYOUT, replace(PARAMS, loss=loss))
        list(fit(trainer.step, trainer.parts, 3))
        states.append(torch.cat([p.flatten() for p in trainer.mapper.parameters()]))
    assert not torch.equal(*states)


def test_an_unknown_loss_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"mapper\.loss is 'l3': 'code' or 'paper' is expected"):
        Trainer(*world(8), LAYOUT, replace(PARAMS, loss="l3"))


def table(path: Path, fakes: list[int], reals: list[int]) -> Path:
    """Codes of training rows by their ids, fakes first."""
    ids, source = fakes + reals, ["fake"] * len(fakes) + ["real"] * len(reals)
    codes = {"s": torch.zeros(len(ids), 3).half(), "clip": torch.zeros(len(ids), 2)}
    columns = {"id": ids, "source": source, "split": ["train"] * len(ids), **codes}
    artefacts.write_shard(path / artefacts.shard_name(0), "codes", columns, {})
    return path


def test_siblings_are_fakes_of_neighbouring_ids(tmp_path: Path) -> None:
    codes = table(tmp_path, fakes=[1, 2, 3, 5, 6, 8, 9], reals=[10, 11])

    def found(**settings: Any) -> list[list[int]]:
        rows = delta_mapper.siblings(codes, replace(PARAMS, **{"sibling_share": 0.5, **settings}), redrawn=0.1)
        assert rows is not None
        return sorted(rows.tolist())

    assert found() == [[1, 2], [2, 1], [5, 6], [6, 5]]  # rows of the ids 2 and 3, 8 and 9
    assert found(rows=6) == [[1, 2], [2, 1]]
    assert delta_mapper.siblings(codes, PARAMS, redrawn=0.1) is None


def test_a_sibling_share_without_siblings_is_refused(tmp_path: Path) -> None:
    codes, asked = table(tmp_path, fakes=[1, 2, 3], reals=[4, 5]), replace(PARAMS, sibling_share=0.5)
    with pytest.raises(InputError, match=r"sibling_share is 0\.5, but sample\.redrawn is 1"):
        delta_mapper.siblings(codes, asked, redrawn=1.0)
    with pytest.raises(InputError, match=r"sibling_share is 0\.5, but no two of 2 codes are of siblings"):
        delta_mapper.siblings(codes, replace(asked, rows=2), redrawn=0.1)
    with pytest.raises(ValueError, match=r"sibling_share is 0\.5, but source is 'real'"):
        replace(asked, source="real")
    with pytest.raises(ValueError, match="sibling_share is 2"):
        replace(PARAMS, sibling_share=2.0)


def test_the_sibling_share_of_each_batch_is_siblings_and_the_rest_is_unchanged() -> None:
    s, clip = world(40)
    known = torch.tensor([[2, 3], [3, 2], [38, 39]])
    for part, count in ((0.25, 8), (0.01, 1), (1.0, 32), (0.0, 0)):
        trainer = Trainer(s, clip, LAYOUT, replace(PARAMS, sibling_share=part), siblings=known)
        first, second = trainer.draw(7)
        chance = generator_for(PARAMS.seed, 7)
        plain = [torch.randint(40, (32,), generator=chance) for _ in range(2)]
        assert all(torch.equal(a[count:], b[count:]) for a, b in zip((first, second), plain, strict=True))
        assert {*zip(first[:count].tolist(), second[:count].tolist(), strict=True)} <= {(2, 3), (3, 2), (38, 39)}


def test_training_on_siblings_lowers_the_error_on_siblings() -> None:
    """Two traits of four change between siblings, and CLIP sees them with two others that are louder."""
    generator = torch.Generator().manual_seed(0)
    traits = torch.randn(400, 4, generator=generator)
    traits[1::2, 2:] = traits[0::2, 2:]
    views = [torch.randn(4, dim, generator=generator) for dim in (LAYOUT.size, E)]
    loud = torch.tensor([1.0, 1.0, 3.0, 3.0])
    s, clip = (traits @ views[0]).half(), traits * loud @ views[1]
    rows = torch.arange(400).view(-1, 2)
    errors = []
    for part in (0.0, 1.0):
        trainer = Trainer(
            s, clip, LAYOUT, replace(PARAMS, sibling_share=part), siblings=torch.cat([rows, rows.flip(1)])
        )
        list(fit(trainer.step, trainer.parts, PARAMS.steps))
        style, conditions, target = pairs(s, clip, *rows.T)
        with torch.no_grad():
            errors.append(1 - F.cosine_similarity(trainer.mapper(style, conditions), target, dim=1).mean())
    assert errors[1] < 0.8 * errors[0]


def test_a_run_killed_anywhere_and_resumed_ends_with_the_bytes_of_an_undisturbed_one(tmp_path: Path) -> None:
    s, clip = world()

    def run(path: Path | None, stop: int | None = None) -> tuple[list[Tensor], list]:
        trainer, curve = Trainer(s, clip, LAYOUT, replace(PARAMS, steps=23, lr_decay=0.5)), Curve(every=5)
        for done, _ in fit(trainer.step, trainer.parts, 23, path, every=4, curve=curve):
            if done == stop:
                break
        return list(trainer.mapper.state_dict().values()), curve.rows

    whole, rows = run(None)
    for stop in (2, 4, 9, 22):
        path = tmp_path / f"{stop}.pt"
        run(path, stop)
        resumed, rows_again = run(path)
        assert all(torch.equal(a, b) for a, b in zip(resumed, whole, strict=True)), stop
        assert rows_again == rows and [row["step"] for row in rows] == [5, 10, 15, 20]


def test_the_seed_fixes_the_mapper() -> None:
    s, clip = world()
    states = []
    for seed in (3, 3, 4):
        trainer = Trainer(s, clip, LAYOUT, replace(PARAMS, seed=seed))
        list(fit(trainer.step, trainer.parts, 3))
        states.append(torch.cat([p.flatten() for p in trainer.mapper.parameters()]))
    assert torch.equal(states[0], states[1]) and not torch.equal(states[0], states[2])


@pytest.mark.usefixtures("bfloat16_pays")
def test_bfloat16_reaches_the_same_loss_and_keeps_weights_in_float32() -> None:
    s, clip = world(200)
    found = {}
    for precision in ("float32", "bfloat16"):
        trainer = Trainer(s[:150], clip[:150], LAYOUT, replace(PARAMS, precision=precision))
        losses = [trainer.step(number)["cosine"] for number in range(60)]
        found[precision] = sum(losses[-20:]) / 20
        assert {weight.dtype for weight in trainer.mapper.parameters()} == {torch.float32}
    assert found["bfloat16"] != found["float32"]
    assert abs(found["bfloat16"] - found["float32"]) < 0.05
