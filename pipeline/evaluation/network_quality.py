"""Quality of the networks that editors build on: oracles, generator, CLIP and identity network, on test images."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline import sampling
from pipeline.evaluation import counterfactuals, metrics
from pipeline.evaluation.batching import batches, clip_units, in_batches
from pipeline.evaluation.bootstrap import Bootstrap, Metric, absent, metric
from pipeline.evaluation.context import EvaluationContext
from pipeline.evaluation.metrics import GaussianStats
from pipeline.storage.images import to_uint8

if TYPE_CHECKING:
    from pipeline.evaluation.counterfactuals import TestSet
    from pipeline.models.classifiers import AttributeClassifier
    from pipeline.models.clip import Clip
    from pipeline.networks import Networks
    from pipeline.storage.domains import Domain

RETRIEVAL_COUNT = 1000  # texts among which an image's own is searched
VERIFIED_COUNT = 500  # portraits that are rendered once more, for verification
FRESH = 10_000_000  # row ids from here up are used for evaluation alone
NEIGHBOURS = 3  # of precision and recall
FEW_REPEATS = 50  # draws of a distance of distributions, or over many images


# ---------------------------------------------------------------- what measures have in common


@torch.no_grad()
def render_samples(networks: Networks, w: Tensor, batch: int) -> np.ndarray:
    """Images of codes w [N,D] as in encoded files: uint8 [N,R,R,3]."""
    codes = (networks.generator.repeat(w[part].to(networks.device)) for part in batches(len(w), batch))
    return np.concatenate([to_uint8(networks.generator(rows)) for rows in codes])


def identities(networks: Networks, test: TestSet, ids: set[int], batch: int) -> dict[int, Tensor]:
    """Identity embeddings [K] of test images, by id; empty without the network."""
    if networks.absent("identity"):
        return {}
    rows = [row for row, row_id in enumerate(test.ids) if row_id in ids]
    embeddings = in_batches(networks.identity, test.images[rows], batch, networks.device) if rows else []
    return {test.ids[row]: vector for row, vector in zip(rows, embeddings, strict=True)}


def inception_stats(networks: Networks, test: TestSet, batch: int) -> GaussianStats | None:
    """Statistics of Inception's features of the test images; None without the network."""
    if networks.absent("inception"):
        return None
    stats = GaussianStats()
    for part in batches(len(test.ids), batch):
        stats.add(networks.inception(test.images[part].to(networks.device)))
    return stats


def captions_of(test: TestSet, count: int, seed: int) -> list[str]:
    """Captions of the first `count` test portraits, phrased as in training."""
    from pipeline import portraits

    assert test.people is not None
    return [
        portraits.caption(person, np.random.default_rng((seed, row_id)), "train")
        for row_id, person in zip(test.ids[:count], test.people[:count], strict=True)
    ]


