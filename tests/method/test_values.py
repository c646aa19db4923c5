"""Values of the method: selections, devices, frozen fields; and hints for mistyped names."""

from __future__ import annotations

import dataclasses
from operator import attrgetter

import pytest
import torch

from pipeline import portraits
from pipeline.runtime.errors import nearest
from pipeline.values import Direction, Edited, Inversion, Source, TextPair


@pytest.mark.parametrize(
    ("name", "hint"),
    [("portrait", " (did you mean 'portraits'?)"), ("Cat", " (did you mean 'cat'?)"), ("zebra", ""), ("", "")],
)
def test_a_mistyped_name_gets_the_nearest_one_or_nothing(name: str, hint: str) -> None:
    assert nearest(name, iter(["portraits", "cat", "church"])) == hint
    assert nearest(name, []) == ""


def source() -> Source:
    people = tuple(portraits.sample(row) for row in range(4))
    inversion = Inversion(torch.randn(4, 5, 6), torch.randn(4, 2, 3, 3), refined=30)
    return Source(torch.randn(4, 3, 2, 2), inversion, torch.randn(4, 7), torch.randn(4, 8), people)


def test_a_selection_has_all_fields_of_the_rows_in_that_order() -> None:
    whole = source()
    some = whole.select([2, 0, 2])
    assert len(whole) == 4 and len(some) == 3
    for name in ("image", "inversion.w_plus", "inversion.detail", "s", "clip"):
        assert torch.equal(attrgetter(name)(some), attrgetter(name)(whole)[[2, 0, 2]])
    assert some.inversion.refined == 30 and len(whole.inversion.select(slice(3))) == 3
    assert whole.people is not None
    assert some.people == (whole.people[2], whole.people[0], whole.people[2])
    assert dataclasses.replace(whole, people=None).select([1]).people is None


def test_all_tensors_move_to_another_device() -> None:
    moved = source().to("meta")
    tensors = moved.image, moved.inversion.w_plus, moved.inversion.detail, moved.s, moved.clip
    assert {tensor.device.type for tensor in tensors if tensor is not None} == {"meta"}
    assert moved.people is not None and len(moved.people) == 4


@pytest.mark.parametrize(
    "value",
    [
        TextPair("face", "old face"),
        Direction(TextPair("face", "old face"), torch.zeros(3)),
        Edited(torch.zeros(1, 3, 2, 2)),
        source(),
        source().inversion,
    ],
    ids=lambda value: type(value).__name__,
)
def test_values_cannot_be_changed(value: object) -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(value, dataclasses.fields(value)[0].name, None)  # type: ignore[arg-type]
