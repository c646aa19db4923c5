"""How good the networks are that every editor stands on: oracle, generator, CLIP and identity network, on people none
has seen."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline import sampling
from pipeline.evaluation import counterfactuals as truths
from pipeline.evaluation import metrics
from pipeline.evaluation.metrics import Draws, Leaf
from pipeline.storage import images

if TYPE_CHECKING:
    from pipeline.evaluation.counterfactuals import TestSet, Truth
    from pipeline.models.classifiers import Reader
    from pipeline.models.clip import Clip
    from pipeline.networks import Backbones
    from pipeline.storage.domains import Domain, Prompt

RETRIEVAL_PEOPLE = 1000  # among how many texts a picture must find its own
VERIFIED_PEOPLE = 500  # who are drawn once more, in other circumstances
FRESH = 10_000_000  # row ids from here up are used for nothing else
NEIGHBOURS = 3  # within whose distance a picture covers others, for precision and recall
FEW_REPEATS = 50  # resamples of a distance of two distributions, or of many pictures


def batches(count: int, batch: int) -> Iterator[slice]:
    return (slice(start, start + batch) for start in range(0, count, batch))


def clip_units(backbones: Backbones, images: Tensor, batch: int) -> Tensor:
    """[N,3,R,R] -> unit CLIP features [N,E] on the CPU"""
    parts = [backbones.clip.embed_images(images[part].to(backbones.device)) for part in batches(len(images), batch)]
    return F.normalize(torch.cat(parts).float().cpu(), dim=1)


@torch.no_grad()
def oracle_metrics(
    backbones: Backbones, test: TestSet, batch: int, draws: Draws, name: str = "oracle"
) -> dict[str, Any]:
    """Class-balanced accuracy of each attribute where it can be seen; `mean` and `min` over attributes; `chance`.

    name: which of a domain's oracles.
    """
    if note := backbones.absent(name):
        return {"mean": metrics.absent(note)}
    reader: Reader = getattr(backbones, name)
    truth, seen = true_values(test, reader.attributes)
    parts = [reader.read(test.images[part].to(backbones.device)) for part in batches(len(test.ids), batch)]
    read = {asked: torch.cat([part[asked].cpu() for part in parts]).numpy() for asked in truth}
    right = {asked: np.where(seen[asked], read[asked] == truth[asked], np.nan) for asked in truth}
    return _balanced(right, truth, draws)


@torch.no_grad()
def sampled(backbones: Backbones, w: Tensor, batch: int) -> np.ndarray:
    """What the generator makes of w [N,D], as files hold pictures: uint8 [N,R,R,3]."""
    codes = (backbones.generator.repeat(w[part].to(backbones.device)) for part in batches(len(w), batch))
    return np.concatenate([images.to_uint8(backbones.generator(rows)) for rows in codes])


@torch.no_grad()
def generator_metrics(
    backbones: Backbones, test: TestSet, samples: np.ndarray, drawn: Sequence[bytes], batch: int, draws: Draws
) -> dict[str, Leaf]:
    """Are samples, uint8 [N,R,R,3], like the pictures that are drawn? Judged by the oracle.

    fid_oracle: Frechet distance of its features of test pictures and as many samples; fid_floor: of one half of those
    pictures to the other, which half as many pictures make larger. precision and recall in the same features.
    attribute_share_error: the largest relative difference, over all values that drawn pictures show, between the share
    of samples and of drawn pictures in which it reads that value. Of few pictures that is mostly luck, the largest of
    some sixty, so all samples count, and further pictures, `drawn`, beside the test's.
    """
    names = ("fid_oracle", "fid_floor", "precision", "recall", "attribute_share_error")
    count = min(len(samples), len(test.ids))
    if note := backbones.absent("oracle"):
        return {name: metrics.absent(note) for name in names}
    if count <= NEIGHBOURS:
        return {name: metrics.leaf(math.nan) for name in names}
    oracle = backbones.oracle

    def shares(features: Tensor) -> np.ndarray:
        """Which values are read: [N,V] of 0 and 1."""
        read = [F.one_hot(logits.argmax(dim=1), logits.shape[1]) for logits in oracle.logits(features).values()]
        return torch.cat(read, dim=1).double().cpu().numpy()

    def seen(pictures: Iterable[Tensor]) -> Tensor:
        return torch.cat([oracle.features(part.to(backbones.device)) for part in pictures])

    made = seen(images.from_uint8(samples[part]) for part in batches(len(samples), batch))
    real = seen(test.images[part] for part in batches(len(test.ids), batch))
    others = [shares(seen([sampling.decoded(drawn[part])])) for part in batches(len(drawn), batch)]
    seen_made, seen_real = shares(made), np.concatenate([shares(real), *others])
    made, real = made[:count], real[:count]
    clouds = made.double().cpu().numpy(), real.double().cpu().numpy()

    def distances(weights: np.ndarray) -> np.ndarray:
        return np.array([metrics.frechet_distance(*clouds, draw) for draw in weights])

    def errors(weights: np.ndarray) -> np.ndarray:
        parts = (weights[:, : len(seen_made)], seen_made), (weights[:, len(seen_made) :], seen_real)
        theirs, own = (part @ values / part.sum(axis=1, keepdims=True) for part, values in parts)
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.nanmax(np.where(own > 0, np.abs(theirs / own - 1), np.nan), axis=1)

    few = replace(draws, repeats=min(draws.repeats, FEW_REPEATS))
    precision, recall = metrics.precision_recall(made.float().cpu(), real.float().cpu(), NEIGHBOURS)
    return {
        "fid_oracle": metrics.bootstrap(distances, count, few, centred=True),
        "fid_floor": metrics.leaf(metrics.frechet_distance(clouds[1][: count // 2], clouds[1][count // 2 :])),
        "precision": metrics.interval(precision, draws=draws),
        "recall": metrics.interval(recall, draws=draws),
        "attribute_share_error": metrics.bootstrap(errors, len(seen_made) + len(seen_real), few, centred=True),
    }


@torch.no_grad()
def identity_metrics(backbones: Backbones, test: TestSet, batch: int, draws: Draws) -> dict[str, Leaf]:
    """auc: how often a picture is nearer to the same person, drawn again with other hair, clothes, mood, light and
    pose, than to somebody else drawn again: the area under each person's verification curve."""
    from pipeline import portraits

    if note := backbones.absent("identity"):
        return {"auc": metrics.absent(note)}
    assert test.people is not None
    known, ids = test.people[:VERIFIED_PEOPLE], test.ids[:VERIFIED_PEOPLE]
    others = [portraits.with_nuisance(person, FRESH + row_id) for person, row_id in zip(known, ids, strict=True)]
    again = images.from_uint8(truths.render(others, test.images.shape[-1]))

    def embedded(pictures: Tensor) -> Tensor:
        parts = [backbones.identity(pictures[part].to(backbones.device)) for part in batches(len(pictures), batch)]
        return F.normalize(torch.cat(parts).float().cpu(), dim=1)

    table = embedded(test.images[: len(known)]) @ embedded(again).T
    own = table.diagonal()[:, None]
    below = (table < own).float() + 0.5 * (table == own)
    others_below = below.sum(dim=1) - 0.5  # the person's own picture ties with itself
    return {"auc": metrics.interval(others_below / (len(known) - 1), draws=draws)}  # one person alone: 0 / 0