def true_values(
    test: TestSet, attributes: Mapping[str, Sequence[str]]
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Per attribute: indices of the true values [P], and whether they are visible [P]."""
    from pipeline import portraits

    assert test.people is not None
    values = [portraits.attributes(person) for person in test.people]
    visible = [portraits.visible(person) for person in test.people]
    return (
        {name: np.array([list(options).index(row[name]) for row in values]) for name, options in attributes.items()},
        {name: np.array([row[name] for row in visible], dtype=bool) for name in attributes},
    )


# ---------------------------------------------------------------- oracles


@torch.no_grad()
def oracle(context: EvaluationContext, name: str = "oracle") -> dict[str, Any]:
    """Class-balanced accuracy of an oracle per visible attribute: mean and min over them, chance, attributes."""
    networks, images = context.networks, context.test.images
    if context.counterfactuals is None:
        return {}
    if note := networks.absent(name):
        return {"mean": absent(note)}
    classifier: AttributeClassifier = getattr(networks, name)
    values, visible = true_values(context.test, classifier.attributes)
    parts = [classifier.predict(images[part].to(networks.device)) for part in batches(len(images), context.batch)]
    right = {}
    for attribute, true in values.items():
        read = torch.cat([part[attribute].cpu() for part in parts]).numpy()
        right[attribute] = np.where(visible[attribute], read == true, np.nan)
    return _balanced(right, values, context.bootstrap)


def _balanced(
    right: Mapping[str, np.ndarray], values: Mapping[str, np.ndarray], bootstrap: Bootstrap
) -> dict[str, Any]:
    """Class-balanced accuracies from right [P] per attribute, NaN where it is not visible."""
    tables = {}
    for name, correct in right.items():
        columns = metrics.class_columns(correct, values[name])
        tables[name] = columns[:, ~np.isnan(columns).all(0)]  # without classes that are visible in no image
    tables = {name: table for name, table in tables.items() if table.shape[1]}
    if not tables:
        return {name: metric(math.nan) for name in ("mean", "min", "chance")} | {"attributes": {}}
    joined = np.concatenate(list(tables.values()), axis=1)
    groups = [name for name, table in tables.items() for _ in range(table.shape[1])]
    return {
        "mean": bootstrap.mean(joined, groups),
        "min": bootstrap.mean(joined, groups, worst=True),
        "chance": metric(float(np.mean([1 / table.shape[1] for table in tables.values()]))),
        "attributes": {name: bootstrap.mean(table, [0] * table.shape[1]) for name, table in tables.items()},
    }


# ---------------------------------------------------------------- generator


@torch.no_grad()
def generator(context: EvaluationContext) -> dict[str, Metric]:
    """Distribution of generated samples against that of rendered images, in the oracle's features.

    fid_oracle: Frechet distance of as many samples as test images; fid_floor: of the two halves of the test images,
    which fewer images make larger. precision, recall: of the same images.
    attribute_share_error: largest relative difference, over all values that rendered images show, between the share of
    samples and of rendered images in which the oracle reads the value. Of few images that is mostly noise, the largest
    of some sixty differences; so all samples count, and training images beside the test's.
    """
    if context.counterfactuals is None or context.samples is None:
        return {}
    networks, samples, count = context.networks, context.samples, min(len(context.samples), len(context.test.ids))
    names = ("fid_oracle", "fid_floor", "precision", "recall", "attribute_share_error")
    if note := networks.absent("oracle"):
        return {name: absent(note) for name in names}
    if count <= NEIGHBOURS:
        return {name: metric(math.nan) for name in names}
    generated, real = (
        in_batches(networks.oracle.features, images, context.batch, networks.device)
        for images in (samples, context.test.images)
    )
    precision, recall = metrics.precision_recall(generated[:count].float(), real[:count].float(), NEIGHBOURS)
    a, b = (features[:count].double().numpy() for features in (generated, real))

    def distances(weights: np.ndarray) -> np.ndarray:
        return np.array([metrics.frechet_distance(a, b, draw) for draw in weights])

    return {
        "fid_oracle": context.bootstrap.at_most(FEW_REPEATS).statistic(distances, count, centred=True),
        "fid_floor": metric(metrics.frechet_distance(b[: count // 2], b[count // 2 :])),
        "precision": context.bootstrap.mean(precision),
        "recall": context.bootstrap.mean(recall),
        "attribute_share_error": _attribute_share_error(context, generated, real),
    }


def _attribute_share_error(context: EvaluationContext, generated: Tensor, real: Tensor) -> Metric:
    networks, encoded = context.networks, context.train_images
    parts = (sampling.decode_images(encoded[part]) for part in batches(len(encoded), context.batch))
    train = [_values_read(networks, networks.oracle.features(part.to(networks.device))) for part in parts]
    of_samples, of_renders = _values_read(networks, generated), np.concatenate([_values_read(networks, real), *train])

    def errors(weights: np.ndarray) -> np.ndarray:
        halves = (weights[:, : len(of_samples)], of_samples), (weights[:, len(of_samples) :], of_renders)
        sampled, rendered = (part @ values / part.sum(axis=1, keepdims=True) for part, values in halves)
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.nanmax(np.where(rendered > 0, np.abs(sampled / rendered - 1), np.nan), axis=1)

    return context.bootstrap.at_most(FEW_REPEATS).statistic(errors, len(of_samples) + len(of_renders), centred=True)


def _values_read(networks: Networks, features: Tensor) -> np.ndarray:
    """[N,V] of 0 and 1: the attribute values that the oracle reads from features [N,F]."""
    logits = networks.oracle.logits(features.to(networks.device)).values()
    read = [F.one_hot(each.argmax(dim=1), each.shape[1]) for each in logits]
    return torch.cat(read, dim=1).double().cpu().numpy()


# ---------------------------------------------------------------- identity network


@torch.no_grad()
def identity(context: EvaluationContext) -> dict[str, Metric]:
    """auc: area under the verification curve of each portrait, against renders with other hair, clothes, mood, light
    and pose: how often its own is more similar than another's."""
    from pipeline import portraits

    if context.counterfactuals is None:
        return {}
    networks, test = context.networks, context.test
    if note := networks.absent("identity"):
        return {"auc": absent(note)}
    assert test.people is not None
    verified, ids = test.people[:VERIFIED_COUNT], test.ids[:VERIFIED_COUNT]
    others = [portraits.with_nuisance(person, FRESH + row_id) for person, row_id in zip(verified, ids, strict=True)]
    renders = counterfactuals.render(others, test.images.shape[-1])

    own_images, own_renders = (
        F.normalize(in_batches(networks.identity, images, context.batch, networks.device).float(), dim=1)
        for images in (test.images[: len(verified)], renders)
    )
    table = own_images @ own_renders.T
    own = table.diagonal()[:, None]
    below = (table < own).float() + 0.5 * (table == own)
    others_below = below.sum(dim=1) - 0.5  # the portrait's own render ties with itself
    return {"auc": context.bootstrap.mean(others_below / (len(verified) - 1))}  # a single portrait: 0 / 0


# ---------------------------------------------------------------- CLIP


@torch.no_grad()
def clip(context: EvaluationContext) -> dict[str, Any]:
    """Zero-shot accuracy of CLIP, and the alignment of its differences.

    zero_shot, zero_shot_min, chance: each visible attribute read as the nearest of its values' texts, class-balanced;
    mean and minimum over attributes. zero_shot_heldout: only values that have words kept out of all training, in these
    words, as the domain's table of synonyms reads them; zero_shot_literal: in these words themselves.
    The others: `metrics.alignment` of test images and their captions.
    """
    if context.counterfactuals is None:
        return {}
    networks, test = context.networks, context.test
    units = clip_units(networks, test.images, context.batch)
    right, values = _zero_shot(context, units)
    accuracy = _balanced(right["seen"], values, context.bootstrap)
    count = min(RETRIEVAL_COUNT, len(test.ids))
    captions = captions_of(test, count, context.bootstrap.seed)
    parts = (captions[part] for part in batches(count, context.batch))
    texts = torch.cat([networks.clip.embed_texts(part).float().cpu() for part in parts])
    return {
        "zero_shot": accuracy["mean"],
        "zero_shot_min": accuracy["min"],
        "zero_shot_heldout": _balanced(right["heldout"], values, context.bootstrap)["mean"],
        "zero_shot_literal": _balanced(right["literal"], values, context.bootstrap)["mean"],
        "chance": accuracy["chance"],
        **metrics.alignment(units[:count], texts, context.bootstrap),
        "attributes": accuracy["attributes"],
    }


def _zero_shot(
    context: EvaluationContext, units: Tensor
) -> tuple[dict[str, dict[str, np.ndarray]], dict[str, np.ndarray]]:
    """Correctness [P] by wording and attribute, NaN where a test image does not count; true values by attribute."""
    from pipeline import portraits

    networks, domain = context.networks, context.networks.domain
    attributes = counterfactuals.readable_attributes(networks)
    true, visible = true_values(context.test, attributes)
    right: dict[str, dict[str, np.ndarray]] = {"seen": {}, "heldout": {}, "literal": {}}
    for name, values in attributes.items():
        phrases = [portraits.PHRASES[name][value] for value in values]
        has_heldout = np.isin(true[name], [k for k, (_, heldout) in enumerate(phrases) if heldout])
        for wording in right:
            counted = visible[name] if wording == "seen" else visible[name] & has_heldout
            network = networks.clip.without_synonyms() if wording == "literal" else networks.clip
            chosen = [trained if wording == "seen" else heldout or trained for trained, heldout in phrases]
            texts = torch.stack([_mean_feature(network, domain, synonyms) for synonyms in chosen])
            right[wording][name] = np.where(counted, metrics.zero_shot(units, texts).numpy() == true[name], np.nan)
    return right, true


def _mean_feature(clip: Clip, domain: Domain, phrases: Sequence[str]) -> Tensor:
    """Mean unit feature [E] of several wordings of one value ("face with red hair", "red-haired face")."""
    from pipeline import portraits

    texts = [portraits.noun_phrase(domain.neutral, phrase) for phrase in phrases]
    features = [clip.text_feature(text, domain.templates).float().cpu() for text in texts]
    return F.normalize(torch.stack(features).mean(0), dim=0)


@torch.no_grad()
def clip_directions(context: EvaluationContext) -> dict[str, Any]:
    """attribute_direction_cos: cosine of a prompt's text delta with the mean CLIP step from images to counterfactuals.

    Mean over the prompts seen in training; each prompt of the domain below `directions`.
    """
    goals = context.counterfactuals
    if goals is None:
        return {}
    networks, domain, rows = context.networks, context.networks.domain, context.test.rows()
    ids = sorted({row_id for row_id, _ in goals.index})
    row_of_id = {row_id: i for i, row_id in enumerate(ids)}
    images = context.test.images[[rows[row_id] for row_id in ids]]
    units = clip_units(networks, images, context.batch) if ids else torch.zeros(0)
    columns: dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]] = {}  # image [n], step [n,E], text delta [E]
    for prompt in domain.prompts:
        of_prompt = [(row_of_id[row_id], n) for (row_id, text), n in goals.index.items() if text == prompt.text]
        if of_prompt:
            image, cases = (list(column) for column in zip(*of_prompt, strict=True))
            steps = (goals.clip[cases] - units[image]).double().numpy()
            delta = networks.clip.text_delta(domain.neutral, prompt.text, domain.templates)
            columns[prompt.text] = np.array(image), steps, delta.double().cpu().numpy()

    def cosines(text: str, weights: np.ndarray) -> np.ndarray:
        image, steps, delta = columns[text]
        mean = weights[:, image] @ steps
        with np.errstate(invalid="ignore"):
            return mean @ delta / (np.linalg.norm(mean, axis=1) * np.linalg.norm(delta))

    def average(weights: np.ndarray) -> np.ndarray:
        return np.nanmean([cosines(text, weights) for text in seen], axis=0)

    seen = [prompt.text for prompt in domain.prompts if prompt.split == "seen" and prompt.text in columns]
    if not seen:
        return {"attribute_direction_cos": metric(math.nan), "directions": {}}
    return {
        "attribute_direction_cos": context.bootstrap.statistic(average, len(ids)),
        "directions": {
            text: context.bootstrap.statistic(lambda weights, text=text: cosines(text, weights), len(ids))
            for text in columns
        },
    }
