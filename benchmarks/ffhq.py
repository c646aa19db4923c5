"""Cost of the method in the published sizes, on this GPU; reports/gpu/ffhq_shapes.json.

StyleGAN2 config f at 1024 px, CLIP ViT-B/32, the mapper of 82.8 million parameters, DiffAE's U-Net at 256 px; weights
are random, since time does not depend on them. Work of hours is measured in part and extrapolated: those keys begin
with `projected`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks import gpu
from benchmarks.compare_cases import VIT_B_32
from kernels import dispatch
from pipeline import relevance, sampling
from pipeline.delta_mapper import DeltaMapper, MapperParams, Trainer
from pipeline.editors._edit_direction import masked_direction
from pipeline.finite_differences import FiniteDifferences
from pipeline.models.clip import Clip
from pipeline.models.stylegan2 import Generator
from pipeline.storage import params
from pipeline.values import Direction, Inversion, Source, TextPair

COMMAND = "python -m benchmarks ffhq"
WIDTHS = {4: 512, 8: 512, 16: 512, 32: 512, 64: 512, 128: 256, 256: 128, 512: 64, 1024: 32}
FAKES, IMAGES, STEPS = 200_000, 100, 201_562  # of the paper: codes, images per channel, training steps
PAPER_G_MS, PAPER_D_S = 73.0, 14.6  # of one edit
NOTES = (
    "random weights in the published sizes; precision and TF32 as the library and PyTorch have them by default",
    "sample_cache: sampling.sample_w, then sampling.fake_codes in bfloat16; images_per_s counts both",
    "relevance_finite: about a twentieth of every layer's channels, on pictures_measured images; a layer's seconds are"
    " scaled by its channels, and all by images; the cached pass per 8 images is counted apart",
    "relevance_reverse: one image, all channels at once",
    "mapper: pipeline.delta_mapper.Trainer with codes and weights on the device; the losses are read back every step",
    "deltaedit_g: from s and the CLIP code of one image to the edit; the text's delta and channel mask are precomputed",
    "deltaedit_d: whole: inversion to noise and sampling; again: sampling alone, with the noise of an earlier edit",
)


@dataclass(frozen=True)
class Sizes:
    """Sizes and amounts of work; the defaults are the published sizes."""

    size: int = 1024
    style_dim: int = 512
    widths: dict[int, int] = field(default_factory=lambda: WIDTHS)
    clip: dict[str, Any] = field(default_factory=lambda: VIT_B_32)
    batches: tuple[int, ...] = (8, 16, 32)
    least_s: float = 4.0  # of rendering, per batch size
    images: int = 8  # of a batch of finite differences
    share: int = 20  # one in 20 channels is measured
    layer_s: float = 2.5  # per layer at most, about
    rows: int = 8192  # of codes
    steps: int = 300  # of the mapper
    edits: int = 50
    denoiser: dict[str, Any] = field(
        default_factory=lambda: {
            "resolution": 256,
            "channels": 128,
            "mult": (1, 1, 2, 2, 4, 4),
            "blocks": 2,
            "attention": (16,),
            "time_dim": 512,
            "style_dim": 512,
            "dropout": 0.1,
        }
    )
    slow_steps: int = 100  # of ddim
    slow_edits: int = 3
    fast_edits: int = 10


class World:
    """Networks with random weights on one device, with the attributes that editors read."""

    def __init__(self, sizes: Sizes, device: str) -> None:
        torch.manual_seed(0)
        self.sizes, self.device = sizes, device
        self.generator = _frozen(Generator(sizes.size, sizes.style_dim, sizes.widths), device)
        self.clip = _frozen(Clip(sizes.clip), device)
        self.s_stats = sampling.measured_stats(self.generator)
        layout = self.generator.layout
        self.mapper = _frozen(DeltaMapper(layout, self.clip.dim), device)
        self.relevance = F.normalize(torch.randn(layout.size, self.clip.dim, device=device), dim=1)
        self.denoiser: Any = None

    def absent(self, name: str) -> None:
        """No network is missing."""

    def source(self, resolution: int) -> Source:
        """One source image, noise of `resolution` pixels."""
        w_plus = self.generator.repeat(torch.randn(1, self.sizes.style_dim, device=self.device))
        image = torch.rand(1, 3, resolution, resolution, device=self.device) * 2 - 1
        code = torch.randn(1, self.clip.dim, device=self.device)
        with torch.no_grad():
            return Source(image, Inversion(w_plus), self.generator.styles(w_plus), code)

    def direction(self) -> Direction:
        """A text pair with a random delta."""
        return Direction(TextPair("face", "face with red hair"), 0.1 * torch.randn(self.clip.dim, device=self.device))


def _frozen(network: Any, device: str) -> Any:
    return network.to(device).eval().requires_grad_(False)


# ---------------------------------------------------------------- codes


def sample_cache(world: World) -> dict[str, Any]:
    """Images per second, rendered and embedded, by batch size; the largest also by plain PyTorch."""
    sizes, device, largest = world.sizes, world.device, max(world.sizes.batches)
    count = min(8192, 32 * largest)
    sampling.sample_w(world.generator, range(largest), 0, 1.0)
    drawing = gpu.seconds(lambda: sampling.sample_w(world.generator, range(count), 0, 1.0), device) / count
    w = sampling.sample_w(world.generator, range(count), 0, 1.0)
    item: dict[str, Any] = {"sample_w_us_per_image": 1e6 * drawing}
    for batch in sizes.batches:
        item[f"batch {batch}"] = _rendered(world, w, batch, drawing)
    with dispatch.reference_only():
        item[f"batch {largest}, ref"] = _rendered(world, w, largest, drawing)
    item[f"batch {largest}, ours_again"] = _rendered(world, w, largest, drawing)
    return item


def _rendered(world: World, w: Tensor, batch: int, drawing: float) -> dict[str, float]:
    """Times of rendering and embedding w; drawing: seconds to sample one w."""

    def codes(count: int) -> None:
        sampling.fake_codes(world.generator, world.clip, w[:count], batch, "bfloat16")

    codes(batch)
    one = gpu.seconds(lambda: codes(batch), world.device)
    count = batch * max(1, min(len(w) // batch, math.ceil(world.sizes.least_s / one)))
    each = gpu.seconds(lambda: codes(count), world.device) / count
    return {
        "images_measured": count,
        "render_embed_ms_per_image": 1e3 * each,
        "images_per_s": 1 / (each + drawing),
        "projected_200000_images_h": FAKES * (each + drawing) / 3600,
    }


# ---------------------------------------------------------------- relevance


def _probe(world: World, images: int, method: Any, precision: Any) -> relevance.Probe:
    settings = relevance.RelevanceParams(images, 5.0, 0.7, 0, method, precision)
    return relevance.probe(world.generator, world.clip, *world.s_stats, settings)


def relevance_finite(world: World, precision: str = "bfloat16") -> dict[str, Any]:
    """Seconds of every layer for about a twentieth of its channels, extrapolated to the whole matrix."""
    sizes, layout, device = world.sizes, world.generator.layout, world.device
    differences = FiniteDifferences(_probe(world, sizes.images, "finite", precision))
    images, layers = range(sizes.images), {}

    def rows(layer: int, count: int) -> float:
        channels = range(layout.offsets[layer], layout.offsets[layer] + count)
        return gpu.seconds(lambda: differences.rows(images, channels), device)

    rows(0, 1)  # the cached pass, and the setup of the first call
    differences.passes.clear()
    base = max(0.0, rows(0, 1) - rows(0, 1))
    total = 0.0
    for layer, width in enumerate(layout.dims):
        few = min(4, width)
        rows(layer, few)
        quick = rows(layer, few) / few
        count = max(few, min(width, max(1, width // sizes.share), int(sizes.layer_s / quick)))
        spent = rows(layer, count)
        layers[f"layer {layer}"] = {"channels": width, "channels_measured": count, "measured_s": spent}
        total += spent * width / count
    whole = (total + base) * IMAGES / sizes.images
    return {
        "precision": precision,
        "pictures_measured": sizes.images,
        "channels": layout.size,
        "channels_measured": sum(entry["channels_measured"] for entry in layers.values()),
        "kept_pass_s": base,
        "layers": layers,
        "projected_all_channels_measured_pictures_s": total + base,
        "projected_all_channels_100_pictures_min": whole / 60,
    }


def relevance_reverse(world: World) -> dict[str, Any]:
    """Seconds of one image for all channels."""
    probe, dim, device = _probe(world, 1, "reverse", "float32"), world.clip.dim, world.device
    relevance.derivatives(probe, 0, torch.eye(dim, device=device)[: relevance.COTANGENTS])  # setup
    every = relevance.Part(range(1), range(world.generator.layout.size))
    image_s = gpu.seconds(lambda: relevance.compute(probe, every), device)
    return {
        "precision": "float32",
        "cotangents": dim,
        "cotangents_per_pass": relevance.COTANGENTS,
        "picture_s": image_s,
        "projected_all_channels_100_pictures_min": IMAGES * image_s / 60,
    }


# ---------------------------------------------------------------- the mapper


def mapper(world: World, precision: Any) -> dict[str, Any]:
    """Seconds of a training step, extrapolated to the published number of steps."""
    sizes, device = world.sizes, world.device
    settings = MapperParams(STEPS, 64, 0.5, 0.5, "code", "both", None, 0, precision)
    layout = world.generator.layout
    s = torch.randn(sizes.rows, layout.size, device=device).half()
    clip = torch.randn(sizes.rows, world.clip.dim, device=device)
    trainer = Trainer(s, clip, layout, settings, device)
    for number in range(min(20, sizes.steps)):
        trainer.step(number)
    times = []
    for half in range(2):  # the second gives the noise
        numbers = range(20 + half * sizes.steps, 20 + (half + 1) * sizes.steps)
        spent = gpu.seconds(lambda numbers=numbers: [trainer.step(number) for number in numbers], device)
        times.append(spent / sizes.steps)
    return {
        "parameters": sum(p.numel() for p in trainer.mapper.parameters()),
        "batch": settings.batch,
        "steps_measured": 2 * sizes.steps,
        "step_ms": 1e3 * times[0],
        "step_again_ms": 1e3 * times[1],
        "projected_201562_steps_min": STEPS * times[0] / 60,
    }


# ---------------------------------------------------------------- edits


def deltaedit_g(world: World) -> dict[str, Any]:
    """An edit from codes to image: with native code, by plain PyTorch, and with a text that was not precomputed."""
    from pipeline.editors.deltaedit_g import DeltaEditG, Params

    editor = DeltaEditG(world, Params(1.0, threshold=0.03, same_sign=True))  # type: ignore[arg-type]
    prepared = editor.prepare(world.source(world.sizes.size))
    known = masked_direction(world, world.direction(), editor.params)  # type: ignore[arg-type]

    def edit(direction: Callable[[], Direction]) -> None:
        editor.edit(prepared, direction(), 1.0)

    def new() -> Direction:
        return masked_direction(world, known, editor.params)  # type: ignore[arg-type]

    measured = partial(gpu.latency, device=world.device, repeats=world.sizes.edits)
    item: dict[str, Any] = {"paper_ms": PAPER_G_MS, "ours": measured(lambda: edit(lambda: known))}
    item["new_text"] = measured(lambda: edit(new))
    with dispatch.reference_only():
        item["ref"] = measured(lambda: edit(lambda: known))
    item["ours_again"] = measured(lambda: edit(lambda: known))
    with torch.autocast(torch.device(world.device).type, torch.bfloat16):
        item["ours_bfloat16_autocast"] = measured(lambda: edit(lambda: known))
    item["paper_over_ours"] = PAPER_G_MS / item["ours"]["median_ms"]
    return item


def denoiser(world: World) -> dict[str, Any]:
    """The U-Net, which the items on DeltaEdit-D need, and one pass of it."""
    from pipeline.models.unet import Denoiser

    torch.manual_seed(1)
    sizes, device = world.sizes, world.device
    network = world.denoiser = _frozen(
        Denoiser(style_sizes=world.generator.layout.level_sizes, **sizes.denoiser), device
    )
    resolution, styles = network.spec["resolution"], sum(network.spec["style_sizes"])
    x, s = torch.randn(1, 3, resolution, resolution).to(device), torch.randn(1, styles).to(device)
    t = torch.full((1,), 500, device=device)

    @torch.no_grad()
    def one(half: bool) -> None:
        with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=half):
            network(x, t, s)

    return {
        "model": network.spec,
        "parameters": sum(p.numel() for p in network.parameters()),
        "pass_float32": gpu.latency(lambda: one(False), device, sizes.edits // 2),
        "pass_bfloat16_autocast": gpu.latency(lambda: one(True), device, sizes.edits // 2),
    }


def deltaedit_d(world: World, settings: dict[str, Any], edits: int) -> dict[str, Any]:
    """One edit at the denoiser's resolution, by inversion and sampling; and another of the same image."""
    from pipeline.editors.deltaedit_d import Params, build

    if world.denoiser is None:
        raise RuntimeError("the denoiser's item failed")
    editor = build(world, Params(**settings))  # type: ignore[arg-type]
    source = world.source(world.denoiser.spec["resolution"])
    direction = masked_direction(world, world.direction(), editor.params)  # type: ignore[arg-type]
    prepared = editor.prepare(source)
    evaluations: list[int] = []

    def edit(whole: bool) -> None:
        evaluations.append(editor.edit(editor.prepare(source) if whole else prepared, direction, 1.0).evaluations)

    item = {
        "settings": settings,
        "paper_s": PAPER_D_S,
        "whole": gpu.latency(lambda: edit(True), world.device, edits, warm=1),
        "again": gpu.latency(lambda: edit(False), world.device, edits, warm=1),
        "evaluations": evaluations[-1],
    }
    item["paper_over_whole"] = 1e3 * PAPER_D_S / item["whole"]["median_ms"]
    return item


