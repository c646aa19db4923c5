"""Benchmark on portraits whose edits are known beforehand, and so is every number."""

from __future__ import annotations

import json
from typing import Any

import known_people
import pytest
import torch
from known_people import FIRST, PEOPLE, PROMPTS, SIZE, World, applicable, change, stored, unchanged, write

from pipeline import portraits
from pipeline.evaluation import benchmark, edit_measures, editor_metrics, metrics
from pipeline.storage import artefacts, images
from pipeline.storage.domains import Prompt

world = known_people.world  # fixture


# ---------------------------------------------------------------- metrics of editors


def test_counterfactuals_as_edits_score_full_marks(world: World) -> None:
    numbers = world.evaluate({"counterfactual": world.edits("counterfactual", change)}).metrics
    row = numbers["editors"]["counterfactual"]
    assert [row[name]["value"] for name in ("reached", "kept", "identity")] == [1, 1, pytest.approx(1)]
    assert row["psnr"]["value"] == 60 and row["fid_oracle"]["value"] == pytest.approx(0, abs=1e-6)
    assert row["counterfactual_gain"]["value"] > 1 and row["gain_over_input"]["value"] > 1
    assert row["evaluations"]["value"] == 3


def test_unchanged_images_reach_and_gain_zero(world: World) -> None:
    row = world.evaluate({"identity_editor": world.edits("identity_editor", unchanged)}).metrics["editors"][
        "identity_editor"
    ]
    assert row["reached"] == {"value": 0, "low": 0, "high": 0}
    assert row["counterfactual_gain"]["value"] == 0 and row["gain_over_input"]["value"] == 0
    assert row["psnr_input"]["value"] == 60 and row["identity_input"]["value"] == pytest.approx(1)
    assert row["kept"]["value"] == 1
    assert row["fid_oracle"]["value"] > 0


