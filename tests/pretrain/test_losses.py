"""Parts of the other trainings: losses, the vocabulary, and degraded images."""

from __future__ import annotations

import numpy as np
import pytest
import small_trainings
import torch
from small_trainings import D, R
from torch.nn import functional as F

from pipeline import portraits
from pipeline.runtime.errors import InputError
from pretrain import clip, datasets, encoder, identity, labels
from pretrain.augment import degrade
from pretrain.discriminator import Discriminator

small_chunks = small_trainings.small_chunks  # a fixture of every test here


# ---------------------------------------------------------------- losses and words


def test_pairs_are_two_different_images_of_one_person() -> None:
    torch.manual_seed(0)
    for count, people in ((24, 5), (11, 10), (1000, 7)):
        person, rows = identity.pairs(count, people, 400)
        one, other = rows.chunk(2)
        assert rows.max() < count and (one != other).all()
        assert torch.equal(one % people, person) and torch.equal(other % people, person)
        repeated = min(people, count - people)  # persons of two images or more
        assert set(person.tolist()) == set(range(repeated))
    assert len(set(rows.tolist())) > 300  # all images of a person, not the first two alone


def test_pairs_are_refused_where_no_person_has_two_images() -> None:
    with pytest.raises(InputError, match="5 images of 5 people: some must be shown twice"):
        identity.pairs(5, 5, 8)


def test_contrast_equals_numpy() -> None:
    angles = np.array([[0.4, 1.2], [1.0, 0.7]])  # of first images (rows) to second ones
    one = torch.eye(2, 3)
    other = torch.from_numpy(np.column_stack([np.cos(angles).T, np.zeros(2)])).float()
    logits = 8 * np.cos(angles)
    both = [-np.log(np.exp(t.diagonal()) / np.exp(t).sum(1)).mean() for t in (logits, logits.T)]
    loss, right = identity.contrast(torch.cat([one, other]), torch.tensor([3, 4]), torch.tensor(8.0))
    assert loss.item() == pytest.approx(np.mean(both), rel=1e-5) and right.item() == 1


def test_contrast_has_no_negatives_of_the_same_person() -> None:
    embeddings = F.normalize(torch.randn(8, 5), dim=1)
    twice, _ = identity.contrast(embeddings, torch.tensor([1, 1, 2, 3]), torch.tensor(4.0))
    apart, _ = identity.contrast(embeddings, torch.tensor([1, 9, 2, 3]), torch.tensor(4.0))
    assert twice < apart
    alone, right = identity.contrast(embeddings, torch.tensor([1, 1, 1, 1]), torch.tensor(4.0))
    assert alone.item() == pytest.approx(0) and right == 1


def test_hidden_attributes_give_the_oracle_no_gradient() -> None:
    people = [portraits.sample(row) for row in range(60)]
    values = labels.of(people).of_rows(torch.arange(60))
    hidden = 0
    for i, person in enumerate(people):
        for name, seen in portraits.visible(person).items():
            value = values[name][i].item()
            hidden += not seen
            assert value == (portraits.ATTRIBUTES[name].index(portraits.attributes(person)[name]) if seen else -100)
    assert hidden > 5
    logits = torch.randn(60, len(portraits.ATTRIBUTES["bangs"]), requires_grad=True)
    F.cross_entropy(logits, values["bangs"], ignore_index=labels.HIDDEN).backward()
    assert logits.grad is not None and torch.equal(logits.grad.abs().sum(dim=1) == 0, values["bangs"] == labels.HIDDEN)


def test_the_vocabulary_is_the_words_of_training_captions() -> None:
    known = clip.vocabulary()
    assert known == sorted(set(known)) and {"face", "hair"} <= set(known)
    rng = np.random.default_rng(9)
    caption = portraits.caption(portraits.sample(datasets.FIRST_ID), rng, "train")
    assert caption and "elderly" not in known  # a held-out word


def test_latent_logits_are_one_per_row_and_feature_maps_are_of_unit_length() -> None:
    torch.manual_seed(0)
    assert encoder.LatentDiscriminator(D)(torch.randn(5, D)).shape == (5,)
    discriminator = Discriminator(32, {32: 4, 16: 5, 8: 6, 4: 7})
    maps = encoder.feature_maps(discriminator, torch.randn(2, 3, 32, 32))
    assert [tuple(m.shape) for m in maps] == [(2, 5, 16, 16), (2, 6, 8, 8), (2, 7, 4, 4)]
    for features in maps:
        torch.testing.assert_close(features.norm(dim=1), torch.ones(2, *features.shape[2:]))


# ---------------------------------------------------------------- images


def test_unseen_renders_are_in_neither_training_nor_benchmark() -> None:
    images = datasets.unseen_renders(3, R)
    drawn = torch.from_numpy(portraits.render(portraits.sample(datasets.FIRST_ID - 3), R)).permute(2, 0, 1)
    assert torch.equal(((images[2] + 1) * 127.5).round().byte(), drawn)


def test_degrade_is_small_random_per_image_and_in_range() -> None:
    images = (torch.rand(1, 3, 32, 32) * 1.6 - 0.8).expand(16, -1, -1, -1)
    before = images.clone()
    torch.manual_seed(0)
    degraded = degrade(images)
    assert degraded.shape == images.shape and degraded.abs().max() <= 1
    assert torch.equal(images, before)
    assert len({tuple(image.flatten()[:20].tolist()) for image in degraded}) == 16
    torch.manual_seed(0)
    assert torch.equal(degrade(images), degraded)
    flat = degrade(torch.full((64, 3, 16, 16), 0.3))
    assert (flat.mean(dim=(1, 2, 3)) - 0.3).abs().mean() < 0.1