# ---------------------------------------------------------------- all of it


def run(path: Path, root: Path, device: str, sizes: Sizes | None = None) -> Iterator[tuple[str, Any]]:
    """Measure everything and write it to `path`; yields every item as it is done.

    sizes: others than the published ones, for a rehearsal on any device
    Raises InputError without a GPU.
    """
    if sizes is None:
        gpu.check_gpu(device, COMMAND)
    chosen = Sizes() if sizes is None else sizes
    record = gpu.record(path, COMMAND, root, device, NOTES)
    start = time.perf_counter()
    world = World(chosen, device)
    layout = world.generator.layout
    record.content["shapes"] = {
        "size_px": chosen.size,
        "style_channels": layout.size,
        "layers": list(layout.dims),
        "generator_parameters": sum(p.numel() for p in world.generator.parameters()),
        "image_tower_parameters": sum(p.numel() for p in world.clip.model.visual.parameters()),
        "set_up_s": round(time.perf_counter() - start, 2),
    }
    settings = params.load_yaml(root)
    shipped = {**settings["channel_mask"], **settings["edit_diffusion"]["deltaedit_d"]}
    published = {**shipped, "steps": chosen.slow_steps, "solver": "ddim", "guidance": 1.0, "delta_ridge": None}
    items: dict[str, Callable[[], Any]] = {
        "deltaedit_g": lambda: deltaedit_g(world),
        "sample_cache": lambda: sample_cache(world),
        "mapper_float32": lambda: mapper(world, "float32"),
        "mapper_bfloat16": lambda: mapper(world, "bfloat16"),
        "denoiser": lambda: denoiser(world),
        "deltaedit_d_shipped": lambda: deltaedit_d(world, shipped, chosen.fast_edits),
        "deltaedit_d_ddim": lambda: deltaedit_d(world, published, chosen.slow_edits),
        "relevance_reverse": lambda: relevance_reverse(world),
        "relevance_finite": lambda: relevance_finite(world),
    }
    for name, measure in items.items():
        yield name, record.item(name, measure)
