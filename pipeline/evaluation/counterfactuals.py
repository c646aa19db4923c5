"""Exact counterfactuals: the test images with the attributes a prompt asks for changed, and nothing else.

A *case* is a drawn test portrait and a prompt that applies to it: the portrait has none of the values asked for, and
all of them would be visible. Its counterfactual is the same portrait rendered with these values.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from pipeline import sampling, sources
from pipeline.evaluation.batching import clip_units, in_batches
from pipeline.runtime import processes
from pipeline.runtime.errors import InputError, nearest
from pipeline.storage import artefacts, images

if TYPE_CHECKING:
    from pipeline.networks import Networks
    from pipeline.portraits import Portrait
    from pipeline.storage.domains import Prompt

_PARALLEL_FROM = 1000  # renders for which starting more processes pays


@dataclass(frozen=True)
class TestSet:
    """Test images, unseen by every network: ids [P], images [P,3,R,R]; people [P]: portraits drawn, None for photos."""

    __test__ = False  # for pytest, which takes the name for a test

    ids: tuple[int, ...]
    images: Tensor
    people: tuple[Portrait, ...] | None

    def __post_init__(self) -> None:
        if len(self.images) != len(self.ids) or (self.people is not None and len(self.people) != len(self.ids)):
            raise ValueError(f"{len(self.ids)} ids, {len(self.images)} images: every id needs one image")

    def rows(self) -> dict[int, int]:
        """Row of each id."""
        return {row_id: row for row, row_id in enumerate(self.ids)}


def test_set(path: Path) -> TestSet:
    """Test split of an artefact of schema `images`. Raises InputError if it is empty."""
    rows = artefacts.read(path, "images", ["id", "image", "params"], {"split": "test"})
    if not rows["image"]:
        raise InputError(f"{path} has no test images: raise prepare.test and run `dvc repro`")
    return TestSet(
        tuple(rows["id"].tolist()), sampling.decode_images(rows["image"]), sources.portraits_of(rows["params"])
    )


def one_per_attribute(prompts: Sequence[Prompt]) -> list[Prompt]:
    """The first prompt of every attribute, in their order."""
    first: dict[str, Prompt] = {}
    for prompt in prompts:
        first.setdefault(prompt.attribute or prompt.text, prompt)
    return [*first.values()]


@dataclass(frozen=True)
class Case:
    """A test portrait, by id, a prompt that applies to it, and the portrait of its counterfactual."""

    row_id: int
    prompt: Prompt
    counterfactual: Portrait


@dataclass(frozen=True)
class CounterfactualSet:
    """Counterfactuals of N cases, rendered once, with their true attributes and what the networks see in them.

    index: (id, prompt text) -> number of the case
    renders: uint8 [N,R,R,3], on disk, so that memory does not grow with N
    attributes: names of the A attributes, in the oracle's order
    values: [N,A] indices of the true values
    asked, counted: [N,A] bool, attributes that the prompt asks for; the others, if they are visible
    identity, clip: unit embeddings [N,K] and [N,E]; features: the oracle's, [N,F]; [0,1] without the network
    """

    index: dict[tuple[int, str], int]
    attributes: tuple[str, ...]
    renders: np.ndarray
    values: Tensor
    asked: Tensor
    counted: Tensor
    identity: Tensor
    clip: Tensor
    features: Tensor

    def images(self, cases: Sequence[int]) -> Tensor:
        """Renders of cases by their numbers, [n,3,R,R] in [-1,1]."""
        return images.from_uint8(self.renders[list(cases)])


def cases(test: TestSet, requested_pairs: Iterable[tuple[int, str]], prompts: Mapping[str, Prompt]) -> list[Case]:
    """Cases among pairs of id and prompt text, in their order, of drawn portraits.

    Raises InputError for a prompt that asks for an unknown value.
    """
    from pipeline import portraits

    assert test.people is not None
    rows, applicable = test.rows(), []
    for row_id, text in requested_pairs:
        prompt = prompts[text]
        if row_id not in rows or not prompt.asks:
            continue
        portrait = test.people[rows[row_id]]
        try:
            counterfactual, has = portraits.counterfactual(portrait, prompt.asks), portraits.attributes(portrait)
        except ValueError as error:
            raise InputError(f"prompt '{prompt.text}': {error}") from error
        visible = portraits.visible(counterfactual)
        if all(has[name] != value and visible[name] for name, value in prompt.asks.items()):
            applicable.append(Case(row_id, prompt, counterfactual))
    return applicable


@torch.no_grad()
def counterfactual_set(networks: Networks, cases: Sequence[Case], size: int, batch: int) -> CounterfactualSet:
    """Render each case's counterfactual at `size` and embed it by oracle, identity network and CLIP.

    Raises InputError for a prompt that asks for what the oracle cannot read.
    """
    from pipeline import portraits

    names = {name: list(values) for name, values in readable_attributes(networks).items()}
    for prompt in {case.prompt.text: case.prompt for case in cases}.values():
        _check(prompt, names)
    renders = render([case.counterfactual for case in cases], size)
    identity, clip, features = _embeddings(networks, renders, batch)
    values = [portraits.attributes(case.counterfactual) for case in cases]
    visible = [portraits.visible(case.counterfactual) for case in cases]
    shape = len(cases), len(names)
    asked = torch.tensor([[name in case.prompt.asks for name in names] for case in cases], dtype=torch.bool)
    asked = asked.reshape(shape)
    return CounterfactualSet(
        index={(case.row_id, case.prompt.text): number for number, case in enumerate(cases)},
        attributes=tuple(names),
        renders=renders,
        values=torch.tensor([[names[name].index(row[name]) for name in names] for row in values]).reshape(shape),
        asked=asked,
        counted=torch.tensor([[row[name] for name in names] for row in visible]).reshape(shape).bool() & ~asked,
        identity=identity,
        clip=clip,
        features=features,
    )


def readable_attributes(networks: Networks) -> Mapping[str, Sequence[str]]:
    """Attributes and their values: as the oracle reads them, or without it as the renderer draws them."""
    from pipeline import portraits

    return portraits.ATTRIBUTES if networks.absent("oracle") else networks.oracle.attributes


def _check(prompt: Prompt, names: Mapping[str, Sequence[str]]) -> None:
    for attribute, value in prompt.asks.items():
        if attribute not in names:
            raise InputError(
                f"prompt '{prompt.text}': the oracle knows no attribute '{attribute}'{nearest(attribute, names)}"
            )
        if value not in names[attribute]:
            raise InputError(
                f"prompt '{prompt.text}': {attribute} has no value '{value}'{nearest(value, names[attribute])}"
            )


def _embeddings(networks: Networks, renders: np.ndarray, batch: int) -> tuple[Tensor, Tensor, Tensor]:
    """Of identity network, CLIP and oracle, [N,...] each."""
    none = torch.zeros(0, 1)
    if not len(renders):
        return none, none, none
    device = networks.device
    identity = none if networks.absent("identity") else in_batches(networks.identity, renders, batch, device).float()
    features = none if networks.absent("oracle") else in_batches(networks.oracle.features, renders, batch, device)
    return identity, clip_units(networks, renders, batch), features.float()


def render(people: Sequence[Portrait], size: int) -> np.ndarray:
    """Images uint8 [N,size,size,3] of portraits, on disk, so that memory does not grow with N."""
    if not people:
        return np.zeros((0, size, size, 3), dtype=np.uint8)
    shape = (len(people), size, size, 3)
    with tempfile.TemporaryFile() as file:  # nameless: gone with the process, however that ends
        renders = np.memmap(file, dtype=np.uint8, mode="w+", shape=shape)
    jobs = [(start, tuple(people[start : start + 100]), size) for start in range(0, len(people), 100)]
    if len(people) < _PARALLEL_FROM or processes.count() == 1:
        blocks = ((job, _render(job)) for job in jobs)
    else:
        blocks = processes.run(_render, jobs, processes.count())
    for (start, part, _), block in blocks:
        renders[start : start + len(part)] = block
    return renders


def _render(job: tuple[int, tuple[Portrait, ...], int]) -> np.ndarray:
    from pipeline import portraits

    _, people, size = job
    return np.stack([portraits.render(person, size) for person in people])
