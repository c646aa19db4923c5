"""Quality of inversions: reconstruction in W+ and S, the mapper between images, edits of inversions and of samples."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from pipeline import inversion as inverting
from pipeline import sampling, sources
from pipeline.delta_mapper import condition
from pipeline.evaluation import metrics
from pipeline.evaluation.batching import batches
from pipeline.evaluation.bootstrap import Metric, absent, metric, nanmean
from pipeline.evaluation.context import EvaluationContext
from pipeline.models.clip import delta
from pipeline.models.feature_residual import FeatureResidual
from pipeline.values import Inversion, TextPair

if TYPE_CHECKING:
    from pipeline.networks import Networks

REFINED_COUNT = 24  # images that are inverted once more
EDITED_COUNT = 64  # inversions, and samples, that are edited
BATCH = 8
Parts = defaultdict[str, list[Tensor]]  # values by metric, a tensor per batch


@torch.no_grad()
def inversion(context: EvaluationContext) -> dict[str, Any]:
    """Reconstruction of the inverted test images, the ceiling of latent editors.

    psnr (dB), ssim, mse (on [0,1]) and identity, of codes with detail; codes: the same without it; encoder_psnr: of
    the encoder alone.
    """
    inversions, generator = context.inversion, context.networks.generator
    count = len(context.test.ids) if inversions is None else len(inversions)
    values_by_metric, codes_alone = Parts(list), Parts(list)
    for part in batches(count, context.batch):
        images = context.test.images[:count][part].to(context.networks.device)
        encoder_codes = context.networks.encoder(images)
        encoder_images = generator(encoder_codes).float().clamp(-1, 1)
        reconstruction = encoder_images
        if inversions is not None:
            w_plus = inversions.w_plus[part].to(images)
            reconstruction = generator(w_plus).float().clamp(-1, 1)
            if inversions.detail is not None:
                _collect(codes_alone, _reconstruction(context.networks, reconstruction, images))
                reconstruction = _decode(context.networks, w_plus, inversions.detail[part]).float().clamp(-1, 1)
        values = _reconstruction(context.networks, reconstruction, images)
        _collect(values_by_metric, values | {"encoder_psnr": metrics.psnr(encoder_images, images)})
    return _means(context, values_by_metric) | ({"codes": _means(context, codes_alone)} if codes_alone else {})


@torch.no_grad()
def inversion_in_s(context: EvaluationContext) -> dict[str, Any]:
    """in_s: reconstruction by the same descent in S (paper, table III); ssim_over_w_plus: gain on the same images."""
    inversions, networks = context.inversion, context.networks
    if inversions is None or not inversions.refined:
        return {}
    generator, encoder, unit, values_by_metric = (
        networks.generator,
        networks.encoder,
        sampling.style_stats(networks)[1],
        Parts(list),
    )
    for part in batches(min(REFINED_COUNT, len(inversions)), BATCH):
        images = context.test.images[:REFINED_COUNT][part].to(networks.device)
        encoder_codes = encoder(images)
        s = inverting.refine_s(encoder, generator, images, encoder_codes, unit, inversions.refined)
        reconstruction, from_w_plus = (
            generator.synthesis(s, encoder_codes).clamp(-1, 1),
            generator(inversions.w_plus[:REFINED_COUNT][part].to(images)),
        )
        values = _reconstruction(networks, reconstruction, images)
        values["ssim_over_w_plus"] = values["ssim"] - metrics.ssim(from_w_plus.clamp(-1, 1), images)
        _collect(values_by_metric, values)
    return {"in_s": _means(context, values_by_metric)}


@torch.no_grad()
def round_trip(context: EvaluationContext) -> dict[str, Any]:
    """round_trip: reconstruction of the generator's own images by codes from the same descent, the most that codes of
    test images can reach."""
    inversions, networks, fakes = context.inversion, context.networks, context.fakes
    if inversions is None or not inversions.refined or fakes is None:
        return {}
    generator, encoder, values_by_metric = networks.generator, networks.encoder, Parts(list)
    for part in batches(min(REFINED_COUNT, len(fakes)), BATCH):
        images = generator(generator.repeat(fakes[part].to(networks.device))).clamp(-1, 1)
        w_plus = inverting.refine(encoder, generator, images, encoder(images), inversions.refined)
        _collect(values_by_metric, _reconstruction(networks, generator(w_plus).clamp(-1, 1), images))
    return {"round_trip": _means(context, values_by_metric)}


@torch.no_grad()
def image_pairs(context: EvaluationContext) -> dict[str, Metric]:
    """The mapper conditioned on images: from each inverted image to the next (paper, appendix B.3).

    latent_mse: of the predicted s to the next image's s; latent_mse_nothing: without a step. pixel_mse (on [-1,1]): of
    the rendered prediction to the next image; pixel_mse_nothing: without a step; pixel_mse_floor: of the next image's
    own s. latent_explained: 1 - latent_mse / latent_mse_nothing.
    """
    inversions, networks = context.inversion, context.networks
    if inversions is None:
        return {}
    if note := networks.absent("mapper"):
        return {"latent_mse": absent(note)}
    values_by_metric, generator, order = Parts(list), networks.generator, torch.arange(len(inversions))
    for part in batches(len(inversions), BATCH):
        source = context.test.images[order[part]].to(networks.device)
        target = context.test.images[order.roll(-1)[part]].to(networks.device)
        w_plus, goals = (inversions.w_plus[rows[part]].to(source) for rows in (order, order.roll(-1)))
        s, goal = generator.styles(w_plus), generator.styles(goals)
        clip, clip_target = networks.clip.embed_images(source), networks.clip.embed_images(target)
        predicted = s + networks.mapper(s, condition(clip, delta(clip, clip_target)))
        for name, codes in (("pixel_mse", predicted), ("pixel_mse_nothing", s), ("pixel_mse_floor", goal)):
            error = generator.synthesis(codes, w_plus).clamp(-1, 1) - target
            values_by_metric[name].append(error.square().mean(dim=(1, 2, 3)).cpu())
        values_by_metric["latent_mse"].append((predicted - goal).square().mean(1).cpu())
        values_by_metric["latent_mse_nothing"].append((s - goal).square().mean(1).cpu())
    joined = {name: torch.cat(parts) for name, parts in values_by_metric.items()}
    explained = 1 - joined["latent_mse"].mean() / joined["latent_mse_nothing"].mean()
    means = {name: context.bootstrap.mean(values) for name, values in joined.items()}
    return means | {"latent_explained": metric(explained.item())}


@torch.no_grad()
def reached_on_samples(context: EvaluationContext) -> dict[str, Metric]:
    """Edits of inversions beside edits of generated samples, both as the generator renders them.

    reached_inverted, reached_sampled: where the oracle does not read a prompt's value before, share of edits in which
    it does; reached_gap: the first less the second.
    """
    inversions, networks, fakes = context.inversion, context.networks, context.fakes
    if inversions is None or fakes is None or context.latent_editor is None:
        return {}
    if note := networks.absent("oracle"):
        return {"reached_gap": absent(note)}
    samples = Inversion(networks.generator.repeat(fakes[:EDITED_COUNT].to(networks.device)))
    first_inversions = inversions.select(slice(EDITED_COUNT)).to(networks.device)
    tables = _reached(context, first_inversions), _reached(context, samples)
    both, own = np.concatenate(tables), len(tables[0])

    def shares(weights: np.ndarray, part: slice) -> np.ndarray:
        table, chosen = both[part], weights[:, part]
        with np.errstate(invalid="ignore"):
            return nanmean((chosen @ np.nan_to_num(table)) / (chosen @ ~np.isnan(table)))

    def gap(weights: np.ndarray) -> np.ndarray:
        return shares(weights, slice(own)) - shares(weights, slice(own, None))

    return {
        "reached_inverted": context.bootstrap.mean(tables[0]),
        "reached_sampled": context.bootstrap.mean(tables[1]),
        "reached_gap": context.bootstrap.statistic(gap, len(both)),
    }


def _reached(context: EvaluationContext, codes: Inversion) -> np.ndarray:
    """[n,prompts]: whether the oracle reads a prompt's value after the edit, NaN where it does before."""
    networks, neutral = context.networks, context.networks.domain.neutral
    assert context.latent_editor is not None
    editor, strength = context.latent_editor
    prompts = [prompt for prompt in networks.domain.prompts if prompt.split == "seen" and prompt.asks]
    if not prompts:
        return np.full((len(codes), 1), np.nan)
    directions = [editor.fit(TextPair(neutral, prompt.text)) for prompt in prompts]
    rows = []
    for part in batches(len(codes), 4 * BATCH):
        part_codes = codes.select(part)
        images = _decode(networks, part_codes.w_plus, part_codes.detail).clamp(-1, 1)
        source = sources.source(networks, images, part_codes)
        prepared = editor.prepare(source)
        before, columns = networks.oracle.predict(source.image), []
        for prompt, direction in zip(prompts, directions, strict=True):
            after = networks.oracle.predict(editor.edit(prepared, direction, strength).images.clamp(-1, 1))
            name, value = next(iter(prompt.asks.items()))
            requested_value = networks.oracle.attributes[name].index(value)
            had, has = (read[name].cpu().numpy() == requested_value for read in (before, after))
            columns.append(np.where(had, np.nan, has))
        rows.append(np.stack(columns, axis=1))
    return np.concatenate(rows)


def _decode(networks: Networks, w_plus: Tensor, detail: Tensor | None) -> Tensor:
    """Images [B,3,R,R] of codes [B,L,D] and the detail [B,C,r,r] that they lack."""
    s = networks.generator.styles(w_plus)
    residual = None if detail is None else FeatureResidual.of(networks.generator, detail.to(w_plus.device), s, w_plus)
    return networks.generator.synthesis(s, w_plus, detail=residual)


def _reconstruction(networks: Networks, reconstruction: Tensor, images: Tensor) -> dict[str, Tensor]:
    """psnr, ssim, mse of reconstructed images [B,3,R,R], and identity if its network is present: [B] each."""
    values = metrics.reconstruction(reconstruction, images)
    if not networks.absent("identity"):
        values["identity"] = metrics.cosine(networks.identity(reconstruction), networks.identity(images))
    return values


def _collect(parts: Parts, values: dict[str, Tensor]) -> None:
    for name, part in values.items():
        parts[name].append(part.cpu())


def _means(context: EvaluationContext, parts: Parts) -> dict[str, Any]:
    means = {name: context.bootstrap.mean(torch.cat(values)) for name, values in parts.items()}
    note = context.networks.absent("identity")
    return means | ({"identity": absent(note)} if note else {})
