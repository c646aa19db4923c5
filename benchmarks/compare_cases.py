"""Rows of `benchmarks.compare`: the same work as published, by plain batched PyTorch, and here."""

from __future__ import annotations

from collections.abc import Callable
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
from pipeline.finite_differences import FiniteDifferences
from pipeline.models import stylegan2 as generators
from pipeline.models.clip import Clip
from pipeline.models.stylespace import StyleLayout
from pipeline.runtime.errors import InputError
from pipeline.storage import artefacts
from pipeline.training import fit

if TYPE_CHECKING:
    from pipeline.networks import Networks

IMAGES, SHARE = 8, 5  # of the relevance rows; one in SHARE channels of each layer
PUBLISHED_MAPPER = 6000, 0.5, 0.0  # steps, lr and lr_decay on portraits
OUR_STEPS = 1700  # that reach the same loss
FFHQ = StyleLayout((512,) * 10 + (256, 256, 128, 128, 64, 64, 32))
WIDTHS_256 = {4: 512, 8: 512, 16: 512, 32: 512, 64: 512, 128: 256, 256: 128}  # StyleGAN2 config f
VIT_B_32: dict[str, Any] = {
    "embed_dim": 512,
    "vision": {"image_size": 224, "layers": 12, "width": 768, "patch_size": 32},
    "text": {"context_length": 77, "width": 64, "heads": 2, "layers": 1},  # not measured
}


def _probe(networks: Networks, images: int, **settings: Any) -> relevance.Probe:
    params = relevance.RelevanceParams(images, 5.0, 0.7, 0, **settings)
    return relevance.probe(networks.generator, networks.clip, *networks.s_stats, params)


