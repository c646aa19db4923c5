"""Tuning: every combination is a trial, on validation images alone, with the benchmark's metrics."""

from __future__ import annotations

import copy
import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml

from deltaspace.cli import app, options
from pipeline import delta_mapper, editors, portraits
from pipeline.editors import deltaedit_gp
from pipeline.editors._diffusion import WholeImageParams
from pipeline.editors.deltaedit_g import Params
from pipeline.evaluation import metrics, tuning
from pipeline.networks import Networks
from pipeline.report import charts
from pipeline.runtime.errors import InputError
from pipeline.storage import artefacts, domains
from pipeline.values import Direction, Edited, Prepared

PEOPLE = 5  # of the 6 that the tiny world validates on, rows 14 to 19


@pytest.fixture(scope="module")
def networks(tiny: Path) -> Networks:
    return Networks(domains.load("tiny", tiny), tiny)


@pytest.fixture(scope="module")
def validated(networks: Networks):
    return tuning.validation_set(networks, PEOPLE)


def test_the_grid_has_every_combination_once_and_keeps_other_settings() -> None:
    tried = list(tuning.grid(Params(1.0, threshold=0.3), {"strength": [0.5, 2]}))
    assert tried == [Params(0.5, threshold=0.3), Params(2.0, threshold=0.3)]
    assert len(list(tuning.grid(Params(1.0, threshold=0.3), {"strength": [0.5, 2], "threshold": [0, 0.1, 0.2]}))) == 6


def test_values_of_the_command_line_become_numbers_booleans_lists_and_null() -> None:
    values = options.grid(
        ["strength=1,0.5", "same_sign=true,false", "max_sigma=2,null", "solver=ddim", "candidate_strengths=0.5+1,1e+0"]
    )
    lists = values.pop("candidate_strengths")
    assert values == {"strength": [1, 0.5], "same_sign": [True, False], "max_sigma": [2, None], "solver": ["ddim"]}
    assert lists == [[0.5, 1], 1.0]
    settings = deltaedit_gp.Params(1.0, (1.0,), 0.9, 0.5, None, threshold=0.1, same_sign=True)
    (listed,) = tuning.grid(settings, {"candidate_strengths": lists[:1]})
    assert listed.candidate_strengths == (0.5, 1.0)
    assert [one.max_sigma for one in tuning.grid(Params(1.0, threshold=0.3), {"max_sigma": values["max_sigma"]})] == [
        2.0,
        None,
    ]


def test_an_unknown_setting_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(InputError, match=r"no setting 'treshold'.*threshold"):
        list(tuning.grid(Params(1.0, threshold=0.3), {"treshold": [1]}))


def test_a_value_of_another_type_or_an_impossible_one_is_refused() -> None:
    for values in ({"strength": ["strong"]}, {"same_sign": [2]}):
        with pytest.raises(InputError, match=f"--try.{next(iter(values))} is"):
            list(tuning.grid(Params(1.0, threshold=0.3), values))
    sampling = WholeImageParams(1.0, 10, "belm", 1.0, threshold=0.1)
    assert [one.solver for one in tuning.grid(sampling, {"solver": ["ddim", "belm"]})] == ["ddim", "belm"]
    with pytest.raises(InputError, match="do not divide 1000"):
        list(tuning.grid(sampling, {"steps": [7]}))


def test_the_images_are_validation_images(validated) -> None:
    source, goals = validated
    assert source.people == tuple(portraits.sample(row) for row in range(14, 14 + PEOPLE))
    assert {row for row, _ in goals.index} <= set(range(PEOPLE))
    assert source.residual is not None and source.residual.residual.any()


def test_counterfactuals_are_of_the_prompts_of_one_split(networks: Networks) -> None:
    first, *others = networks.domain.prompts
    other = copy.copy(networks)
    other.domain = replace(networks.domain, prompts=(replace(first, split="heldout"), *others))
    for split, texts in (("heldout", {first.text}), ("seen", {prompt.text for prompt in others})):
        _, goals = tuning.validation_set(other, PEOPLE, split=split)
        assert {text for _, text in goals.index} == texts


def test_too_many_images_unknown_splits_and_photographs_are_refused(networks: Networks, tiny: Path) -> None:
    with pytest.raises(InputError, match=r"7 validation images are asked for, prepare\.val is 6"):
        tuning.validation_set(networks, 7)
    with pytest.raises(InputError, match="tiny has no prompts of split 'unheard': there are "):
        tuning.validation_set(networks, 1, split="unheard")
    church = Networks(domains.load("church", Path(__file__).parents[2]), tiny)
    with pytest.raises(InputError, match="church has photographs"):
        tuning.validation_set(church, 1)


