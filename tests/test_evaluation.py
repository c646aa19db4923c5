"""Evaluation on people whose edits are known beforehand, so that every number is too."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from pipeline import artefacts, evaluation, foundations, images, metrics, portraits, sampler, truth
from pipeline.domains import Prompt
from pipeline.metrics import Draws
from pipeline.truth import TestSet
from pipeline.values import InputError

SIZE, PEOPLE, FIRST = 12, 24, 70_000
PROMPTS = (
    Prompt("face with red hair", "hair_color", "red"),
    Prompt("face with sunglasses", "glasses", "sunglasses"),
    Prompt("face with bangs", "bangs", "yes"),
)
NAMES = tuple(portraits.ATTRIBUTES)
MISSING = "not computed: weights missing at data/pretrained/portraits/{}.safetensors"
Draw = Callable[[portraits.Portrait, Prompt], portraits.Portrait]


class Reader:
    """An oracle that cannot err: it knows every render it may be shown by its 4 x 4 colours, its features."""

    attributes = portraits.ATTRIBUTES

    def __init__(self) -> None:
        self.known: dict[tuple[int, ...], portraits.Portrait] = {}

    def draw(self, person: portraits.Portrait) -> torch.Tensor:
        picture = images.from_uint8(portraits.render(person, SIZE))
        self.known[self.key(self.features(picture[None])[0])] = person
        return picture

    def features(self, pictures: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.avg_pool2d(pictures, SIZE // 4).flatten(1)

    def logits(self, features: torch.Tensor) -> dict[str, torch.Tensor]:
        people = [portraits.attributes(self.known[self.key(row)]) for row in features]
        return {
            name: torch.stack([torch.tensor([value == person[name] for value in values]) for person in people]).float()
            for name, values in self.attributes.items()
        }

    def read(self, pictures: torch.Tensor) -> dict[str, torch.Tensor]:
        return {name: logits.argmax(1) for name, logits in self.logits(self.features(pictures)).items()}

    @staticmethod
    def key(features: torch.Tensor) -> tuple[int, ...]:
        return tuple((features * 1000).round().int().tolist())


class Nearest(Reader):
    """Takes a picture that is nearly a render it knows for that one."""

    def logits(self, features: torch.Tensor) -> dict[str, torch.Tensor]:
        known = torch.tensor(list(self.known)) / 1000
        return super().logits(known[torch.cdist(features, known).argmin(dim=1)])


class Words:
    """A CLIP without sense: pictures are projected, texts are drawn from their letters."""

    dim = 7

    def embed_images(self, pictures: torch.Tensor) -> torch.Tensor:
        matrix = torch.randn(pictures[0].numel(), self.dim, generator=torch.Generator().manual_seed(0))
        return pictures.flatten(1) @ matrix

    def embed_texts(self, texts: list[str]) -> torch.Tensor:
        seeds = [int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") for text in texts]
        rows = [torch.randn(self.dim, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
        return torch.nn.functional.normalize(torch.stack(rows), dim=1)

    def text_feature(self, text: str, templates: tuple[str, ...]) -> torch.Tensor:
        return self.embed_texts([templates[0].format(text)])[0]

    def text_delta(self, source: str, target: str, templates: tuple[str, ...]) -> torch.Tensor:
        return self.text_feature(target, templates) - self.text_feature(source, templates)


def unit(pictures: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.normalize(pictures.flatten(1), dim=1)


@dataclass
class World:
    """Backbones without a network, the people of the test set, and a folder for edits."""

    backbones: Any
    test: TestSet
    folder: Path

    def edits(self, name: str, edit: Draw, strength: float = 1.0, **options: Any) -> Path:
        return write_edits(self, name, edit, strength, **options)

    def evaluate(self, edits: dict[str, Path], **options: Any) -> evaluation.Evaluation:
        return evaluation.evaluate(self.backbones, self.test, edits, **{"repeats": 20, "batch": 7, **options})


@pytest.fixture
def world(tmp_path: Path) -> World:
    reader = Reader()
    people = tuple(portraits.sample(FIRST + i) for i in range(PEOPLE))
    for person in people:
        for prompt in PROMPTS:
            reader.draw(change(person, prompt))
    pictures = torch.stack([reader.draw(person) for person in people])
    shape = (3, SIZE, SIZE)
    backbones = SimpleNamespace(
        domain=SimpleNamespace(name="portraits", prompts=PROMPTS, neutral="face", templates=("{}",)),
        oracle=reader,
        identity=unit,
        clip=Words(),
        encoder=lambda batch: batch.flatten(1).unflatten(1, (2, -1)),
        generator=lambda w: w.flatten(1).unflatten(1, shape),
        device="cpu",
        absent=lambda name: MISSING.format(name) if getattr(backbones, name, None) is None else None,
    )
    return World(backbones, TestSet(tuple(range(FIRST, FIRST + PEOPLE)), pictures, people), tmp_path)


def change(person: portraits.Portrait, prompt: Prompt) -> portraits.Portrait:
    assert prompt.attribute and prompt.value
    return portraits.counterfactual(person, prompt.attribute, prompt.value)


def nothing(person: portraits.Portrait, prompt: Prompt) -> portraits.Portrait:
    return person


def write_edits(
    world: World,
    name: str,
    edit: Draw,
    strength: float,
    shuffled: bool = False,
    people: int = PEOPLE,
    prompts: tuple[Prompt, ...] = PROMPTS,
    mask: torch.Tensor | None = None,
) -> Path:
    assert world.test.people is not None
    draw = world.backbones.oracle.draw
    rows = []
    for row_id, person in list(zip(world.test.ids, world.test.people, strict=True))[:people]:
        rows.append((row_id, "", 0.0, images.encode_png(draw(person))))
        rows += [(row_id, p.text, strength, images.encode_png(draw(edit(person, p)))) for p in prompts]
    if shuffled:
        rows = [rows[i] for i in np.random.default_rng(0).permutation(len(rows))]
    ids, prompts, strengths, pictures = (list(column) for column in zip(*rows, strict=True))
    columns = {
        "id": ids,
        "prompt": prompts,
        "strength": strengths,
        "image": pictures,
        "s": None,
        "mask": None if mask is None else [images.encode_mask(mask)] * len(rows),
        "evaluations": [3] * len(rows),
    }
    write(world.folder / name, columns)
    return world.folder / name


def write(path: Path, columns: dict[str, Any]) -> None:
    artefacts.write_shard(path / artefacts.shard_name(0), "edits", columns, {"domain": "portraits"})


def stored(path: Path) -> dict[str, Any]:
    columns = ("id", "prompt", "strength", "image", "evaluations")
    return artefacts.read(path, "edits", columns) | {"s": None, "mask": None}


def concerned(world: World, prompt: Prompt) -> list[int]:
    """By hand: ids of people who lack the value and would show it."""
    assert world.test.people is not None
    bald, plain = ("bald",), ("short", "long", "curly")
    found = []
    for row_id, person in zip(world.test.ids, world.test.people, strict=True):
        has = portraits.attributes(person)
        hidden = {
            "hair_color": has["hair_style"] in bald,
            "bangs": has["hair_style"] not in plain,
            "glasses": False,
        }
        if has[str(prompt.attribute)] != prompt.value and not hidden[str(prompt.attribute)]:
            found.append(row_id)
    return found


# ---------------------------------------------------------------- what the numbers mean


def test_the_truth_itself_is_perfect(world: World) -> None:
    found = world.evaluate({"counterfactual": world.edits("counterfactual", change)}).metrics
    row = found["editors"]["counterfactual"]
    assert [row[name]["value"] for name in ("reached", "kept", "identity")] == [1, 1, pytest.approx(1)]
    assert row["psnr"]["value"] == 60 and row["fid_oracle"]["value"] == pytest.approx(0, abs=1e-6)
    assert row["counterfactual_gain"]["value"] > 1 and row["gain_over_input"]["value"] > 1
    assert row["evaluations"]["value"] == 3


def test_doing_nothing_reaches_nothing_and_gains_nothing(world: World) -> None:
    row = world.evaluate({"identity_editor": world.edits("identity_editor", nothing)}).metrics["editors"][
        "identity_editor"
    ]
    assert row["reached"] == {"value": 0, "low": 0, "high": 0}
    assert row["counterfactual_gain"]["value"] == 0 and row["gain_over_input"]["value"] == 0
    assert row["psnr_input"]["value"] == 60 and row["identity_input"]["value"] == pytest.approx(1)
    assert row["kept"]["value"] == 1  # all that was not asked for is still there
    assert row["fid_oracle"]["value"] > 0


def test_only_people_whom_a_prompt_concerns_are_scored(world: World) -> None:
    found = world.evaluate({"counterfactual": world.edits("counterfactual", change)})
    for prompt in PROMPTS:
        ids = found.scores.filter(found.scores["prompt"] == prompt.text)["id"].to_list()
        assert sorted(ids) == concerned(world, prompt)
        assert 0 < len(ids) < PEOPLE
        people = found.metrics["editors"]["counterfactual"]["prompts"][prompt.text]["people"]["value"]
        assert people == len(ids)


def test_reached_is_averaged_over_prompts_not_over_edits(world: World) -> None:
    """An editor that can do sunglasses and nothing else reaches one prompt of three, however many people wear none."""

    def shades(person: portraits.Portrait, prompt: Prompt) -> portraits.Portrait:
        return change(person, prompt) if prompt.attribute == "glasses" else person

    row = world.evaluate({"deltaedit_g": world.edits("deltaedit_g", shades)}).metrics["editors"]["deltaedit_g"]
    assert row["reached"]["value"] == pytest.approx(1 / 3, abs=1e-6)
    assert row["prompts"]["face with sunglasses"]["reached"]["value"] == 1


def test_words_clip_never_saw_are_counted_apart(world: World) -> None:
    """An editor deaf to a held-out synonym keeps its average, and the deafness shows under `heldout`."""
    novel = Prompt("face with shades", "glasses", "sunglasses", "heldout")
    world.backbones.domain.prompts = (*PROMPTS, novel)

    def deaf(person: portraits.Portrait, prompt: Prompt) -> portraits.Portrait:
        return person if prompt is novel else change(person, prompt)

    path = world.edits("deltaedit_g", deaf, prompts=(*PROMPTS, novel))
    found = world.evaluate({"deltaedit_g": path}).metrics
    row = found["editors"]["deltaedit_g"]
    assert row["reached"]["value"] == 1 and row["heldout"]["reached"]["value"] == 0
    assert row["fid_oracle"]["value"] == pytest.approx(0, abs=1e-6)
    assert "face with shades" in found["clip"]["directions"]


def test_what_changes_beside_the_prompt_costs_kept(world: World) -> None:
    def careless(person: portraits.Portrait, prompt: Prompt) -> portraits.Portrait:
        background = "blue" if portraits.attributes(person)["background"] != "blue" else "pink"
        return portraits.counterfactual(change(person, prompt), "background", background)

    found = world.evaluate({"deltaedit_g": world.edits("deltaedit_g", careless)})
    row = found.metrics["editors"]["deltaedit_g"]
    assert row["reached"]["value"] == 1
    for score in found.scores.iter_rows(named=True):
        person = portraits.sample(score["id"])
        prompt = next(p for p in PROMPTS if p.text == score["prompt"])
        shown = [n for n, seen in portraits.visible(change(person, prompt)).items() if seen and n != prompt.attribute]
        assert score["kept"] == pytest.approx((len(shown) - 1) / len(shown))


def test_gain_is_counted_from_what_the_editor_makes_of_the_unedited(world: World) -> None:
    path = world.edits("deltaedit_g", change)
    grey = images.encode_png(torch.zeros(3, SIZE, SIZE))
    table = stored(path)
    pictures = [grey if prompt == "" else image for prompt, image in zip(table["prompt"], table["image"], strict=True)]
    write(path, {**table, "image": pictures})
    row = world.evaluate({"deltaedit_g": path}).metrics["editors"]["deltaedit_g"]
    assert row["counterfactual_gain"]["value"] > row["gain_over_input"]["value"] > 0


def test_the_order_of_rows_and_the_batch_change_nothing(world: World) -> None:
    straight = world.evaluate({"deltaedit_g": world.edits("straight", change)}, batch=5).metrics
    shuffled = world.evaluate({"deltaedit_g": world.edits("shuffled", change, shuffled=True)}, batch=64).metrics
    for name in ("reached", "kept", "identity", "psnr", "fid_oracle", "counterfactual_gain"):
        for key, value in straight["editors"]["deltaedit_g"][name].items():
            assert shuffled["editors"]["deltaedit_g"][name][key] == pytest.approx(value, abs=1e-4), name


def test_editors_judged_side_by_side_get_the_numbers_they_get_alone(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    edits = {"deltaedit_g": world.edits("g", change), "identity_editor": world.edits("i", nothing)}
    found = []
    for count in ("1", "3"):
        monkeypatch.setenv("DELTASPACE_WORKERS", count)
        found.append(world.evaluate(edits).metrics)
    assert found[0] == found[1]


def test_fewer_samples_than_people_are_compared_with_as_many(world: World) -> None:
    world.backbones.generator = Painter()
    edits = {"counterfactual": world.edits("counterfactual", change)}
    found = world.evaluate(edits, fakes=world.test.images[:5].flatten(1)).metrics["generator"]
    assert found["precision"]["value"] == 1 and found["attribute_share_error"]["value"] == 0
    few = world.evaluate(edits, fakes=world.test.images[:2].flatten(1)).metrics["generator"]
    assert few["precision"]["value"] is None


def test_an_editor_may_have_fewer_people_than_another(world: World) -> None:
    edits = {"deltaedit_g": world.edits("g", change), "deltaedit_d": world.edits("d", change, people=6)}
    found = world.evaluate(edits).metrics
    scored = {row_id for prompt in PROMPTS for row_id in concerned(world, prompt)}
    assert found["editors"]["deltaedit_g"]["people"]["value"] == len(scored) > 6
    assert found["editors"]["deltaedit_d"]["people"]["value"] <= 6
    assert found["diffusion"]["reconstruction"]["psnr"]["value"] == 60
    assert found["diffusion"]["reconstruction"]["mse"]["value"] == 0


def test_a_mask_is_judged_by_where_the_truth_differs_and_so_is_what_lies_outside(world: World) -> None:
    everywhere, nowhere = torch.ones(1, SIZE, SIZE), torch.zeros(1, SIZE, SIZE)
    edits = {
        "deltaedit_dm": world.edits("all", change, mask=everywhere),
        "diffedit": world.edits("none", nothing, mask=nowhere),
        "deltaedit_g": world.edits("g", change),
    }
    found = world.evaluate(edits).metrics["editors"]
    assert world.test.people is not None
    areas = []  # by hand: the share of pixels that the truth changes
    for prompt in PROMPTS:
        shares = []
        for row_id in concerned(world, prompt):
            person = world.test.people[row_id - FIRST]
            both = [world.backbones.oracle.draw(one) for one in (person, change(person, prompt))]
            shares.append(metrics.changed(both[1][None], both[0][None]).float().mean().item())
        areas.append(sum(shares) / len(shares))
    assert found["deltaedit_dm"]["mask_iou"]["value"] == pytest.approx(sum(areas) / len(areas), abs=1e-5)
    assert found["diffedit"]["mask_iou"]["value"] == 0
    assert "mask_iou" not in found["deltaedit_g"]
    assert found["deltaedit_g"]["outside_psnr"]["value"] > 50  # the truth but for its faintest pixels
    assert found["diffedit"]["outside_psnr"]["value"] == 60


class Listening:
    """Draws what the style's first channels spell, whatever the noise; or keeps the noise, whatever the style."""

    objective = "eps"

    def __init__(self, deaf: bool) -> None:
        self.deaf = deaf

    def __call__(self, x: torch.Tensor, t: torch.Tensor, s: torch.Tensor) -> torch.Tensor:
        signal = sampler.schedulers()[0].alphas_cumprod[t].sqrt()[:, None, None, None]
        noise = (1 - signal.square()).sqrt()
        return torch.zeros_like(x) if self.deaf else (x - signal * s.view_as(x)) / noise