def test_the_second_oracle_has_metrics_of_its_own(world: World) -> None:
    class Blind:
        """The first oracle, which reads red hair as black."""

        attributes, features = world.networks.oracle.attributes, staticmethod(world.networks.oracle.features)

        def logits(self, features: torch.Tensor) -> dict[str, torch.Tensor]:
            logits = world.networks.oracle.logits(features)
            colours = list(self.attributes["hair_color"])
            red = logits["hair_color"][:, colours.index("red")].clone()
            logits["hair_color"][:, colours.index("red")] = 0
            logits["hair_color"][:, colours.index("black")] += red
            return logits

        def predict(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
            return {name: logits.argmax(1) for name, logits in self.logits(self.features(images)).items()}

    path = world.edits("counterfactual", change)
    world.networks.oracle2 = world.networks.oracle
    same = world.evaluate({"counterfactual": path}).metrics
    row = same["editors"]["counterfactual"]
    assert row["reached_oracle2"] == row["reached"] and row["kept_oracle2"] == row["kept"]
    assert same["oracle2"]["largest_difference"]["value"] == 0 and same["oracle2"]["mean"] == same["oracle"]["mean"]

    world.networks.oracle2 = Blind()
    numbers = world.evaluate({"counterfactual": path}).metrics
    row = numbers["editors"]["counterfactual"]
    assert row["reached"]["value"] == 1 and row["reached_oracle2"]["value"] == pytest.approx(2 / 3, abs=1e-6)
    assert numbers["oracle2"]["largest_difference"]["value"] == pytest.approx(1 / 3, abs=1e-6)
    assert numbers["oracle2"]["min"]["value"] < numbers["oracle"]["min"]["value"] == 1
    assert {key: row[key] for key in row if "oracle2" not in key} == {
        key: leaf for key, leaf in same["editors"]["counterfactual"].items() if "oracle2" not in key
    }


def test_only_images_that_a_prompt_applies_to_are_scored(world: World) -> None:
    evaluation = world.evaluate({"counterfactual": world.edits("counterfactual", change)})
    for prompt in PROMPTS:
        ids = evaluation.scores.filter(evaluation.scores["prompt"] == prompt.text)["id"].to_list()
        assert sorted(ids) == applicable(world, prompt)
        assert 0 < len(ids) < PEOPLE
        count = evaluation.metrics["editors"]["counterfactual"]["prompts"][prompt.text]["images"]["value"]
        assert count == len(ids)


def test_reached_is_averaged_over_prompts_not_over_edits(world: World) -> None:
    """An editor of sunglasses alone reaches one prompt of three, however many portraits wear none."""

    def shades(person: portraits.Portrait, prompt: Prompt) -> portraits.Portrait:
        return change(person, prompt) if prompt.attribute == "glasses" else person

    row = world.evaluate({"deltaedit_g": world.edits("deltaedit_g", shades)}).metrics["editors"]["deltaedit_g"]
    assert row["reached"]["value"] == pytest.approx(1 / 3, abs=1e-6)
    assert row["prompts"]["face with sunglasses"]["reached"]["value"] == 1


def test_prompts_of_held_out_words_are_averaged_apart(world: World) -> None:
    """An editor that ignores a held-out synonym keeps its average, and `heldout` is 0."""
    novel = Prompt("face with shades", "glasses", "sunglasses", "heldout")
    world.networks.domain.prompts = (*PROMPTS, novel)

    def deaf(person: portraits.Portrait, prompt: Prompt) -> portraits.Portrait:
        return person if prompt is novel else change(person, prompt)

    path = world.edits("deltaedit_g", deaf, prompts=(*PROMPTS, novel))
    numbers = world.evaluate({"deltaedit_g": path}).metrics
    row = numbers["editors"]["deltaedit_g"]
    assert row["reached"]["value"] == 1 and row["heldout"]["reached"]["value"] == 0
    assert row["fid_oracle"]["value"] == pytest.approx(0, abs=1e-6)
    assert "face with shades" in numbers["clip"]["directions"]


def test_a_prompt_of_several_attributes_is_reached_by_all_of_them_and_averaged_apart(world: World) -> None:
    both = Prompt("face with red hair and shades", "hair_color", "red", "combined", {"glasses": "sunglasses"})
    world.networks.domain.prompts = (*PROMPTS, both)
    for person in world.test.people or ():
        world.networks.oracle.draw(change(person, both))

    def half(person: portraits.Portrait, prompt: Prompt) -> portraits.Portrait:
        asks = dict(list(prompt.asks.items())[:1])
        return portraits.counterfactual(person, asks)

    edits = {
        name: world.edits(name, draw, prompts=(*PROMPTS, both)) for name, draw in (("whole", change), ("half", half))
    }
    evaluation = world.evaluate(edits)
    rows = evaluation.metrics["editors"]
    assert rows["whole"]["combined"]["reached"]["value"] == 1 and rows["half"]["combined"]["reached"]["value"] == 0
    assert rows["half"]["reached"]["value"] == 1 and rows["half"]["combined"]["kept"]["value"] == 1
    ids = [row["id"] for row in evaluation.scores.iter_rows(named=True) if row["prompt"] == both.text]
    for row_id in ids:  # only portraits that all of it applies to
        has = portraits.attributes(portraits.sample(row_id))
        assert has["hair_color"] != "red" and has["glasses"] != "sunglasses" and has["hair_style"] != "bald"
    assert ids


def test_other_changes_lower_kept(world: World) -> None:
    def careless(person: portraits.Portrait, prompt: Prompt) -> portraits.Portrait:
        background = "blue" if portraits.attributes(person)["background"] != "blue" else "pink"
        return portraits.counterfactual(change(person, prompt), {"background": background})

    evaluation = world.evaluate({"deltaedit_g": world.edits("deltaedit_g", careless)})
    row = evaluation.metrics["editors"]["deltaedit_g"]
    assert row["reached"]["value"] == 1
    for score in evaluation.scores.iter_rows(named=True):
        person = portraits.sample(score["id"])
        prompt = next(p for p in PROMPTS if p.text == score["prompt"])
        others = [n for n, seen in portraits.visible(change(person, prompt)).items() if seen and n != prompt.attribute]
        assert score["kept"] == pytest.approx((len(others) - 1) / len(others))


def test_gain_is_relative_to_the_editors_image_at_strength_0(world: World) -> None:
    path = world.edits("deltaedit_g", change)
    grey = images.encode_png(torch.zeros(3, SIZE, SIZE))
    table = stored(path)
    encoded = [grey if prompt == "" else image for prompt, image in zip(table["prompt"], table["image"], strict=True)]
    write(path, {**table, "image": encoded})
    row = world.evaluate({"deltaedit_g": path}).metrics["editors"]["deltaedit_g"]
    assert row["counterfactual_gain"]["value"] > row["gain_over_input"]["value"] > 0


def test_order_of_rows_and_batch_size_do_not_change_metrics(world: World) -> None:
    straight = world.evaluate({"deltaedit_g": world.edits("straight", change)}, batch=5).metrics
    shuffled = world.evaluate({"deltaedit_g": world.edits("shuffled", change, shuffled=True)}, batch=64).metrics
    for name in ("reached", "kept", "identity", "psnr", "fid_oracle", "counterfactual_gain"):
        for key, value in straight["editors"]["deltaedit_g"][name].items():
            assert shuffled["editors"]["deltaedit_g"][name][key] == pytest.approx(value, abs=1e-4), name


def test_editors_scored_in_parallel_get_the_same_metrics(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    edits = {"deltaedit_g": world.edits("g", change), "identity_editor": world.edits("i", unchanged)}
    results = []
    for count in ("1", "3"):
        monkeypatch.setenv("DELTASPACE_WORKERS", count)
        results.append(world.evaluate(edits).metrics)
    assert results[0] == results[1]


def test_editors_may_have_edited_different_numbers_of_images(world: World) -> None:
    edits = {"deltaedit_g": world.edits("g", change), "deltaedit_d": world.edits("d", change, people=6)}
    numbers = world.evaluate(edits).metrics
    scored = {row_id for prompt in PROMPTS for row_id in applicable(world, prompt)}
    assert numbers["editors"]["deltaedit_g"]["images"]["value"] == len(scored) > 6
    assert numbers["editors"]["deltaedit_d"]["images"]["value"] <= 6
    assert numbers["diffusion"]["reconstruction"]["psnr"]["value"] == 60
    assert numbers["diffusion"]["reconstruction"]["mse"]["value"] == 0


def test_masks_and_the_outside_are_measured_by_the_region_of_the_counterfactual(world: World) -> None:
    everywhere, nowhere = torch.ones(1, SIZE, SIZE), torch.zeros(1, SIZE, SIZE)
    edits = {
        "deltaedit_dm": world.edits("all", change, mask=everywhere),
        "diffedit": world.edits("none", unchanged, mask=nowhere),
        "deltaedit_g": world.edits("g", change),
    }
    rows = world.evaluate(edits).metrics["editors"]
    assert world.test.people is not None
    areas = []  # by hand: share of pixels that the counterfactual changes
    for prompt in PROMPTS:
        shares = []
        for row_id in applicable(world, prompt):
            person = world.test.people[row_id - FIRST]
            both = [world.networks.oracle.draw(one) for one in (person, change(person, prompt))]
            shares.append(metrics.changed(both[1][None], both[0][None]).float().mean().item())
        areas.append(sum(shares) / len(shares))
    assert rows["deltaedit_dm"]["mask_iou"]["value"] == pytest.approx(sum(areas) / len(areas), abs=1e-5)
    assert rows["diffedit"]["mask_iou"]["value"] == 0
    assert "mask_iou" not in rows["deltaedit_g"]
    assert rows["deltaedit_g"]["outside_psnr"]["value"] > 50  # the counterfactual but for its faintest pixels
    assert rows["diffedit"]["outside_psnr"]["value"] == 60


# ---------------------------------------------------------------- files


def leaves(node: Any, path: tuple[str, ...] = ()) -> list[tuple[tuple[str, ...], Any]]:
    if isinstance(node, dict) and set(node) - {"note"} == {"value", "low", "high"}:
        return [(path, node)]
    if isinstance(node, dict):
        return [leaf for key, child in node.items() for leaf in leaves(child, (*path, key))]
    return [(path, node)]


def test_every_metric_has_a_value_and_an_interval_or_null(world: World) -> None:
    numbers = world.evaluate(
        {"counterfactual": world.edits("counterfactual", change)}, mapper_validation={"val_cos": 0.7}
    ).metrics
    for path, leaf in leaves(numbers):
        if path != ("domain",):
            assert isinstance(leaf, dict), path
            assert leaf["low"] is None or leaf["low"] <= leaf["high"], path
    assert numbers["mapper"]["val_cos"] == {"value": 0.7, "low": None, "high": None}
    assert numbers["mapper"]["explained"]["value"] is None


def test_the_documented_metrics_are_all_there(world: World) -> None:
    numbers = world.evaluate({"deltaedit_g": world.edits("g", change), "deltaedit_d": world.edits("d", change)}).metrics
    assert {"zero_shot", "chance", "delta_cos_paired", "delta_cos_mismatched"} <= set(numbers["clip"])
    assert {"retrieval_raw", "retrieval_delta", "attribute_direction_cos"} <= set(numbers["clip"])
    assert set(numbers["inversion"]) == {"psnr", "ssim", "mse", "identity", "encoder_psnr"}
    assert set(numbers["mapper"]) == {"val_cos", "val_mse", "explained"}
    assert set(numbers["diffusion"]["reconstruction"]) == {"psnr", "ssim", "mse"}
    agreed = {"reached", "kept", "identity", "psnr", "fid_oracle", "counterfactual_gain", "gain_over_input"}
    assert agreed | {"evaluations", "images"} <= set(numbers["editors"]["deltaedit_g"])


def test_every_measure_of_edits_is_averaged() -> None:
    assert set(editor_metrics.AVERAGED) == set(edit_measures.EDIT_MEASURES)


def test_two_evaluations_write_the_same_bytes(world: World) -> None:
    edits = {"deltaedit_g": world.edits("g", change), "identity_editor": world.edits("i", unchanged)}
    contents = []
    for run in ("one", "two"):
        layout = artefacts.DomainPaths("portraits", world.folder / run)
        benchmark.save(world.evaluate(edits), layout)
        names = (layout.metrics, layout.summary, layout.scores, layout.plots / "prompts.csv")
        contents.append([path.read_bytes() for path in names])
    assert contents[0] == contents[1]
    summary = json.loads(contents[0][1])
    assert summary["deltaedit_g_reached"] == 1 and "identity_editor_reached" not in summary
    assert len(summary) <= 12
    table = artefacts.table(layout.scores)
    assert set(table["editor"]) == {"deltaedit_g", "identity_editor"}


@pytest.mark.usefixtures("bfloat16_pays")
@pytest.mark.parametrize("half", [False, True])
def test_half_precision_is_for_edits_and_never_for_counterfactuals(
    world: World, half: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    edits = {"counterfactual": world.edits("counterfactual", change)}
    seen: dict[str, list[bool]] = {}
    for name, network, method in (
        ("identity", world.networks, "identity"),
        ("oracle", world.networks.oracle, "features"),
    ):
        real = getattr(network, method)

        def watched(images: torch.Tensor, name: str = name, real: Any = real) -> torch.Tensor:
            seen.setdefault(name, []).append(torch.is_autocast_enabled("cpu"))
            return real(images)

        monkeypatch.setattr(network, method, watched)
    world.evaluate(edits, half=half)
    assert {any(calls) for calls in seen.values()} == {half}
    assert all(calls and not all(calls) for calls in (seen["identity"], seen["oracle"]))  # not on counterfactuals