def test_the_reference_editors_have_the_expected_metrics(networks: Networks, validated) -> None:
    """The counterfactual is the best possible edit; `reached` of it is what the oracle reads from the renders."""
    _, goals = validated
    scores = {}
    for name in ("counterfactual", "identity_editor"):
        settings = tuning.settings_of(name, networks.root, networks.domain)
        scores[name] = tuning.run_trial(networks, name, settings, validated)
    assert scores["counterfactual"].psnr > scores["identity_editor"].psnr
    assert scores["identity_editor"].round_trip == 0
    oracle = torch.stack(list(networks.oracle.predict(goals.images(range(len(goals.index)))).values()), dim=1)
    right = metrics.reached(oracle, goals.values, goals.asked)
    by_prompt: dict[str, list[float]] = {}
    for (_, text), number in goals.index.items():
        by_prompt.setdefault(text, []).append(right[number].item())
    expected = sum(sum(values) / len(values) for values in by_prompt.values()) / len(by_prompt)
    assert scores["counterfactual"].reached == pytest.approx(expected)


def test_the_command_prints_every_trial_and_the_best_last(
    tiny: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setenv("DELTASPACE_ROOT", str(tiny))
    words = ["tune", "counterfactual", "--domain", "tiny", "--images", "3", "--try", "strength=1,1", "--json"]
    assert app.run([*words, "--out", str(tmp_path / "trials.csv")]) == 0
    assert len((tmp_path / "trials.csv").read_text().splitlines()) == 3
    output = json.loads(capsys.readouterr().out)
    assert output["images"] == 3 and len(output["trials"]) == 2
    assert output["trials"][0]["score"] <= output["trials"][-1]["score"]


def test_source_words_outside_the_vocabulary_of_clip_get_a_warning(
    tiny: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DELTASPACE_ROOT", str(tiny))
    words = ["tune", "identity_editor", "--domain", "tiny", "--images", "3", "--source", "face,qwertz", "--json"]
    assert app.run(words) == 0
    captured = capsys.readouterr()
    warnings = [line for line in captured.err.splitlines() if line.startswith("warning: ")]
    assert len(warnings) == 1 and "was never taught 1 of 1 words ('qwertz')" in warnings[0]
    assert [f"warning: {line}" for line in json.loads(captured.out)["warnings"]] == warnings


def test_several_editors_and_styles_share_one_table(
    tiny: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setenv("DELTASPACE_ROOT", str(tiny))
    words = ["tune", "counterfactual,identity_editor", "--domain", "tiny", "--images", "3", "--style", "painted,inked"]
    assert app.run([*words, "--out", str(tmp_path / "both.csv")]) == 0
    table = charts.trials(tmp_path / "both.csv")
    assert table["varied"] == ["editor", "style"] and len(table["rows"]) == 4
    by = {(row["editor"], row["style"]): row for row in table["rows"]}
    assert (
        float(by["counterfactual", "inked"]["psnr"]) == metrics.PSNR_CEILING
    )  # counterfactuals are rendered in the same style
    assert by["counterfactual", "painted"]["distance"] != by["counterfactual", "inked"]["distance"]
    assert capsys.readouterr().out.count(" inked: reached") == 2


def test_trials_with_other_source_words_are_labelled(
    networks: Networks, validated, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, goals = validated
    conditions = []

    class Recording:
        def fit(self, condition):
            conditions.append((condition.source, condition.target))
            return Direction(condition, torch.zeros(1))

        def prepare(self, source):
            return Prepared(source)

        def edit(self, prepared, direction, strength):
            return Edited(prepared.source.image)

    monkeypatch.setattr(editors, "load", lambda *_: Recording())
    settings = Params(1.0, threshold=0.1)
    trials = [tuning.run_trial(networks, "any", settings, validated, words) for words in (None, "a face", "hair")]
    texts = list(dict.fromkeys(text for _, text in goals.index))
    assert conditions == [(words, text) for words in (networks.domain.neutral, "a face", "hair") for text in texts]
    tuning.save(tmp_path / "source.csv", len(source), "combined", [("painted", trial) for trial in trials[1:]])
    table = charts.trials(tmp_path / "source.csv")
    assert table["split"] == "combined"
    assert table["varied"] == ["source"] and [row["source"] for row in table["rows"]] == ["a face", "hair"]
    assert "source" not in trials[0].settings


@pytest.fixture
def coded(tiny: Path, networks: Networks, tmp_path: Path) -> Networks:
    """The tiny project with a section `mapper`, and codes whose s says which source they are of."""
    shutil.copytree(tiny, tmp_path, dirs_exist_ok=True)
    content = yaml.safe_load((tmp_path / "params.yaml").read_text())
    section = {"steps": 3, "batch": 8, "lr": 0.5, "lr_decay": 0.0, "loss": "code", "source": "both"}
    section |= {"rows": None, "seed": 0, "precision": "float32", "sibling_share": 0.0}
    content |= {"mapper": section, "sample": {**content["sample"], "redrawn": 0.5}}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(content))
    project = Networks(networks.domain, tmp_path)
    size, dim = networks.generator.layout.size, networks.clip.dim
    for number, source in enumerate(("fake", "real")):
        chance = torch.Generator().manual_seed(number)
        codes = {"s": torch.full((16, size), 1.0 + number).half(), "clip": torch.randn(16, dim, generator=chance)}
        columns = {"id": list(range(16)), "source": [source] * 16, "split": ["train"] * 12 + ["val"] * 4, **codes}
        artefacts.write_shard(project.paths.codes / artefacts.shard_name(number), "codes", columns, {})
    return project


def test_a_mapper_is_trained_for_every_combination_on_its_rows(
    coded: Networks, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    class Trainer(delta_mapper.Trainer):
        def __init__(self, *arguments) -> None:
            super().__init__(*arguments)
            seen.append((self.s[:, 0].tolist(), self.params))

    monkeypatch.setattr(delta_mapper, "Trainer", Trainer)
    recipes = list(tuning.mapper_candidates(coded, {"source": ["both", "real"], "rows": [14, 5]}))
    assert not seen  # nothing is trained before its turn
    made = [make() for _, make in recipes]
    assert [settings for settings, _ in recipes] == [
        {"mapper.source": source, "mapper.rows": rows} for source in ("both", "real") for rows in (14, 5)
    ]
    assert [rows for rows, _ in seen] == [[1.0] * 12 + [2.0] * 2, [1.0] * 5, [2.0] * 12, [2.0] * 5]
    assert all(params.steps == 3 and params.lr == 0.5 for _, params in seen)
    weights = [next(iter(nets.mapper.state_dict().values())) for nets in made]
    assert not torch.equal(weights[0], weights[2]) and made[0].generator is coded.generator
    assert not any(parameter.requires_grad for nets in made for parameter in nets.mapper.parameters())


def test_a_mapper_can_be_trained_on_siblings_among_the_fakes(coded: Networks, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    drawn = delta_mapper.Trainer.draw
    monkeypatch.setattr(delta_mapper.Trainer, "draw", lambda *arguments: seen.append(drawn(*arguments)) or seen[-1])
    ((settings, make),) = tuning.mapper_candidates(coded, {"sibling_share": [1.0]})
    make()
    assert settings == {"mapper.sibling_share": 1.0} and len(seen) == 3  # steps
    for first, second in seen:  # of 12 fakes, which come before the 12 reals
        assert torch.equal(first ^ 1, second) and first.max() < 12


def test_without_mapper_settings_the_networks_stay(networks: Networks, coded: Networks) -> None:
    ((settings, make),) = tuning.mapper_candidates(networks, {})
    assert settings == {} and make() is networks
    with pytest.raises(InputError, match=r"no setting 'row'.*rows"):
        list(tuning.mapper_candidates(coded, {"row": [1]}))
    with pytest.raises(InputError, match=r"--train.source is 'faces'.*one of fake, real, both is expected"):
        list(tuning.mapper_candidates(coded, {"source": ["faces"]}))
    shutil.rmtree(coded.paths.codes)
    with pytest.raises(InputError, match=r"run `dvc repro cache@tiny`"):
        list(tuning.mapper_candidates(coded, {"rows": [1]}))


def test_distance_and_agreement_are_zero_for_unchanged_images(networks: Networks, validated) -> None:
    settings = tuning.settings_of("identity_editor", networks.root, networks.domain)
    still = tuning.run_trial(networks, "identity_editor", settings, validated)
    assert still.distance == pytest.approx(0, abs=1e-5) and still.agreement == 0


@pytest.mark.parametrize(
    "words",
    [
        ["--style", "oil"],
        ["--style", ","],
        ["--source", ","],
        ["--train", "rows"],
        ["--try", "strength"],
        ["--try", "strength=a"],
        ["--try", "strength=1,,2"],
        ["--try", "x=1"],
    ],
)
def test_bad_arguments_are_refused_in_one_line(
    words: list[str], tiny: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DELTASPACE_ROOT", str(tiny))
    assert app.run(["tune", "deltaedit_g", "--domain", "tiny", *words]) == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1