@pytest.mark.parametrize(("deaf", "expected"), [(False, 1), (True, 0)])
def test_style_matters_as_far_as_another_s_style_is_drawn(world: World, deaf: bool, expected: float) -> None:
    pixels = world.test.images.flatten(1)
    nets = world.backbones
    nets.denoiser, nets.s_stats = Listening(deaf), (torch.zeros(pixels.shape[1]), torch.ones(pixels.shape[1]))
    nets.generator.styles = lambda w_plus: w_plus.flatten(1)
    known, nets.oracle = nets.oracle.known, Nearest()
    nets.oracle.known = known
    walk = sampler.Walk(20, "ddim")
    edits = {"deltaedit_d": world.edits("d", change)}
    found = world.evaluate(edits, w_plus=pixels[:, None], walk=walk).metrics["diffusion"]
    assert found["style_matters"]["value"] == pytest.approx(expected, abs=0.02)
    assert found["evaluations_per_edit"]["value"] == 3
    nets.denoiser = None
    without = world.evaluate(edits, w_plus=pixels[:, None], walk=walk).metrics["diffusion"]["style_matters"]
    assert "weights missing" in without["note"]


# ---------------------------------------------------------------- the networks


def test_networks_that_cannot_err_score_full_marks(world: World) -> None:
    found = world.evaluate({"counterfactual": world.edits("counterfactual", change)}).metrics
    assert found["oracle"]["mean"]["value"] == found["oracle"]["min"]["value"] == 1
    assert 0 < found["oracle"]["chance"]["value"] < 0.6
    assert found["inversion"]["psnr"]["value"] == 60
    assert found["inversion"]["ssim"]["value"] == pytest.approx(1)
    assert found["inversion"]["identity"]["value"] == pytest.approx(1)


