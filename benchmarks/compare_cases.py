"""The rows of `make bench`: the same work as published, plainly batched, and ours. Sizes are those of a short run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks import baseline
from benchmarks.compare import Case
from kernels.box_resample import box_resample
from pipeline import relevance, sampling
from pipeline.delta_mapper import DeltaMapper, MapperParams, Trainer, losses, validate
from pipeline.models import stylegan2 as generators
from pipeline.models.clip import Clip
from pipeline.models.stylespace import StyleLayout
from pipeline.runtime.errors import InputError
from pipeline.storage import artefacts
from pipeline.training import fit

if TYPE_CHECKING:
    from pipeline.networks import Backbones

PICTURES, SHARE = 8, 5  # of the relevance rows: pictures, and the SHARE-th part of each layer's channels
PUBLISHED_MAPPER = 6000, 0.5, 0.0  # steps, rate and fade on portraits
OUR_STEPS = 1700  # that reach where those end
FFHQ = StyleLayout((512,) * 10 + (256, 256, 128, 128, 64, 64, 32))
WIDTHS_256 = {4: 512, 8: 512, 16: 512, 32: 512, 64: 512, 128: 256, 256: 128}  # StyleGAN2 config f
VIT_B_32: dict[str, Any] = {
    "embed_dim": 512,
    "vision": {"image_size": 224, "layers": 12, "width": 768, "patch_size": 32},
    "text": {"context_length": 77, "width": 64, "heads": 2, "layers": 1},  # not run
}


def _probe(backbones: Backbones, pictures: int, **changed: Any) -> relevance.Probe:
    params = relevance.RelevanceParams(pictures, 5.0, 0.7, 0, **changed)
    return relevance.probe(backbones.generator, backbones.clip, backbones.s_mean, backbones.s_std, params)


def _channels(layout: StyleLayout) -> list[range]:
    return [range(offset, offset + max(1, width // SHARE)) for offset, width in zip(layout.offsets, layout.dims)]


def relevance_finite(backbones: Backbones) -> Case:
    """The same rows of the matrix; plain and ours in the default precision."""
    probe, pictures = _probe(backbones, PICTURES, precision="bfloat16"), range(PICTURES)
    parts = _channels(backbones.generator.layout)
    channels = [channel for part in parts for channel in part]

    def ours() -> Tensor:
        fresh = replace(probe)  # that holds nothing of the round before
        found = [relevance.compute(fresh, relevance.Part(pictures, part)) for part in parts]
        return F.normalize(torch.cat(found), dim=1)

    return Case(
        lambda: baseline.relevance_rows(probe, channels),
        lambda: baseline.relevance_rows(probe, channels, shared=True),
        ours,
        rounds=3,
    )


def relevance_reverse(backbones: Backbones) -> Case:
    """One picture's part of the whole matrix by derivatives, against the same by whole pictures."""
    probe, one = _probe(backbones, PICTURES), _probe(backbones, 1, method="reverse")
    channels = [channel for part in _channels(backbones.generator.layout) for channel in part]

    def rows(shared: bool) -> None:
        baseline.relevance_rows(probe, channels, shared)

    def ours() -> None:
        relevance.compute(one, relevance.Part(range(1), range(one.generator.layout.size)))

    parts = backbones.generator.layout.size / len(channels) / PICTURES
    return Case(partial(rows, False), partial(rows, True), ours, rounds=3, parts=parts)


def box_resample_1024(backbones: Backbones) -> Case:
    images = torch.randn(1, 3, 1024, 1024, device=backbones.device)
    return Case(
        lambda: baseline.resampled(images, 224),
        lambda: box_resample(images, 224, impl="ref"),
        lambda: box_resample(images, 224),
        rounds=7,
    )


def _sample_cache(generator: generators.Generator, clip: Clip, count: int, batch: int, rounds: int) -> Case:
    """Pairs (s, CLIP) of `count` fakes; compared are unit embeddings. `batch` is the published code's."""
    w = sampling.sample_w(generator, range(count), 0, 1.0).to(generator.w_mean.device)

    @torch.no_grad()
    def plain() -> Tensor:
        found = []
        for part in w.split(batch):
            w_plus = generator.repeat(part)
            images = baseline.synthesis(generator, generator.styles(w_plus), w_plus, True, torch.bfloat16)
            found.append(baseline.embed(clip, images, torch.bfloat16))
        return F.normalize(torch.cat(found), dim=1)

    return Case(
        lambda: F.normalize(baseline.fake_codes(generator, clip, w, batch)[1], dim=1),
        plain,
        lambda: F.normalize(sampling.fake_codes(generator, clip, w, max(8, count), "bfloat16")[1], dim=1).to(w.device),
        rounds,
    )


