"""What flows between the parts: selections of people, and hints for mistyped names."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from pipeline import portraits
from pipeline.runtime.errors import nearest
from pipeline.values import Direction, Edited, Source, TextPair


@pytest.mark.parametrize(
    ("name", "hint"),
    [("portrait", " (did you mean 'portraits'?)"), ("Cat", " (did you mean 'cat'?)"), ("zebra", ""), ("", "")],
)
def test_a_mistyped_name_gets_the_nearest_one_or_nothing(name: str, hint: str) -> None:
    assert nearest(name, iter(["portraits", "cat", "church"])) == hint
    assert nearest(name, []) == ""


def source() -> Source:
    people = tuple(portraits.sample(row) for row in range(4))
    return Source(torch.randn(4, 3, 2, 2), torch.randn(4, 5, 6), torch.randn(4, 7), torch.randn(4, 8), people)


def test_a_selection_of_people_takes_all_that_belongs_to_them_in_that_order() -> None:
    everybody = source()
    some = everybody.select([2, 0, 2])
    assert len(everybody) == 4 and len(some) == 3
    for name in ("image", "w_plus", "s", "clip"):
        assert torch.equal(getattr(some, name), getattr(everybody, name)[[2, 0, 2]])
    assert everybody.people is not None
    assert some.people == (everybody.people[2], everybody.people[0], everybody.people[2])
    assert dataclasses.replace(everybody, people=None).select([1]).people is None


def test_people_move_to_another_device_whole() -> None:
    moved = source().to("meta")
    assert {getattr(moved, name).device.type for name in ("image", "w_plus", "s", "clip")} == {"meta"}
    assert moved.people is not None and len(moved.people) == 4


@pytest.mark.parametrize(
    "value",
    [
        TextPair("face", "old face"),
        Direction(TextPair("face", "old face"), torch.zeros(3)),
        Edited(torch.zeros(1, 3, 2, 2)),
        source(),
    ],
    ids=lambda value: type(value).__name__,
)
def test_values_cannot_be_changed(value: object) -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(value, dataclasses.fields(value)[0].name, None)  # type: ignore[arg-type]