def test_inversions_are_judged_as_they_are_edited_with_the_encoder_alone_beside_them(world: World) -> None:
    codes = 0.5 * world.backbones.encoder(world.test.images)
    edits = {"counterfactual": world.edits("counterfactual", change)}
    found = world.evaluate(edits, w_plus=codes).metrics["inversion"]
    assert found["encoder_psnr"]["value"] == 60
    expected = -10 * torch.log10((world.test.images / 4).square().mean(dim=(1, 2, 3)))
    assert found["psnr"]["value"] == pytest.approx(expected.mean().item(), abs=1e-3)
    found = world.evaluate(edits, w_plus=codes[:3]).metrics["inversion"]  # of the first people alone
    assert found["psnr"]["value"] == pytest.approx(expected[:3].mean().item(), abs=1e-3)


class Painter:
    """A generator whose codes are pictures."""

    def repeat(self, w: torch.Tensor) -> torch.Tensor:
        return w[:, None].expand(-1, 2, -1)

    def __call__(self, w_plus: torch.Tensor) -> torch.Tensor:
        flat = w_plus[:, 0] if w_plus.shape[2] == 3 * SIZE * SIZE else w_plus.flatten(1)
        return flat.unflatten(1, (3, SIZE, SIZE))


def test_samples_that_are_the_drawn_pictures_cannot_be_told_from_them(world: World) -> None:
    world.backbones.generator = Painter()
    edits = {"counterfactual": world.edits("counterfactual", change)}
    found = world.evaluate(edits, fakes=world.test.images.flatten(1)).metrics["generator"]
    assert found["precision"]["value"] == found["recall"]["value"] == 1
    assert found["fid_oracle"]["value"] == pytest.approx(0, abs=1e-6) and found["fid_floor"]["value"] > 0
    assert found["attribute_share_error"]["value"] == 0


