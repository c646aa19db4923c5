"""What an edit should have become: the people an evaluation looks at, and their counterfactuals.

A *case* is a person and a prompt that concerns them: they have no attribute value that it asks for, and all would be
visible if they had them. The truth of a case is the counterfactual: the same person rendered with these attributes
changed and nothing else.
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
from torch.nn import functional as F

from pipeline import sampling, sources
from pipeline.runtime import processes
from pipeline.runtime.errors import InputError, nearest
from pipeline.storage import artefacts, images

if TYPE_CHECKING:
    from pipeline.networks import Backbones
    from pipeline.portraits import Portrait
    from pipeline.storage.domains import Prompt

_MANY = 1000  # renders for which starting more processes pays


@dataclass(frozen=True)
class TestSet:
    """People no network has seen: ids [P], images [P,3,R,R], and who they truly are where that is known."""

    __test__ = False  # for pytest, which takes the name for a test

    ids: tuple[int, ...]
    images: Tensor
    people: tuple[Portrait, ...] | None

    def __post_init__(self) -> None:
        if len(self.images) != len(self.ids) or (self.people is not None and len(self.people) != len(self.ids)):
            raise ValueError(f"{len(self.ids)} ids, {len(self.images)} images: every person needs one of each")

    def rows(self) -> dict[int, int]:
        """id -> row"""
        return {row_id: row for row, row_id in enumerate(self.ids)}


def test_set(path: Path) -> TestSet:
    """The rows of split "test" of an artefact of schema `images`."""
    rows = artefacts.read(path, "images", ["id", "image", "params"], {"split": "test"})
    if not rows["image"]:
        raise InputError(f"{path} has no test pictures: raise prepare.test and run `dvc repro`")
    return TestSet(tuple(rows["id"].tolist()), sampling.decoded(rows["image"]), sources.people_of(rows["params"]))


@dataclass(frozen=True)
class Case:
    """One person, by id, and one prompt that concerns them, with the person they would be."""

    row_id: int
    prompt: Prompt
    other: Portrait


@dataclass(frozen=True)
class Truth:
    """The counterfactuals of N cases, rendered once and seen through the networks.

    index: (id, prompt text) -> n. renders: uint8 [N,R,R,3], on disk so that memory does not grow with N.
    attributes: the names of the A that the oracle reads, in its order. Of them: answers [N,A] indices of the true
    values; asked [N,A] those that the prompt is about; counted [N,A] the others, if they can be seen.
    identity [N,K] and clip [N,E] are unit vectors; features [N,F] the oracle's. Of a network that is not here: [0,1].
    """

    index: dict[tuple[int, str], int]
    attributes: tuple[str, ...]
    renders: np.ndarray
    answers: Tensor
    asked: Tensor
    counted: Tensor
    identity: Tensor
    clip: Tensor
    features: Tensor

    def images(self, numbers: Sequence[int]) -> Tensor:
        """The renders of some cases, [n,3,R,R] in [-1,1]."""
        return images.from_uint8(self.renders[list(numbers)])


def cases(test: TestSet, asked: Iterable[tuple[int, str]], prompts: Mapping[str, Prompt]) -> list[Case]:
    """Which of the asked (id, prompt text) are cases, in the order asked. Needs `test.people`."""
    from pipeline import portraits

    assert test.people is not None
    rows, found = test.rows(), []
    for row_id, text in asked:
        prompt = prompts[text]
        if row_id not in rows or not prompt.asks:
            continue
        person = test.people[rows[row_id]]
        try:
            other, has = portraits.counterfactual(person, prompt.asks), portraits.attributes(person)
        except ValueError as error:
            raise InputError(f"prompt '{prompt.text}': {error}") from error
        seen = portraits.visible(other)
        if all(has[name] != value and seen[name] for name, value in prompt.asks.items()):
            found.append(Case(row_id, prompt, other))
    return found


@torch.no_grad()
def see(backbones: Backbones, found: Sequence[Case], size: int, batch: int) -> Truth:
    """Render every case's counterfactual at `size` and pass it through oracle, identity network and CLIP."""
    from pipeline import portraits

    names = {name: list(values) for name, values in attributes(backbones).items()}
    identified, judged = not backbones.absent("identity"), not backbones.absent("oracle")
    renders = render([case.other for case in found], size)
    identity, clip, features = [], [], []
    for start in range(0, len(found), batch):
        part = images.from_uint8(renders[start : start + batch]).to(backbones.device)
        identity += [backbones.identity(part).cpu()] if identified else []
        clip.append(F.normalize(backbones.clip.embed_images(part).float(), dim=1).cpu())
        features += [backbones.oracle.features(part).cpu()] if judged else []
    values = [portraits.attributes(case.other) for case in found]
    seen = [portraits.visible(case.other) for case in found]
    for prompt in {case.prompt.text: case.prompt for case in found}.values():
        _check(prompt, names)
    asked = torch.tensor([[name in case.prompt.asks for name in names] for case in found], dtype=torch.bool)
    asked = asked.reshape(-1, len(names))
    return Truth(
        index={(case.row_id, case.prompt.text): n for n, case in enumerate(found)},
        attributes=tuple(names),
        renders=renders,
        answers=torch.tensor([[names[name].index(row[name]) for name in names] for row in values]).reshape(
            -1, len(names)
        ),
        asked=asked,
        counted=torch.tensor([[row[name] for name in names] for row in seen]).reshape(asked.shape).bool() & ~asked,
        identity=_joined(identity),
        clip=_joined(clip),
        features=_joined(features),
    )


def attributes(backbones: Backbones) -> Mapping[str, Sequence[str]]:
    """What can be asked of a person, and its values: as the oracle reads them, or as the renderer draws them."""
    from pipeline import portraits

    return portraits.ATTRIBUTES if backbones.absent("oracle") else backbones.oracle.attributes


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


def _joined(parts: list[Tensor]) -> Tensor:
    return torch.cat(parts).float() if parts else torch.zeros(0, 1)


def render(people: Sequence[Portrait], size: int) -> np.ndarray:
    """Pictures uint8 [N,size,size,3] of people, on disk so that memory does not grow with N."""
    if not people:
        return np.zeros((0, size, size, 3), dtype=np.uint8)
    shape = (len(people), size, size, 3)
    with tempfile.TemporaryFile() as file:  # nameless: gone with the process, however that ends
        renders = np.memmap(file, dtype=np.uint8, mode="w+", shape=shape)
    jobs = [(start, tuple(people[start : start + 100]), size) for start in range(0, len(people), 100)]
    if len(people) < _MANY or processes.count() == 1:
        drawn = ((job, _draw(job)) for job in jobs)
    else:
        drawn = processes.run(_draw, jobs, processes.count())
    for (start, part, _), block in drawn:
        renders[start : start + len(part)] = block
    return renders


def _draw(job: tuple[int, tuple[Portrait, ...], int]) -> np.ndarray:
    from pipeline import portraits

    _, people, size = job
    return np.stack([portraits.render(person, size) for person in people])
