"""What codes hold of people none has seen: of the own picture, inverted in W+ and in s; by the mapper, of the step to
another's; and of edits, beside those of people who were made of codes."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from pipeline import inversion, sources
from pipeline.delta_mapper import condition
from pipeline.evaluation import metrics
from pipeline.evaluation.metrics import Draws, Leaf
from pipeline.evaluation.network_quality import batches
from pipeline.models.clip import delta
from pipeline.models.feature_residual import Detail
from pipeline.values import TextPair

if TYPE_CHECKING:
    from pipeline.editors import Editor
    from pipeline.evaluation.counterfactuals import TestSet
    from pipeline.networks import Backbones

IN_S = 24  # people who are inverted once more, in s
SAMPLED = 64  # people who are edited, of either kind
REACHED = ("reached_inverted", "reached_sampled")
TOGETHER = 8  # pictures at a time


@torch.no_grad()
def inversion_metrics(
    backbones: Backbones, test: TestSet, w_plus: Tensor | None, detail: Tensor | None, batch: int, draws: Draws
) -> dict[str, Any]:
    """How well unseen people are given back (psnr, dB; ssim; mse on [0,1]; identity), a latent editor's ceiling.

    w_plus [n,L,D]: the codes that editors start from, of the first n people; the encoder's, of all, when None. detail
    [n,...]: what is drawn with them; codes: the same numbers without it. encoder_psnr: that of the encoder.
    """
    count, generator = len(test.ids) if w_plus is None else len(w_plus), backbones.generator
    found, alone = defaultdict[str, list[Tensor]](list), defaultdict[str, list[Tensor]](list)
    for part in batches(count, batch):
        source = test.images[:count][part].to(backbones.device)
        guess = backbones.encoder(source)
        first = generator(guess).float().clamp(-1, 1)
        codes = guess if w_plus is None else w_plus[part].to(source)
        again = first if w_plus is None else generator(codes).float().clamp(-1, 1)
        if detail is not None:
            _collect(alone, _given_back(backbones, again, source))
            again = _drawn(backbones, codes, detail[part]).float().clamp(-1, 1)
        _collect(found, _given_back(backbones, again, source) | {"encoder_psnr": metrics.psnr(first, source)})
    leaves: dict[str, Any] = dict(_intervals(found, backbones, draws))
    return leaves | ({"codes": _intervals(alone, backbones, draws)} if alone else {})


def _drawn(backbones: Backbones, w_plus: Tensor, added: Tensor | None) -> Tensor:
    """What the generator makes of codes w_plus [B,L,D] and what they lack, [B,...]."""
    s = backbones.generator.styles(w_plus)
    if added is None:
        return backbones.generator.synthesis(s, w_plus)
    detail = Detail.of(backbones.generator, added.to(w_plus.device), s, w_plus)
    return backbones.generator.synthesis(s, w_plus, detail=detail)


def inversion_in_s(backbones: Backbones, test: TestSet, w_plus: Tensor, steps: int, draws: Draws) -> dict[str, Leaf]:
    """How well the descent of `steps` that w_plus [n,L,D] came from, but in s, gives the first IN_S people back: psnr
    in dB, ssim, mse on [0,1], identity (paper, table III); ssim_over_w_plus: its gain for the same people."""
    generator, encoder, found = backbones.generator, backbones.encoder, defaultdict[str, list[Tensor]](list)
    for part in batches(min(IN_S, len(w_plus)), TOGETHER):
        images = test.images[:IN_S][part].to(backbones.device)
        with torch.no_grad():
            guess = encoder(images)
        s = inversion.refine_s(encoder, generator, images, guess, backbones.s_std, steps)
        with torch.no_grad():
            again, before = generator.synthesis(s, guess).clamp(-1, 1), generator(w_plus[:IN_S][part].to(images))
            one = _given_back(backbones, again, images)
            one["ssim_over_w_plus"] = one["ssim"] - metrics.ssim(before.clamp(-1, 1), images)
        _collect(found, one)
    return _intervals(found, backbones, draws)


def round_trip(backbones: Backbones, fakes: Tensor, steps: int, draws: Draws) -> dict[str, Leaf]:
    """How well IN_S pictures that the generator made itself, of w [n,D], are given back by codes alone, found as those
    of people who will be edited, by `steps` of descent: psnr in dB, ssim, mse on [0,1], identity. The most that codes
    of people can hope for.
    """
    generator, encoder, found = backbones.generator, backbones.encoder, defaultdict[str, list[Tensor]](list)
    for part in batches(min(IN_S, len(fakes)), TOGETHER):
        with torch.no_grad():
            images = generator(generator.repeat(fakes[part].to(backbones.device))).clamp(-1, 1)
            guess = encoder(images)
        codes = inversion.refine(encoder, generator, images, guess, steps)
        with torch.no_grad():
            _collect(found, _given_back(backbones, generator(codes).clamp(-1, 1), images))
    return _intervals(found, backbones, draws)


def _given_back(backbones: Backbones, again: Tensor, images: Tensor) -> dict[str, Tensor]:
    """How closely pictures [B,3,R,R] come back, and their identity where a network knows it: [B] each."""
    found = metrics.closeness(again, images)
    if not backbones.absent("identity"):
        found["identity"] = metrics.cosine(backbones.identity(again), backbones.identity(images))
    return found


def _collect(found: dict[str, list[Tensor]], values: dict[str, Tensor]) -> None:
    for name, part in values.items():
        found[name].append(part.cpu())


def _intervals(found: dict[str, list[Tensor]], backbones: Backbones, draws: Draws) -> dict[str, Leaf]:
    leaves = {name: metrics.interval(torch.cat(parts), draws=draws) for name, parts in found.items()}
    note = backbones.absent("identity")
    return leaves | ({"identity": metrics.absent(note)} if note else {})


@torch.no_grad()
def pair_metrics(backbones: Backbones, test: TestSet, w_plus: Tensor, draws: Draws) -> dict[str, Leaf]:
    """Led by a picture: each of the first n people takes the step to the next one, as the mapper reads it off the
    difference of their pictures in CLIP (paper, appendix B.3). w_plus [n,L,D]: their inversions.

    latent_mse: mean squared error of s reached to the other's s, raw; latent_mse_nothing: without a step, the mean
    square of delta_s. pixel_mse: on [-1,1], of what is drawn to the other's picture; pixel_mse_nothing: without a step;
    pixel_mse_floor: with the other's own s. latent_explained: 1 - latent_mse / latent_mse_nothing.
    """
    if note := backbones.absent("mapper"):
        return {"latent_mse": metrics.absent(note)}
    found = defaultdict[str, list[Tensor]](list)
    generator, order = backbones.generator, torch.arange(len(w_plus))
    for part in batches(len(w_plus), TOGETHER):
        own = test.images[order[part]].to(backbones.device)
        other = test.images[order.roll(-1)[part]].to(backbones.device)
        codes, goals = (w_plus[rows[part]].to(own) for rows in (order, order.roll(-1)))
        s, goal = generator.styles(codes), generator.styles(goals)
        clip, led = backbones.clip.embed_images(own), backbones.clip.embed_images(other)
        reached = s + backbones.mapper(s, condition(clip, delta(clip, led)))
        drawn = {
            "pixel_mse": generator.synthesis(reached, codes),
            "pixel_mse_nothing": generator.synthesis(s, codes),
            "pixel_mse_floor": generator.synthesis(goal, codes),
        }
        values = {name: (made.clamp(-1, 1) - other).square().mean(dim=(1, 2, 3)) for name, made in drawn.items()}
        values |= {"latent_mse": (reached - goal).square().mean(1), "latent_mse_nothing": (s - goal).square().mean(1)}
        _collect(found, values)
    joined = {name: torch.cat(parts) for name, parts in found.items()}
    leaves = {name: metrics.interval(values, draws=draws) for name, values in joined.items()}
    explained = 1 - joined["latent_mse"].mean() / joined["latent_mse_nothing"].mean()
    return leaves | {"latent_explained": metrics.leaf(explained.item())}


def reached_on_samples(
    backbones: Backbones,
    editor: Editor,
    strength: float,
    w_plus: Tensor,
    detail: Tensor | None,
    fakes: Tensor,
    draws: Draws,
) -> dict[str, Leaf]:
    """Are people whose codes were found edited as well as people who were made of codes? w_plus [n,L,D] and detail
    [n,...]: of the former; fakes [n,D]: w of the latter.

    Both are taken for what the generator draws. reached_inverted, reached_sampled: among those in whom the oracle does
    not see a prompt's value, the share of edits in which it does; reached_gap: the first less the second.
    """
    if note := backbones.absent("oracle"):
        return {"reached_gap": metrics.absent(note)}
    generator = backbones.generator
    made = generator.repeat(fakes[:SAMPLED].to(backbones.device))
    kinds = ((w_plus[:SAMPLED].to(backbones.device), detail), (made, None))
    found = [_reached(backbones, editor, strength, codes, lacking) for codes, lacking in kinds]
    both, own = np.concatenate(found), len(found[0])

    def shares(weights: np.ndarray, part: slice) -> np.ndarray:
        table, chosen = both[part], weights[:, part]
        with np.errstate(invalid="ignore"):
            return metrics.nanmean((chosen @ np.nan_to_num(table)) / (chosen @ ~np.isnan(table)))

    def gap(weights: np.ndarray) -> np.ndarray:
        return shares(weights, slice(own)) - shares(weights, slice(own, None))

    leaves = {name: metrics.interval(table, draws=draws) for name, table in zip(REACHED, found, strict=True)}
    return leaves | {"reached_gap": metrics.bootstrap(gap, len(both), draws)}


@torch.no_grad()
def _reached(
    backbones: Backbones, editor: Editor, strength: float, w_plus: Tensor, detail: Tensor | None
) -> np.ndarray:
    """[n,prompts]: whether the oracle sees what it did not see before, NaN for whom it saw it in."""
    prompts = [prompt for prompt in backbones.domain.prompts if prompt.split == "seen" and prompt.asks]
    if not prompts:
        return np.full((len(w_plus), 1), np.nan)
    directions = [editor.fit(TextPair(backbones.domain.neutral, prompt.text)) for prompt in prompts]
    rows = []
    for part in batches(len(w_plus), 4 * TOGETHER):
        codes, added = w_plus[part], None if detail is None else detail[part]
        people = sources.source(backbones, _drawn(backbones, codes, added).clamp(-1, 1), codes, added)
        before, columns = backbones.oracle.read(people.image), []
        for prompt, direction in zip(prompts, directions, strict=True):
            after = backbones.oracle.read(editor.edit(people, direction, strength).images.clamp(-1, 1))
            name, value = next(iter(prompt.asks.items()))
            wanted = backbones.oracle.attributes[name].index(value)
            saw, sees = (read[name].cpu().numpy() == wanted for read in (before, after))
            columns.append(np.where(saw, np.nan, sees))
        rows.append(np.stack(columns, axis=1))
    return np.concatenate(rows)
