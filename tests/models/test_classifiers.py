"""The identity network and the attribute classifiers."""

from __future__ import annotations

import pytest
import torch

from pipeline.models import classifiers
from pipeline.models.classifiers import AttributeClassifier, IdentityNet, Landmarks, Oracle, TokenOracle, Trunk

WIDTHS, R = (6, 9, 11), 16
ATTRIBUTES = {"hair": ("red", "black", "none"), "mood": ("happy", "sad"), "age": ("young", "old", "older", "oldest")}


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return torch.rand(5, 3, R, R, generator=torch.Generator().manual_seed(1)) * 2 - 1


TOKENS = {"size": R, "stem": (5, 8), "layers": 2, "heads": 2, "hidden": 9}


@pytest.fixture(scope="module", params=["residual", "tokens"])
def oracle(request: pytest.FixtureRequest) -> AttributeClassifier:
    torch.manual_seed(0)
    numbers = {"widths": WIDTHS} if request.param == "residual" else TOKENS
    return classifiers.build_classifier({**numbers, "attributes": ATTRIBUTES}).eval().requires_grad_(False)


def test_embeddings_of_identity_are_unit_vectors(images: torch.Tensor) -> None:
    torch.manual_seed(0)
    embedding = IdentityNet(WIDTHS, 7).eval()(images)
    assert embedding.shape == (5, 7)
    torch.testing.assert_close(embedding.norm(dim=1), torch.ones(5))
    assert (embedding[0] - embedding[1]).abs().max() > 1e-4


def test_the_oracle_gives_each_attribute_one_logit_per_value(oracle: AttributeClassifier, images: torch.Tensor) -> None:
    logits = oracle(images)
    assert {name: tuple(value.shape) for name, value in logits.items()} == {
        "hair": (5, 3),
        "mood": (5, 2),
        "age": (5, 4),
    }
    assert oracle.attributes == ATTRIBUTES


def test_a_prediction_is_the_index_of_the_largest_logit(oracle: AttributeClassifier, images: torch.Tensor) -> None:
    read, logits = oracle.predict(images), oracle(images)
    for name, values in logits.items():
        assert read[name].tolist() == [row.index(max(row)) for row in values.tolist()]


def test_logits_are_computed_from_the_features(oracle: AttributeClassifier, images: torch.Tensor) -> None:
    features = oracle.features(images)
    assert features.shape == (5, WIDTHS[-1] if isinstance(oracle, Oracle) else TOKENS["stem"][-1])  # type: ignore[index]
    for name, values in oracle.logits(features).items():
        torch.testing.assert_close(values, oracle(images)[name])
        head = oracle.heads[name]
        torch.testing.assert_close(values, features @ head.weight.T + head.bias)  # type: ignore[operator, union-attr]


def test_attributes_of_a_file_may_be_lists_and_keep_their_order(
    oracle: AttributeClassifier, images: torch.Tensor
) -> None:
    numbers = {"widths": list(WIDTHS)} if isinstance(oracle, Oracle) else {**TOKENS, "stem": list(TOKENS["stem"])}  # type: ignore[arg-type, call-overload]
    again = classifiers.build_classifier(
        {**numbers, "attributes": {name: list(v) for name, v in ATTRIBUTES.items()}}
    ).eval()
    again.load_state_dict(oracle.state_dict())
    assert again.attributes == ATTRIBUTES
    assert all(torch.equal(again(images)[name], values) for name, values in oracle(images).items())


def test_results_are_independent_of_the_batch(oracle: AttributeClassifier, images: torch.Tensor) -> None:
    alone = torch.cat([oracle.features(image[None]) for image in images])
    torch.testing.assert_close(alone, oracle.features(images), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(("size", "widths"), [(16, (4, 6)), (33, (4, 6, 8)), (64, (4, 6, 8, 10))])
def test_features_have_the_same_width_for_images_of_any_size(size: int, widths: tuple[int, ...]) -> None:
    assert Trunk(widths).eval()(torch.randn(2, 3, size, size)).shape == (2, widths[-1])


def test_a_landmark_position_is_finer_than_a_pixel() -> None:
    find = Landmarks(1, 1)
    find.patterns.load_state_dict({"weight": torch.full((1, 1, 1, 1), 50.0), "bias": torch.zeros(1)})
    maps = torch.zeros(2, 1, 5, 9)
    maps[0, 0, 3, 2] = maps[1, 0, 4, 7] = maps[1, 0, 4, 8] = 1
    torch.testing.assert_close(find(maps), torch.tensor([[-0.5, 0.5], [0.875, 1.0]]), atol=1e-5, rtol=0)


def test_an_identity_network_with_landmarks_distinguishes_a_shifted_image() -> None:
    torch.manual_seed(0)
    net = IdentityNet(WIDTHS, 7, landmarks=3, hidden=10).eval()
    picture = torch.zeros(1, 3, R, R)
    picture[:, :, 4:7, 4:7] = 1
    one, other = net(picture), net(picture.roll((4, 4), (2, 3)))
    assert net.width == WIDTHS[-1] + 2 * 3 * 2 and one.shape == (1, 7)
    torch.testing.assert_close(one.norm(dim=1), torch.ones(1))
    assert (one - other).abs().max() > 1e-4


def test_the_second_oracle_is_a_transformer_and_takes_images_of_its_size_only() -> None:
    numbers = {**TOKENS, "attributes": ATTRIBUTES}
    net = classifiers.build_classifier(numbers)
    assert isinstance(net, TokenOracle) and not any("running_mean" in name for name in net.state_dict())
    with pytest.raises(RuntimeError):
        net(torch.zeros(1, 3, 2 * R, 2 * R))