def _channels(layout: StyleLayout) -> list[range]:
    return [range(offset, offset + max(1, width // SHARE)) for offset, width in zip(layout.offsets, layout.dims)]


def relevance_finite(networks: Networks) -> Case:
    """Rows of the relevance matrix by finite differences; plain and ours in the default precision."""
    probe, images = _probe(networks, IMAGES, precision="bfloat16"), range(IMAGES)
    parts = _channels(networks.generator.layout)
    channels = [channel for part in parts for channel in part]

    def ours() -> Tensor:
        differences = FiniteDifferences(probe)
        return F.normalize(torch.cat([differences.rows(images, part) for part in parts]), dim=1)

    return Case(
        lambda: baseline.relevance_rows(probe, channels),
        lambda: baseline.relevance_rows(probe, channels, shared=True),
        ours,
        rounds=3,
    )


def relevance_reverse(networks: Networks) -> Case:
    """One image's part of the whole matrix by derivatives, against the same by whole syntheses."""
    probe, one = _probe(networks, IMAGES), _probe(networks, 1, method="reverse")
    channels = [channel for part in _channels(networks.generator.layout) for channel in part]

    def rows(shared: bool) -> None:
        baseline.relevance_rows(probe, channels, shared)

    def ours() -> None:
        relevance.compute(one, relevance.Part(range(1), range(one.generator.layout.size)))

    parts = networks.generator.layout.size / len(channels) / IMAGES
    return Case(partial(rows, False), partial(rows, True), ours, rounds=3, parts=parts)


def box_resample_1024(networks: Networks) -> Case:
    """CLIP's input, 224 px, from a 1024 px image."""
    images = torch.randn(1, 3, 1024, 1024, device=networks.device)
    return Case(
        lambda: baseline.resampled(images, 224),
        lambda: box_resample(images, 224, impl="ref"),
        lambda: box_resample(images, 224),
        rounds=7,
    )


def _sample_cache(generator: generators.Generator, clip: Clip, count: int, batch: int, rounds: int) -> Case:
    """Pairs (s, CLIP) of `count` fakes, compared by their unit embeddings. batch: of the published code."""
    w = sampling.sample_w(generator, range(count), 0, 1.0).to(generator.w_mean.device)

    @torch.no_grad()
    def plain() -> Tensor:
        embeddings = []
        for part in w.split(batch):
            w_plus = generator.repeat(part)
            images = baseline.synthesis(generator, generator.styles(w_plus), w_plus, True, torch.bfloat16)
            embeddings.append(baseline.embed(clip, images, torch.bfloat16))
        return F.normalize(torch.cat(embeddings), dim=1)

    return Case(
        lambda: F.normalize(baseline.fake_codes(generator, clip, w, batch)[1], dim=1),
        plain,
        lambda: F.normalize(sampling.fake_codes(generator, clip, w, max(8, count), "bfloat16")[1], dim=1).to(w.device),
        rounds,
    )


def sample_cache_portraits(networks: Networks) -> Case:
    """The networks of `portraits`."""
    return _sample_cache(networks.generator, networks.clip, 64, 16, 5)


def sample_cache_256(networks: Networks) -> Case:
    """A 256 px generator and a ViT-B/32 of the published widths, with random weights."""
    torch.manual_seed(0)
    generator = generators.Generator(256, 512, WIDTHS_256).to(networks.device).eval().requires_grad_(False)
    clip = Clip(VIT_B_32).to(networks.device).eval().requires_grad_(False)
    return _sample_cache(generator, clip, 8, 4, 3)


def mapper_step_ffhq(networks: Networks) -> Case:
    """One training step of the published mapper for FFHQ, 82.8 million parameters, batch 64; ours with bfloat16."""
    device, dim = networks.device, 512
    s, target = torch.randn(2, 64, FFHQ.size, device=device)
    condition = torch.randn(64, 2 * dim, device=device)

    def step(mapper: DeltaMapper, adam: torch.optim.Optimizer, half: bool) -> None:
        with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=half):
            predicted = mapper(s, condition).float()
        values = losses(predicted, target)
        (values["code"] + values["cosine"]).backward()
        adam.step()
        adam.zero_grad(set_to_none=True)

    def trained(half: bool, **how: Any) -> Callable[[], None]:
        torch.manual_seed(0)
        mapper = DeltaMapper(FFHQ, dim).to(device)
        return partial(step, mapper, torch.optim.Adam(mapper.parameters(), lr=0.5, **how), half)

    return Case(trained(False, foreach=False), trained(True, foreach=True), trained(True, fused=True), rounds=7)


def mapper_time_to_loss(networks: Networks) -> Case:
    """Training until the validation loss of the published recipe's end: here with a rate that decays, in fewer steps.

    Every round has its own seed. plain: the published recipe without its data loader.
    Raises InputError where the codes are missing, or where OUR_STEPS end above that loss.
    """
    codes = networks.root / "data" / networks.domain.name / "codes"
    unseen, train = (
        artefacts.read(codes, "codes", ["s", "clip"], {"source": ("fake", "real"), "split": split})
        for split in ("val", "train")
    )
    s, clip, layout = train["s"], train["clip"], networks.generator.layout
    seeds = {"published": 0, "plain": 0, "ours": 0}
    targets: dict[int, float] = {}  # published loss, by seed

    def params(name: str, steps: int, lr: float, lr_decay: float) -> MapperParams:
        seeds[name] += 1
        torch.manual_seed(seeds[name])
        return MapperParams(steps, 64, lr, lr_decay, "code", "both", None, seeds[name])

    def loss(mapper: DeltaMapper) -> Tensor:
        validation = validate(mapper.eval(), unseen["s"], unseen["clip"])
        return torch.tensor(validation["val_mse"] + 1 - validation["val_cos"])

    def published() -> Tensor:
        recipe, mapper = params("published", *PUBLISHED_MAPPER), DeltaMapper(layout, clip.shape[1])
        baseline.mapper_training(mapper, s, clip, recipe.steps, recipe.batch, recipe.lr)
        end = loss(mapper)
        targets[seeds["published"]] = end.item()
        return end

    def trained(recipe: MapperParams) -> Tensor:
        trainer = Trainer(s, clip, layout, recipe)
        for _ in fit(trainer.step, trainer.parts, recipe.steps):
            pass
        return loss(trainer.mapper)

    def ours() -> Tensor:
        end = trained(params("ours", OUR_STEPS, networks.domain.defaults["mapper"]["lr"], 0.5))
        if end > (target := targets[seeds["ours"]]):
            raise InputError(f"{OUR_STEPS} steps end at {end:.4f}, above {target:.4f}: they are too few")
        return end

    return Case(published, lambda: trained(params("plain", *PUBLISHED_MAPPER)), ours, rounds=3, whole=True)


CASES: dict[str, Callable[[Networks], Case]] = {
    "relevance_portraits": relevance_finite,
    "relevance_reverse_portraits": relevance_reverse,
    "box_resample_1024": box_resample_1024,
    "sample_cache_portraits": sample_cache_portraits,
    "sample_cache_256": sample_cache_256,
    "mapper_step_ffhq": mapper_step_ffhq,
    "mapper_time_to_loss": mapper_time_to_loss,
}