@torch.no_grad()
def clip_metrics(backbones: Backbones, test: TestSet, batch: int, draws: Draws) -> dict[str, Any]:
    """Does CLIP tell attributes apart, and does a difference of pictures point where the difference of texts does?

    zero_shot, with chance beside it: each visible attribute read by the nearest of its values' texts, class-balanced,
    mean over attributes; zero_shot_min, the worst attribute; zero_shot_heldout, those values alone that can also be
    said in words kept out of all training, said so and read as the domain's table of words has it; zero_shot_literal,
    the same with the words themselves read. The rest is `metrics.alignment` of people and their captions.
    """
    from pipeline import portraits

    assert test.people is not None
    units = clip_units(backbones, test.images, batch)
    attributes = truths.attributes(backbones)
    truth, seen = true_values(test, attributes)
    right: dict[str, dict[str, np.ndarray]] = {"taught": {}, "heldout": {}, "literal": {}}
    for name, values in attributes.items():
        phrases = [portraits.PHRASES[name][value] for value in values]
        told = np.isin(truth[name], [k for k, (_, heldout) in enumerate(phrases) if heldout])
        for how in right:
            counted = seen[name] if how == "taught" else seen[name] & told
            clip = backbones.clip.literal() if how == "literal" else backbones.clip
            spoken = [taught if how == "taught" else heldout or taught for taught, heldout in phrases]
            texts = torch.stack([_mean_feature(clip, backbones.domain, said) for said in spoken])
            right[how][name] = np.where(counted, metrics.zero_shot(units, texts).numpy() == truth[name], np.nan)
    zero_shot = _balanced(right["taught"], truth, draws)

    count = min(RETRIEVAL_PEOPLE, len(test.ids))
    captions = captions_of(test, count, draws.seed)
    texts = torch.cat([backbones.clip.embed_texts(captions[part]).float().cpu() for part in batches(count, batch)])
    return {
        "zero_shot": zero_shot["mean"],
        "zero_shot_min": zero_shot["min"],
        "zero_shot_heldout": _balanced(right["heldout"], truth, draws)["mean"],
        "zero_shot_literal": _balanced(right["literal"], truth, draws)["mean"],
        "chance": zero_shot["chance"],
        **metrics.alignment(units[:count], texts, draws),
        "attributes": zero_shot["attributes"],
    }