def sample_cache_portraits(backbones: Backbones) -> Case:
    return _sample_cache(backbones.generator, backbones.clip, 64, 16, 5)


def sample_cache_256(backbones: Backbones) -> Case:
    """A generator and a ViT-B/32 of the published widths, with random weights."""
    torch.manual_seed(0)
    generator = generators.Generator(256, 512, WIDTHS_256).to(backbones.device).eval().requires_grad_(False)
    clip = Clip(VIT_B_32).to(backbones.device).eval().requires_grad_(False)
    return _sample_cache(generator, clip, 8, 4, 3)


def mapper_step_ffhq(backbones: Backbones) -> Case:
    """One training step of the published mapper for FFHQ, 82.8 million parameters, batch 64; ours with bfloat16."""
    device, dim = backbones.device, 512
    s, target = torch.randn(2, 64, FFHQ.size, device=device)
    told = torch.randn(64, 2 * dim, device=device)

    def step(mapper: DeltaMapper, adam: torch.optim.Optimizer, half: bool) -> None:
        with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=half):
            predicted = mapper(s, told).float()
        values = losses(predicted, target)
        (values["code"] + values["cosine"]).backward()
        adam.step()
        adam.zero_grad(set_to_none=True)

    def trained(half: bool, **how: Any) -> Callable[[], None]:
        torch.manual_seed(0)
        mapper = DeltaMapper(FFHQ, dim).to(device)
        return partial(step, mapper, torch.optim.Adam(mapper.parameters(), lr=0.5, **how), half)

    return Case(trained(False, foreach=False), trained(True, foreach=True), trained(True, fused=True), rounds=7)


def mapper_time_to_loss(backbones: Backbones) -> Case:
    """From nothing to the validation loss that the published recipe ends with: the domain's rate, falling, in fewer
    steps. Each of three rounds has its own seed; plain is the published recipe without its loader.

    InputError where the codes are not made, or where our steps end above that loss.
    """
    codes = backbones.root / "data" / backbones.domain.name / "codes"
    unseen, train = (
        artefacts.read(codes, "codes", ["s", "clip"], {"source": ("fake", "real"), "split": split})
        for split in ("val", "train")
    )
    s, clip, layout = train["s"], train["clip"], backbones.generator.layout
    rate, seeds = backbones.domain.defaults["mapper"]["lr"], {"published": 0, "plain": 0, "ours": 0}
    ends: dict[int, float] = {}

    def params(name: str, steps: int, lr: float, fade: float) -> MapperParams:
        seeds[name] += 1
        torch.manual_seed(seeds[name])
        return MapperParams(steps, 64, lr, fade, "code", "both", None, seeds[name])

    def loss(trained: DeltaMapper) -> Tensor:
        found = validate(trained.eval(), unseen["s"], unseen["clip"])
        return torch.tensor(found["val_mse"] + 1 - found["val_cos"])

    def theirs() -> Tensor:
        recipe, fresh = params("published", *PUBLISHED_MAPPER), DeltaMapper(layout, clip.shape[1])
        baseline.mapper_training(fresh, s, clip, recipe.steps, recipe.batch, recipe.lr)
        found = loss(fresh)
        ends[seeds["published"]] = found.item()
        return found

    def trained(recipe: MapperParams) -> Tensor:
        trainer = Trainer(s, clip, layout, recipe)
        for _ in fit(trainer.step, trainer.parts, recipe.steps):
            pass
        return loss(trainer.mapper)

    def ours() -> Tensor:
        found = trained(params("ours", OUR_STEPS, rate, 0.5))
        if found > ends[seeds["ours"]]:
            raise InputError(f"{OUR_STEPS} steps end at {found:.4f}, above {ends[seeds['ours']]:.4f}: they are too few")
        return found

    return Case(theirs, lambda: trained(params("plain", *PUBLISHED_MAPPER)), ours, rounds=3, whole=True)


CASES: dict[str, Callable[[Backbones], Case]] = {
    "relevance_portraits": relevance_finite,
    "relevance_reverse_portraits": relevance_reverse,
    "box_resample_1024": box_resample_1024,
    "sample_cache_portraits": sample_cache_portraits,
    "sample_cache_256": sample_cache_256,
    "mapper_step_ffhq": mapper_step_ffhq,
    "mapper_time_to_loss": mapper_time_to_loss,
}
