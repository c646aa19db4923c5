"""The two judges: unit embeddings of people, and one reading per attribute."""

from __future__ import annotations

import pytest
import torch

from pipeline.recognition import IdentityNet, Oracle, Trunk

WIDTHS, R = (6, 9, 11), 16
ATTRIBUTES = {"hair": ("red", "black", "none"), "mood": ("happy", "sad"), "age": ("young", "old", "older", "oldest")}


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return torch.rand(5, 3, R, R, generator=torch.Generator().manual_seed(1)) * 2 - 1


@pytest.fixture(scope="module")
def oracle() -> Oracle:
    torch.manual_seed(0)
    return Oracle(WIDTHS, ATTRIBUTES).eval().requires_grad_(False)


def test_embeddings_of_identity_are_unit_vectors(images: torch.Tensor) -> None:
    torch.manual_seed(0)
    embedding = IdentityNet(WIDTHS, 7).eval()(images)
    assert embedding.shape == (5, 7)
    torch.testing.assert_close(embedding.norm(dim=1), torch.ones(5))
    assert (embedding[0] - embedding[1]).abs().max() > 1e-4


def test_the_oracle_gives_each_attribute_one_logit_per_value(oracle: Oracle, images: torch.Tensor) -> None:
    logits = oracle(images)
    assert {name: tuple(value.shape) for name, value in logits.items()} == {
        "hair": (5, 3),
        "mood": (5, 2),
        "age": (5, 4),
    }
    assert oracle.attributes == ATTRIBUTES


def test_a_reading_is_the_index_of_the_largest_logit(oracle: Oracle, images: torch.Tensor) -> None:
    read, logits = oracle.read(images), oracle(images)
    for name, values in logits.items():
        assert read[name].tolist() == [row.index(max(row)) for row in values.tolist()]


def test_logits_are_read_off_the_features(oracle: Oracle, images: torch.Tensor) -> None:
    features = oracle.features(images)
    assert features.shape == (5, WIDTHS[-1])
    for name, values in oracle.logits(features).items():
        torch.testing.assert_close(values, oracle(images)[name])
        head = oracle.heads[name]
        torch.testing.assert_close(values, features @ head.weight.T + head.bias)  # type: ignore[operator, union-attr]


def test_attributes_may_come_as_lists_from_a_file_and_are_kept_in_order(oracle: Oracle, images: torch.Tensor) -> None:
    again = Oracle(list(WIDTHS), {name: list(values) for name, values in ATTRIBUTES.items()}).eval()  # type: ignore[arg-type, misc]
    again.load_state_dict(oracle.state_dict())
    assert again.attributes == ATTRIBUTES
    assert all(torch.equal(again(images)[name], values) for name, values in oracle(images).items())


def test_a_picture_does_not_depend_on_the_others_of_its_batch(oracle: Oracle, images: torch.Tensor) -> None:
    alone = torch.cat([oracle.features(image[None]) for image in images])
    torch.testing.assert_close(alone, oracle.features(images), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(("size", "widths"), [(16, (4, 6)), (33, (4, 6, 8)), (64, (4, 6, 8, 10))])
def test_features_are_a_mean_over_pictures_of_any_size(size: int, widths: tuple[int, ...]) -> None:
    assert Trunk(widths).eval()(torch.randn(2, 3, size, size)).shape == (2, widths[-1])
