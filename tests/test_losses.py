"""What the trainings of the other networks are made of: losses, words, and pictures with flaws."""

from __future__ import annotations

import math

import numpy as np
import pytest
import small_trainings
import torch
from small_trainings import D, R
from torch.nn import functional as F

from pipeline import portraits
from pretrain import clip, encoder, identity, oracle, renders
from pretrain import generator as gan
from pretrain.augment import degrade

few_pictures = small_trainings.few_pictures  # a fixture of every test here


# ---------------------------------------------------------------- losses and words


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


# ---------------------------------------------------------------- pictures


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
