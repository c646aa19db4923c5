"""Direct training of CLIP on attributes that its contrastive training did not teach it."""

from __future__ import annotations

import copy
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small_trainings
import torch
from small_trainings import CHUNK, MODELS, R, domain_at
from torch.nn.functional import normalize

from pipeline import portraits
from pipeline.models.clip import Clip
from pipeline.runtime.errors import InputError
from pipeline.storage import weights
from pretrain import clip as pretrain_clip
from pretrain import clip_attribute, datasets
from pretrain.common import Training

small_chunks = small_trainings.small_chunks  # fixture
NAME, SHOWN = "brows", 24


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory, small_chunks: None) -> datasets.Renders:
    root = tmp_path_factory.mktemp("clip")
    datasets.make_renders(root, R, CHUNK)
    return datasets.Renders(root, R)


@pytest.fixture(scope="module")
def trained(data: datasets.Renders) -> tuple[Clip, Clip, torch.Tensor]:
    """A random network, the network after many steps on few images, and the direction of these steps."""
    torch.manual_seed(3)
    before = Clip(MODELS["clip"][0])
    images = data.images(torch.arange(SHOWN))
    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        patch.setattr(clip_attribute, "degrade", lambda images: images)
        for _ in range(30):  # until the running statistics of its norms have settled
            before.embed_images(images)
        after = copy.deepcopy(before.eval())
        along = clip_attribute.direction(normalize(before.embed_images(images), dim=1))
        with torch.enable_grad():
            for _ in clip_attribute.steps(after, data, NAME, images=16 * 200, batch=16):
                pass
    return before, after, along


@torch.no_grad()
def test_images_and_captions_of_the_two_values_are_separated(
    trained: tuple[Clip, Clip, torch.Tensor], data: datasets.Renders
) -> None:
    before, after, along = trained
    people = data.people(torch.arange(SHOWN))
    second_value = torch.tensor(
        [portraits.attributes(person)[NAME] == portraits.ATTRIBUTES[NAME][1] for person in people]
    )
    seen = normalize(after.embed_images(data.images(torch.arange(SHOWN))), dim=1) @ along
    assert torch.equal(seen > 0, second_value)
    for n in range(2):
        texts = [portraits.noun_phrase("face", value[0][n]) for value in portraits.PHRASES[NAME].values()]
        first, second = (after.embed_texts(texts) - before.embed_texts(texts)) @ along
        assert second - first > clip_attribute.CAPTION_OFFSET / 3


@torch.no_grad()
def test_other_captions_keep_their_embedding(trained: tuple[Clip, Clip, torch.Tensor]) -> None:
    before, after, _ = trained
    others = ["face", "a photo of a person", "face with red hair", "a happy person wearing a suit"]
    assert (after.embed_texts(others) * before.embed_texts(others)).sum(1).min() > 0.97