def captions_of(test: TestSet, count: int, seed: int) -> list[str]:
    """What training captions would say of the first `count` people, who must be drawn ones."""
    from pipeline import portraits

    assert test.people is not None
    return [
        portraits.caption(person, np.random.default_rng((seed, row_id)), "train")
        for row_id, person in zip(test.ids[:count], test.people[:count], strict=True)
    ]


@torch.no_grad()
def direction_metrics(
    backbones: Backbones, test: TestSet, truth: Truth, prompts: Sequence[Prompt], batch: int, draws: Draws
) -> dict[str, Any]:
    """attribute_direction_cos: cosine of a prompt's text delta with the mean step from people to their counterfactuals.

    Mean over the prompts in words CLIP was taught, and each prompt under `directions`.
    """
    rows = test.rows()
    people = sorted({row_id for row_id, _ in truth.index})
    place = {row_id: i for i, row_id in enumerate(people)}
    units = clip_units(backbones, test.images[[rows[row_id] for row_id in people]], batch) if people else torch.zeros(0)
    columns: dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]] = {}
    for prompt in prompts:
        of_prompt = [(place[row_id], n) for (row_id, text), n in truth.index.items() if text == prompt.text]
        if of_prompt:
            person, numbers = (list(column) for column in zip(*of_prompt, strict=True))
            moved = (truth.clip[numbers] - units[person]).double().numpy()
            said = backbones.clip.text_delta(backbones.domain.neutral, prompt.text, backbones.domain.templates)
            columns[prompt.text] = np.array(person), moved, said.double().cpu().numpy()

    def cosines(text: str, weights: np.ndarray) -> np.ndarray:
        person, moved, said = columns[text]
        mean = weights[:, person] @ moved
        with np.errstate(invalid="ignore"):
            return mean @ said / (np.linalg.norm(mean, axis=1) * np.linalg.norm(said))

    def average(weights: np.ndarray) -> np.ndarray:
        return np.nanmean([cosines(text, weights) for text in taught], axis=0)

    taught = [prompt.text for prompt in prompts if prompt.split == "seen" and prompt.text in columns]
    if not taught:
        return {"attribute_direction_cos": metrics.leaf(float("nan")), "directions": {}}
    return {
        "attribute_direction_cos": metrics.bootstrap(average, len(people), draws),
        "directions": {
            text: metrics.bootstrap(lambda weights, text=text: cosines(text, weights), len(people), draws)
            for text in columns
        },
    }


def true_values(
    test: TestSet, attributes: Mapping[str, Sequence[str]]
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Per attribute: indices of the true values [P], and whether they can be seen [P]."""
    from pipeline import portraits

    assert test.people is not None
    values = [portraits.attributes(person) for person in test.people]
    seen = [portraits.visible(person) for person in test.people]
    return (
        {name: np.array([list(known).index(row[name]) for row in values]) for name, known in attributes.items()},
        {name: np.array([row[name] for row in seen], dtype=bool) for name in attributes},
    )


def _mean_feature(clip: Clip, domain: Domain, phrases: Sequence[str]) -> Tensor:
    """Mean unit feature [E] of several ways to say one value ("face with red hair", "red-haired face")."""
    from pipeline import portraits

    texts = [portraits.in_a_phrase(domain.neutral, phrase) for phrase in phrases]
    features = [clip.text_feature(text, domain.templates).float().cpu() for text in texts]
    return F.normalize(torch.stack(features).mean(0), dim=0)


def _balanced(right: Mapping[str, np.ndarray], truth: Mapping[str, np.ndarray], draws: Draws) -> dict[str, Any]:
    """Class-balanced accuracies from right [P] per attribute, NaN where it cannot be seen: mean, min, chance, each."""
    tables = {}
    for name, values in right.items():
        columns = metrics.class_columns(values, truth[name])
        tables[name] = columns[:, ~np.isnan(columns).all(0)]  # a class that nobody shows cannot be told
    tables = {name: table for name, table in tables.items() if table.shape[1]}
    if not tables:
        return {name: metrics.leaf(math.nan) for name in ("mean", "min", "chance")} | {"attributes": {}}
    joined = np.concatenate(list(tables.values()), axis=1)
    groups = [name for name, table in tables.items() for _ in range(table.shape[1])]
    return {
        "mean": metrics.interval(joined, groups, draws=draws),
        "min": metrics.interval(joined, groups, worst=True, draws=draws),
        "chance": metrics.leaf(float(np.mean([1 / table.shape[1] for table in tables.values()]))),
        "attributes": {
            name: metrics.interval(table, [0] * table.shape[1], draws=draws) for name, table in tables.items()
        },
    }