def test_samples_that_are_all_alike_are_found_out(world: World) -> None:
    world.backbones.generator = Painter()
    edits = {"counterfactual": world.edits("counterfactual", change)}
    alike = world.test.images[:1].flatten(1).expand(PEOPLE, -1)
    found = world.evaluate(edits, fakes=alike).metrics["generator"]
    assert found["precision"]["value"] == 1 and found["recall"]["value"] < 0.5
    assert found["fid_oracle"]["value"] > 0
    assert found["attribute_share_error"]["value"] >= 1  # a value that nobody else has, or that nobody has any more


def test_a_face_is_known_again_by_a_network_that_sees_only_who_it_is(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(foundations, "VERIFIED_PEOPLE", 5)
    edits = {"counterfactual": world.edits("counterfactual", change)}
    blind = world.evaluate(edits).metrics["identity"]["auc"]["value"]
    assert 0 <= blind <= 1
    pictures, original = [], portraits.render

    def kept(person: portraits.Portrait, size: int) -> np.ndarray:
        pictures.append((person.identity, original(person, size)))
        return pictures[-1][1]

    monkeypatch.setattr(portraits, "render", kept)
    assert world.test.people is not None
    pictures += [(p.identity, images.to_uint8(x)) for p, x in zip(world.test.people, world.test.images, strict=True)]

    def who(batch: torch.Tensor) -> torch.Tensor:
        shown = [images.to_uint8(picture) for picture in batch]
        names = [next(str(who) for who, seen in pictures if np.array_equal(seen, one)) for one in shown]
        seeds = [int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big") for name in names]
        return torch.stack([torch.randn(64, generator=torch.Generator().manual_seed(seed)) for seed in seeds])

    world.backbones.identity = who
    assert foundations.identity_metrics(world.backbones, world.test, 7, Draws(20))["auc"]["value"] == 1


def test_one_person_alone_cannot_be_verified(world: World) -> None:
    assert world.test.people is not None
    alone = TestSet(world.test.ids[:1], world.test.images[:1], world.test.people[:1])
    assert foundations.identity_metrics(world.backbones, alone, 7, Draws(20))["auc"]["value"] is None


def test_the_worst_attribute_and_the_words_kept_out_of_training_stand_beside_the_mean(world: World) -> None:
    clip = world.evaluate({"counterfactual": world.edits("counterfactual", change)}).metrics["clip"]
    of_each = [leaf["value"] for leaf in clip["attributes"].values()]
    assert clip["zero_shot_min"]["value"] == pytest.approx(min(of_each), abs=1e-5)
    assert 0 <= clip["zero_shot_heldout"]["value"] <= 1


def test_a_clip_without_sense_is_found_out(world: World) -> None:
    clip = world.evaluate({"counterfactual": world.edits("counterfactual", change)}).metrics["clip"]
    assert abs(clip["zero_shot"]["value"] - clip["chance"]["value"]) < 0.15
    assert abs(clip["delta_cos_paired"]["value"]) < 0.3
    assert set(clip["directions"]) == {prompt.text for prompt in PROMPTS}


def test_a_clip_whose_words_are_pictures_is_perfectly_aligned(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each caption embeds as its own picture does: paired cosine and retrieval are one."""
    assert world.test.people is not None
    captions = {str(i): picture for i, picture in enumerate(world.test.images)}
    rows = {id(person): str(i) for i, person in enumerate(world.test.people)}
    monkeypatch.setattr(portraits, "caption", lambda person, rng, split: rows[id(person)])
    clip = Words()
    embed = clip.embed_texts
    clip.embed_texts = lambda texts: torch.cat(  # type: ignore[method-assign]
        [unit(clip.embed_images(captions[t][None])) if t in captions else embed([t]) for t in texts]
    )
    world.backbones.clip = clip
    found = foundations.clip_metrics(world.backbones, world.test, 8, Draws(20))
    assert found["delta_cos_paired"]["value"] == pytest.approx(1)
    assert found["retrieval_raw"]["value"] == found["retrieval_delta"]["value"] == 1
    assert found["delta_cos_mismatched"]["value"] < 0.2


@pytest.mark.parametrize(
    ("phrase", "text"),
    [("with red hair", "face with red hair"), ("bald", "bald face"), ("clean-shaven", "clean-shaven face")],
)
def test_a_value_is_said_as_captions_say_it(phrase: str, text: str) -> None:
    assert portraits.in_a_phrase("face", phrase) == text


# ---------------------------------------------------------------- what is written


def leaves(node: Any, path: tuple[str, ...] = ()) -> list[tuple[tuple[str, ...], Any]]:
    if isinstance(node, dict) and set(node) == {"value", "low", "high"}:
        return [(path, node)]
    if isinstance(node, dict):
        return [leaf for key, child in node.items() for leaf in leaves(child, (*path, key))]
    return [(path, node)]


def test_every_leaf_has_a_value_and_an_interval_or_null(world: World) -> None:
    found = world.evaluate({"counterfactual": world.edits("counterfactual", change)}, mapper={"val_cos": 0.7}).metrics
    for path, leaf in leaves(found):
        if path != ("domain",):
            assert isinstance(leaf, dict), path
            assert leaf["low"] is None or leaf["low"] <= leaf["high"], path
    assert found["mapper"]["val_cos"] == {"value": 0.7, "low": None, "high": None}
    assert found["mapper"]["explained"]["value"] is None


def test_the_agreed_numbers_are_all_there(world: World) -> None:
    found = world.evaluate({"deltaedit_g": world.edits("g", change), "deltaedit_d": world.edits("d", change)}).metrics
    assert {"zero_shot", "chance", "delta_cos_paired", "delta_cos_mismatched"} <= set(found["clip"])
    assert {"retrieval_raw", "retrieval_delta", "attribute_direction_cos"} <= set(found["clip"])
    assert set(found["inversion"]) == {"psnr", "ssim", "identity", "encoder_psnr"}
    assert set(found["mapper"]) == {"val_cos", "val_mse", "explained"}
    assert set(found["diffusion"]["reconstruction"]) == {"psnr", "ssim", "mse"}
    agreed = {"reached", "kept", "identity", "psnr", "fid_oracle", "counterfactual_gain", "gain_over_input"}
    assert agreed | {"evaluations", "people"} <= set(found["editors"]["deltaedit_g"])


def test_saving_twice_gives_the_same_bytes(world: World) -> None:
    edits = {"deltaedit_g": world.edits("g", change), "identity_editor": world.edits("i", nothing)}
    contents = []
    for run in ("one", "two"):
        layout = artefacts.Layout("portraits", world.folder / run)
        evaluation.save(world.evaluate(edits), layout)
        names = (layout.metrics, layout.summary, layout.evaluation / evaluation.SCORES, layout.plots / "prompts.csv")
        contents.append([path.read_bytes() for path in names])
    assert contents[0] == contents[1]
    summary = json.loads(contents[0][1])
    assert summary["deltaedit_g_reached"] == 1 and "identity_editor_reached" not in summary
    assert len(summary) <= 12
    table = artefacts.table(layout.evaluation / evaluation.SCORES)
    assert set(table["editor"]) == {"deltaedit_g", "identity_editor"}


# ---------------------------------------------------------------- what is refused, what is missing


def test_edits_of_a_prompt_the_domain_does_not_have_are_refused(world: World) -> None:
    path = world.edits("deltaedit_g", change)
    world.backbones.domain.prompts = PROMPTS[1:]
    with pytest.raises(InputError, match="'face with red hair' is no prompt of the domain"):
        world.evaluate({"deltaedit_g": path})


def test_an_editor_with_two_strengths_is_refused(world: World) -> None:
    path = world.edits("deltaedit_g", change)
    table = stored(path)
    table["strength"][1] = 0.5
    write(path, table)
    with pytest.raises(InputError, match="one setting"):
        world.evaluate({"deltaedit_g": path})


def test_a_prompt_the_oracle_cannot_judge_is_named(world: World) -> None:
    path = world.edits("deltaedit_g", change)
    world.backbones.oracle.attributes = {"hair_colour": ("red",)}
    with pytest.raises(InputError, match=r"no attribute 'hair_color' \(did you mean 'hair_colour'"):
        world.evaluate({"deltaedit_g": path})


def test_photographs_without_truth_are_compared_with_their_input(world: World) -> None:
    paths = {"identity_editor": world.edits("i", nothing), "deltaedit_g": world.edits("g", change)}
    world.test = replace(world.test, people=None)
    world.backbones.oracle = None
    found = world.evaluate(paths).metrics
    assert found["oracle"] == {} and found["clip"] == {}
    row = found["editors"]["identity_editor"]
    assert row["psnr_input"]["value"] == 60 and row["people"]["value"] == PEOPLE
    assert row["clip_direction"]["value"] == 0 and "reached" not in row
    assert found["editors"]["deltaedit_g"]["psnr_input"]["value"] < 60


def test_photographs_are_compared_with_test_pictures_by_the_networks_that_are_here(world: World) -> None:
    from torchmetrics.image.fid import _compute_fid

    paths = {"identity_editor": world.edits("i", nothing), "deltaedit_g": world.edits("g", change)}
    world.test = replace(world.test, people=None)
    world.backbones.oracle, seen = None, Reader().features
    world.backbones.inception = seen
    world.backbones.lpips = lambda a, b: (a - b).abs().flatten(1).mean(1)
    found = world.evaluate(paths).metrics["editors"]
    assert found["identity_editor"]["lpips_input"] == {"value": 0, "low": 0, "high": 0}
    assert found["identity_editor"]["fid"]["value"] < 0.05  # the same pictures, each three times
    edited = torch.stack(
        [images.decode_png(png) for png, text in zip(*pngs(paths["deltaedit_g"]), strict=True) if text]
    )
    source = world.test.images.repeat_interleave(len(PROMPTS), 0)
    assert found["deltaedit_g"]["lpips_input"]["value"] == pytest.approx(
        (edited - source).abs().mean().item(), abs=1e-5
    )
    clouds = [seen(pictures).double() for pictures in (edited, world.test.images)]
    moments = [part for cloud in clouds for part in (cloud.mean(0), cloud.T.cov())]
    assert found["deltaedit_g"]["fid"]["value"] == pytest.approx(_compute_fid(*moments).item(), rel=1e-4)
    assert found["deltaedit_g"]["fid"]["low"] is None


def pngs(path: Path) -> tuple[list[bytes], list[str]]:
    table = stored(path)
    return list(table["image"]), list(table["prompt"])


def test_what_needs_an_absent_network_says_so_and_the_rest_is_measured(world: World) -> None:
    paths = {"identity_editor": world.edits("i", nothing), "deltaedit_g": world.edits("g", change)}
    whole = world.evaluate(paths)
    world.backbones.identity = None
    found = world.evaluate(paths).metrics
    for name in ("identity", "identity_input"):
        gone = found["editors"]["deltaedit_g"][name]
        assert gone == {"value": None, "low": None, "high": None, "note": MISSING.format("identity")}
    assert found["inversion"]["identity"]["note"] == MISSING.format("identity")
    same = [name for name in whole.metrics["editors"]["deltaedit_g"] if name not in ("prompts", "heldout")]
    for name in set(same) - {"identity", "identity_input"}:
        assert found["editors"]["deltaedit_g"][name] == whole.metrics["editors"]["deltaedit_g"][name], name

    world.backbones.oracle = None
    outcome = world.evaluate(paths)
    row = outcome.metrics["editors"]["deltaedit_g"]
    for name in ("reached", "kept", "fid_oracle"):
        assert row[name]["note"] == MISSING.format("oracle") and row[name]["value"] is None
    for name in ("psnr", "counterfactual_gain", "gain_over_input", "psnr_input", "people"):
        assert row[name] == whole.metrics["editors"]["deltaedit_g"][name], name
    assert outcome.metrics["oracle"] == {"mean": metrics.absent(MISSING.format("oracle"))}
    assert outcome.metrics["clip"]["zero_shot"] == whole.metrics["clip"]["zero_shot"]
    assert row["clip_direction"]["value"] is not None
    assert outcome.summary["deltaedit_g_reached"] is None and outcome.summary["oracle"] is None
    evaluation.save(outcome, artefacts.Layout("portraits", world.folder / "saved"))


def test_photographs_say_which_of_their_networks_are_missing(world: World) -> None:
    paths = {"deltaedit_g": world.edits("g", change)}
    world.test = replace(world.test, people=None)
    world.backbones.oracle = world.backbones.identity = None
    row = world.evaluate(paths).metrics["editors"]["deltaedit_g"]
    needs = {"fid": "inception", "lpips_input": "lpips", "identity_input": "identity"}
    assert {name: leaf["note"] for name, leaf in row.items() if "note" in leaf} == {
        name: MISSING.format(network) for name, network in needs.items()
    }
    assert row["psnr_input"]["value"] is not None and row["clip_direction"]["value"] is not None


def test_a_test_set_with_an_image_too_few_is_refused(world: World) -> None:
    with pytest.raises(ValueError, match="every person"):
        TestSet(world.test.ids, world.test.images[1:], None)


def test_cases_leave_out_whom_nobody_knows(world: World) -> None:
    asked = [(1, PROMPTS[0].text), (FIRST, PROMPTS[1].text)]
    found = truth.cases(world.test, asked, {prompt.text: prompt for prompt in PROMPTS})
    assert all(case.row_id == FIRST for case in found)