def test_only_the_selected_weights_change(trained: tuple[Clip, Clip, torch.Tensor]) -> None:
    before, after = (clip.state_dict() for clip in trained[:2])
    changed = {key: (before[key] != after[key]) for key in before}
    touched = {key for key, where in changed.items() if where.any()}
    assert not {key for key in touched if "running" in key or "attn.in_proj" in key or "mlp" in key}
    assert "model.visual.layer1.0.conv2.weight" not in touched and "model.visual.layer4.0.conv2.weight" not in touched
    half = changed["model.visual.layer3.0.conv2.weight"]
    assert half[: len(half) // 2].any() and not half[len(half) // 2 :].any()
    words = changed["model.token_embedding.weight"].any(dim=1)
    tokenizer = trained[0].tokenizer
    assert words[tokenizer(["bushy"])[0][1]] and not words[tokenizer(["smiling"])[0][1]]


def test_direction_has_hardly_any_variance_and_few_coordinates(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clip_attribute, "AXES", 4)
    torch.manual_seed(0)
    deviation = torch.tensor([1.0, 0.01, 1.0, 0.5, 2.0, 1.0, 0.7])
    unit = clip_attribute.direction(torch.randn(500, 7) * deviation)
    assert unit.norm() == pytest.approx(1) and (unit != 0).sum() <= 4
    assert unit.abs().argmax() == 1 and unit[1].abs() > 0.99


def test_signs_of_captions_are_the_values_that_they_name(data: datasets.Renders) -> None:
    captions, signs = clip_attribute._captions(data, NAME, 0, 300)
    for caption, sign in zip(captions, signs.tolist(), strict=True):
        words = [word in caption for word in ("eyebrows", "bushy", "thick")]
        assert sign == (0 if not words[0] else 1 if any(words[1:]) else -1)
    assert np.unique(signs.numpy(), return_counts=True)[1].min() > 30


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["hair_color"], "'hair_color' has 5 values"),
        (["brow"], "no attribute 'brow'.*brows"),
        ("brows", "a list of attributes is expected"),
    ],
)
def test_attributes_that_cannot_be_trained_directly_are_refused_before_the_training(
    names: Any, message: str, tmp_path: Path
) -> None:
    domain = domain_at(tmp_path)
    domain.defaults["pretrain"]["clip"]["direct_attributes"] = names
    with pytest.raises(InputError, match=message):
        pretrain_clip.train(Training(domain, tmp_path, "clip"))
    with pytest.raises(InputError, match="the vision of this CLIP is a transformer"):
        clip_attribute.check([NAME], {"vision": {"layers": 2, "patch_size": 16}})


def test_another_attribute_changes_only_its_own_words(
    trained: tuple[Clip, Clip, torch.Tensor], data: datasets.Renders
) -> None:
    clip = copy.deepcopy(trained[1])
    before = copy.deepcopy(clip.model.token_embedding.weight)
    for _ in clip_attribute.steps(clip, data, "mouth", images=32, batch=16):
        pass
    changed = (clip.model.token_embedding.weight != before).any(dim=1)
    closed, bushy, common = (clip.tokenizer([word])[0][1] for word in ("closed", "bushy", "with"))
    assert changed[closed] and not changed[bushy] and not changed[common]


def test_a_finished_training_trains_the_direct_attributes_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their weights are promoted, by this call and by later ones."""
    monkeypatch.setenv("DELTASPACE_TRACKING", "0")
    calls: list[str] = []

    def one(clip: Clip, data: datasets.Renders, name: str, images: int) -> object:
        calls.append(name)
        with torch.no_grad():
            clip.model.visual.attnpool.c_proj.bias.fill_(0.25)
        yield images, {}, clip

    def promoted() -> tuple[bool, dict[str, Any]]:
        tensors, meta = weights.load(job.promoted())
        return bool((tensors["model.visual.attnpool.c_proj.bias"] == 0.25).all()), meta

    monkeypatch.setattr(clip_attribute, "steps", one)
    domain = domain_at(tmp_path)
    domain.defaults["pretrain"]["clip"]["direct_attributes"] = [NAME]
    job = Training(domain, tmp_path, "clip")
    pretrain_clip.train(replace(job, minutes=1e-6))
    assert not calls and not promoted()[0]
    for _ in range(2):
        pretrain_clip.train(job)
        direct, meta = promoted()
        assert calls == [NAME] and direct and meta["steps"] == 2 and meta["taught"] == [NAME]
    pretrain_clip.promote(job)
    assert promoted()[0]

    shutil.rmtree(tmp_path / "data/pretraining/tiny")  # on another machine the weights alone are known
    pretrain_clip.train(job)
    assert calls == [NAME] and promoted()[0]
    pretrain_clip.train(replace(job, images=5 * 8))  # continues, and needs the attribute again
    assert calls == [NAME] * 2 and promoted()[1]["steps"] == 5
    pretrain_clip.train(replace(job, images=5 * 8, resume=False))  # another network of as many steps
    assert calls == [NAME] * 3 and promoted()[0]
