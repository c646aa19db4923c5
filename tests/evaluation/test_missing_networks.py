"""Evaluation with wrong edits, without some networks, and of photographs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import known_people
import pytest
import torch
from known_people import FIRST, MISSING, PEOPLE, PROMPTS, PerfectOracle, World, change, stored, unchanged, write

from pipeline.evaluation import benchmark, bootstrap, counterfactuals
from pipeline.evaluation.counterfactuals import TestSet
from pipeline.runtime.errors import InputError
from pipeline.storage import artefacts, images

world = known_people.world  # fixture


def test_edits_of_a_prompt_that_the_domain_does_not_have_are_refused(world: World) -> None:
    path = world.edits("deltaedit_g", change)
    world.networks.domain.prompts = PROMPTS[1:]
    with pytest.raises(InputError, match="'face with red hair' is no prompt of the domain"):
        world.evaluate({"deltaedit_g": path})


def test_an_editor_with_two_strengths_is_refused(world: World) -> None:
    path = world.edits("deltaedit_g", change)
    table = stored(path)
    table["strength"][1] = 0.5
    write(path, table)
    with pytest.raises(InputError, match="one setting"):
        world.evaluate({"deltaedit_g": path})


def test_a_prompt_that_the_oracle_cannot_read_is_refused(world: World) -> None:
    path = world.edits("deltaedit_g", change)
    world.networks.oracle.attributes = {"hair_colour": ("red",)}
    with pytest.raises(InputError, match=r"no attribute 'hair_color' \(did you mean 'hair_colour'"):
        world.evaluate({"deltaedit_g": path})


def test_edits_of_photographs_are_compared_with_their_input(world: World) -> None:
    paths = {"identity_editor": world.edits("i", unchanged), "deltaedit_g": world.edits("g", change)}
    world.test = replace(world.test, people=None)
    world.networks.oracle = None
    numbers = world.evaluate(paths).metrics
    assert numbers["oracle"] == {} and numbers["clip"] == {}
    row = numbers["editors"]["identity_editor"]
    assert row["psnr_input"]["value"] == 60 and row["images"]["value"] == PEOPLE
    assert row["clip_direction"]["value"] == 0 and "reached" not in row
    assert numbers["editors"]["deltaedit_g"]["psnr_input"]["value"] < 60


def test_edits_of_photographs_have_fid_and_lpips_where_the_networks_exist(world: World) -> None:
    from torchmetrics.image.fid import _compute_fid

    paths = {"identity_editor": world.edits("i", unchanged), "deltaedit_g": world.edits("g", change)}
    world.test = replace(world.test, people=None)
    world.networks.oracle, seen = None, PerfectOracle().features
    world.networks.inception = seen
    world.networks.lpips = lambda a, b: (a - b).abs().flatten(1).mean(1)
    rows = world.evaluate(paths).metrics["editors"]
    assert rows["identity_editor"]["lpips_input"] == {"value": 0, "low": 0, "high": 0}
    assert rows["identity_editor"]["fid"]["value"] < 0.05  # the same images, each three times
    edited = torch.stack(
        [images.decode_png(png) for png, text in zip(*pngs(paths["deltaedit_g"]), strict=True) if text]
    )
    source = world.test.images.repeat_interleave(len(PROMPTS), 0)
    assert rows["deltaedit_g"]["lpips_input"]["value"] == pytest.approx((edited - source).abs().mean().item(), abs=1e-5)
    features = [seen(batch).double() for batch in (edited, world.test.images)]
    moments = [statistic for part_features in features for statistic in (part_features.mean(0), part_features.T.cov())]
    assert rows["deltaedit_g"]["fid"]["value"] == pytest.approx(_compute_fid(*moments).item(), rel=1e-4)
    assert rows["deltaedit_g"]["fid"]["low"] is None


def pngs(path: Path) -> tuple[list[bytes], list[str]]:
    table = stored(path)
    return list(table["image"]), list(table["prompt"])


def test_metrics_of_an_absent_network_have_a_note_and_the_others_stay(world: World) -> None:
    paths = {"identity_editor": world.edits("i", unchanged), "deltaedit_g": world.edits("g", change)}
    complete = world.evaluate(paths)
    world.networks.identity = None
    numbers = world.evaluate(paths).metrics
    for name in ("identity", "identity_input"):
        gone = numbers["editors"]["deltaedit_g"][name]
        assert gone == {"value": None, "low": None, "high": None, "note": MISSING.format("identity")}
    assert numbers["inversion"]["identity"]["note"] == MISSING.format("identity")
    same = [name for name in complete.metrics["editors"]["deltaedit_g"] if name not in ("prompts", "heldout")]
    for name in set(same) - {"identity", "identity_input"}:
        assert numbers["editors"]["deltaedit_g"][name] == complete.metrics["editors"]["deltaedit_g"][name], name

    for name in ("reached_oracle2", "kept_oracle2"):  # there is no second oracle here
        assert numbers["editors"]["deltaedit_g"][name]["note"] == MISSING.format("oracle2")
    assert numbers["oracle2"] == {"mean": bootstrap.absent(MISSING.format("oracle2"))}

    world.networks.oracle = None
    outcome = world.evaluate(paths)
    row = outcome.metrics["editors"]["deltaedit_g"]
    for name in ("reached", "kept", "fid_oracle"):
        assert row[name]["note"] == MISSING.format("oracle") and row[name]["value"] is None
    for name in ("psnr", "counterfactual_gain", "gain_over_input", "psnr_input", "images"):
        assert row[name] == complete.metrics["editors"]["deltaedit_g"][name], name
    assert outcome.metrics["oracle"] == {"mean": bootstrap.absent(MISSING.format("oracle"))}
    assert outcome.metrics["clip"]["zero_shot"] == complete.metrics["clip"]["zero_shot"]
    assert row["clip_direction"]["value"] is not None
    assert outcome.summary["deltaedit_g_reached"] is None and outcome.summary["oracle"] is None
    benchmark.save(outcome, artefacts.DomainPaths("portraits", world.folder / "saved"))


def test_photographs_have_notes_for_absent_networks(world: World) -> None:
    paths = {"deltaedit_g": world.edits("g", change)}
    world.test = replace(world.test, people=None)
    world.networks.oracle = world.networks.identity = None
    row = world.evaluate(paths).metrics["editors"]["deltaedit_g"]
    needs = {"fid": "inception", "lpips_input": "lpips", "identity_input": "identity"}
    assert {name: leaf["note"] for name, leaf in row.items() if "note" in leaf} == {
        name: MISSING.format(network) for name, network in needs.items()
    }
    assert row["psnr_input"]["value"] is not None and row["clip_direction"]["value"] is not None


def test_a_test_set_with_too_few_images_is_refused(world: World) -> None:
    with pytest.raises(ValueError, match="every id needs one image"):
        TestSet(world.test.ids, world.test.images[1:], None)


def test_cases_leave_out_unknown_ids(world: World) -> None:
    requested_pairs = [(1, PROMPTS[0].text), (FIRST, PROMPTS[1].text)]
    cases = counterfactuals.cases(world.test, requested_pairs, {prompt.text: prompt for prompt in PROMPTS})
    assert all(case.row_id == FIRST for case in cases)
