"""`deltaspace bench ffhq`: what the method costs in the published sizes, on this GPU; reports/gpu/ffhq_shapes.json.

StyleGAN2 config f at 1024 px, CLIP ViT-B/32, the mapper of 82.8 million parameters, DiffAE's U-Net at 256 px; weights
are random, since time does not depend on them. What would take hours is measured in part, and projected: those keys
begin with `projected`.
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
from benchmarks.kernels import plain
from pipeline import relevance, sampling
from pipeline.delta_mapper import DeltaMapper, MapperParams, Trainer
from pipeline.models.clip import Clip
from pipeline.models.stylegan2 import Generator
from pipeline.storage import params
from pipeline.values import Direction, Source, TextPair

WIDTHS = {4: 512, 8: 512, 16: 512, 32: 512, 64: 512, 128: 256, 256: 128, 512: 64, 1024: 32}
FAKES, PICTURES, STEPS = 200_000, 100, 201_562  # of the paper: codes, pictures per channel, training steps
PAPER_G_MS, PAPER_D_S = 73.0, 14.6  # of one edit
NOTES = (
    "random weights in the published sizes; precision and TF32 as the library and PyTorch have them by default",
    "sample_cache: sampling.sample_w, then sampling.fake_codes in bfloat16; images_per_s counts both",
    "relevance_finite: some channels of every layer, about a twentieth, on pictures_measured pictures; a layer's"
    " seconds are scaled by its channels, and all by pictures; the pass that is kept per 8 pictures is counted apart",
    "relevance_reverse: one picture, all channels at once, as many cotangents as cotangents_measured says",
    "mapper: pipeline.mapper.Trainer with codes and weights on the device; the losses are read back every step",
    "deltaedit_g: from s and the CLIP code of one person to the picture; the text's delta and effect are known",
    "deltaedit_d: whole: to noise and back; again: the noise of the person is known from an edit before",
)


@dataclass(frozen=True)
class Sizes:
    """What is measured; the defaults are the published sizes."""

    size: int = 1024
    style_dim: int = 512
    widths: dict[int, int] = field(default_factory=lambda: WIDTHS)
    clip: dict[str, Any] = field(default_factory=lambda: VIT_B_32)
    batches: tuple[int, ...] = (8, 16, 32)
    least_s: float = 4.0  # of rendering, per batch size
    pictures: int = 8  # that finite differences hold at once
    share: int = 20  # one channel in so many
    layer_s: float = 2.5  # per layer at most, about
    reverse_s: float = 40.0  # for one picture at most, else some of its cotangents
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
    """The networks, made once, on one device, and what editors ask of backbones."""

    def __init__(self, sizes: Sizes, device: str) -> None:
        torch.manual_seed(0)
        self.sizes, self.device = sizes, device
        self.generator = _frozen(Generator(sizes.size, sizes.style_dim, sizes.widths), device)
        self.clip = _frozen(Clip(sizes.clip), device)
        self.s_stats = sampling.spread(self.generator)
        layout = self.generator.layout
        self.mapper = _frozen(DeltaMapper(layout, self.clip.dim), device)
        self.relevance = F.normalize(torch.randn(layout.size, self.clip.dim, device=device), dim=1)
        self.denoiser: Any = None

    def effect(self, delta: Tensor) -> Tensor:
        return self.relevance @ delta

    def absent(self, name: str) -> None:
        """Nothing is."""

    def person(self, resolution: int) -> Source:
        """One, whose picture is noise of `resolution` pixels."""
        w_plus = self.generator.repeat(torch.randn(1, self.sizes.style_dim, device=self.device))
        picture = torch.rand(1, 3, resolution, resolution, device=self.device) * 2 - 1
        code = torch.randn(1, self.clip.dim, device=self.device)
        with torch.no_grad():
            return Source(picture, w_plus, self.generator.styles(w_plus), code)

    def direction(self) -> Direction:
        return Direction(TextPair("face", "face with red hair"), 0.1 * torch.randn(self.clip.dim, device=self.device))


def _frozen(network: Any, device: str) -> Any:
    return network.to(device).eval().requires_grad_(False)


# ---------------------------------------------------------------- codes


def sample_cache(world: World) -> dict[str, Any]:
    """Pictures per second, rendered and embedded, for several batches."""
    sizes, generator, device = world.sizes, world.generator, world.device
    drawn = min(8192, 32 * max(sizes.batches))
    sampling.sample_w(generator, range(max(sizes.batches)), 0, 1.0)
    held: list[Tensor] = []
    drawing = gpu.seconds(lambda: held.append(sampling.sample_w(generator, range(drawn), 0, 1.0)), device) / drawn
    found: dict[str, Any] = {"sample_w_us_per_image": 1e6 * drawing}
    for batch in sizes.batches:
        for name in ("ours", "ref", "ours_again") if batch == max(sizes.batches) else ("ours",):
            found[f"batch {batch}{'' if name == 'ours' else ', ' + name}"] = _rendered(
                world, held[0], batch, name, drawing
            )
    return found


def _rendered(world: World, w: Tensor, batch: int, name: str, drawing: float) -> dict[str, float]:
    def codes(count: int) -> None:
        sampling.fake_codes(world.generator, world.clip, w[:count], batch, "bfloat16")

    def measured() -> dict[str, float]:
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

    if name != "ref":
        return measured()
    with plain():
        return measured()


# ---------------------------------------------------------------- relevance


def _probe(world: World, pictures: int, method: Any, precision: Any) -> relevance.Probe:
    asked = relevance.RelevanceParams(pictures, 5.0, 0.7, 0, method, precision)
    return relevance.probe(world.generator, world.clip, *world.s_stats, asked)


def relevance_finite(world: World, precision: str = "bfloat16") -> dict[str, Any]:
    """Seconds of every layer for about a twentieth of its channels, and what the whole matrix would take."""
    sizes, layout, device = world.sizes, world.generator.layout, world.device
    probe = _probe(world, sizes.pictures, "finite", precision)
    pictures, layers = range(sizes.pictures), {}

    def rows(layer: int, count: int) -> float:
        channels = range(layout.offsets[layer], layout.offsets[layer] + count)
        return gpu.seconds(lambda: relevance.compute(probe, relevance.Part(pictures, channels)), device)

    rows(0, 1)  # the kept pass, and what is set up at the first call
    probe.held.clear()
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
    whole = (total + base) * PICTURES / sizes.pictures
    return {
        "precision": precision,
        "pictures_measured": sizes.pictures,
        "channels": layout.size,
        "channels_measured": sum(entry["channels_measured"] for entry in layers.values()),
        "kept_pass_s": base,
        "layers": layers,
        "projected_all_channels_measured_pictures_s": total + base,
        "projected_all_channels_100_pictures_min": whole / 60,
    }


def relevance_reverse(world: World) -> dict[str, Any]:
    """Seconds of one picture for all channels; by plain attention where the device's own has no batched derivative."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    try:
        return {"attention": "default", **_reverse(world)}
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        first = " ".join(str(error).split())[: gpu.LONGEST]
    with sdpa_kernel(SDPBackend.MATH):
        return {"attention": "math", "with_default": first, **_reverse(world)}


def _reverse(world: World) -> dict[str, Any]:
    """All cotangents of one picture, or two passes of them where all would take too long."""
    probe, dim, device = _probe(world, 1, "reverse", "float32"), world.clip.dim, world.device
    basis = torch.eye(dim, device=device)
    some = basis[: 2 * relevance.TOGETHER]
    relevance._derivatives(probe, 0, some[: relevance.TOGETHER])
    one = gpu.seconds(lambda: relevance._derivatives(probe, 0, some[: relevance.TOGETHER]), device)
    two = gpu.seconds(lambda: relevance._derivatives(probe, 0, some), device)
    guess, groups = max(0.0, 2 * one - two), math.ceil(dim / relevance.TOGETHER)
    picture, measured = guess + groups * (two - guess) / 2, len(some)
    if picture < world.sizes.reverse_s:
        every = relevance.Part(range(1), range(world.generator.layout.size))
        picture, measured = gpu.seconds(lambda: relevance.compute(probe, every), device), dim
    return {
        "precision": "float32",
        "cotangents": dim,
        "cotangents_measured": measured,
        "cotangents_per_pass": relevance.TOGETHER,
        "one_pass_s": one,
        "two_passes_s": two,
        "picture_s" if measured == dim else "projected_picture_s": picture,
        "projected_all_channels_100_pictures_min": PICTURES * picture / 60,
    }


# ---------------------------------------------------------------- the mapper


def mapper(world: World, precision: Any) -> dict[str, Any]:
    """Seconds of a step, and of all the published ones."""
    sizes, device = world.sizes, world.device
    recipe = MapperParams(STEPS, 64, 0.5, 0.5, "code", "both", None, 0, precision)
    layout = world.generator.layout
    s = torch.randn(sizes.rows, layout.size, device=device).half()
    clip = torch.randn(sizes.rows, world.clip.dim, device=device)
    trainer = Trainer(s, clip, layout, recipe, device)
    for number in range(min(20, sizes.steps)):
        trainer.step(number)
    times = []
    for half in range(2):  # twice, which gives the noise
        numbers = range(20 + half * sizes.steps, 20 + (half + 1) * sizes.steps)
        spent = gpu.seconds(lambda numbers=numbers: [trainer.step(number) for number in numbers], device)
        times.append(spent / sizes.steps)
    return {
        "parameters": sum(p.numel() for p in trainer.mapper.parameters()),
        "batch": recipe.batch,
        "steps_measured": 2 * sizes.steps,
        "step_ms": 1e3 * times[0],
        "step_again_ms": 1e3 * times[1],
        "projected_201562_steps_min": STEPS * times[0] / 60,
    }


# ---------------------------------------------------------------- edits


def deltaedit_g(world: World) -> dict[str, Any]:
    """From a person's codes to the edited picture: native code, plain PyTorch, and a text that is new."""
    from pipeline.editors.deltaedit_g import DeltaEditG, Params

    editor = DeltaEditG(world, Params(1.0, 0.03, agree=True))  # type: ignore[arg-type]
    person, known = world.person(world.sizes.size), world.direction()

    def edit(direction: Callable[[], Direction]) -> None:
        editor.edit(person, direction(), 1.0)

    def new() -> Direction:
        return Direction(known.condition, known.delta)

    measured = partial(gpu.latency, device=world.device, repeats=world.sizes.edits)
    found: dict[str, Any] = {"paper_ms": PAPER_G_MS, "ours": measured(lambda: edit(lambda: known))}
    found["new_text"] = measured(lambda: edit(new))
    with plain():
        found["ref"] = measured(lambda: edit(lambda: known))
    found["ours_again"] = measured(lambda: edit(lambda: known))
    with torch.autocast(torch.device(world.device).type, torch.bfloat16):
        found["ours_bfloat16_autocast"] = measured(lambda: edit(lambda: known))
    found["paper_over_ours"] = PAPER_G_MS / found["ours"]["median_ms"]
    return found


def denoiser(world: World) -> dict[str, Any]:
    """The U-Net, and one pass of it. The other items on DeltaEdit-D need it."""
    from pipeline.models.unet import Denoiser

    torch.manual_seed(1)
    sizes = world.sizes
    made = _frozen(Denoiser(style_sizes=world.generator.layout.level_sizes, **sizes.denoiser), world.device)
    world.denoiser = made
    x, s = (
        torch.randn(1, 3, made.spec["resolution"], made.spec["resolution"]),
        torch.randn(1, sum(made.spec["style_sizes"])),
    )
    given = x.to(world.device), torch.full((1,), 500, device=world.device), s.to(world.device)

    @torch.no_grad()
    def one(half: bool) -> None:
        with torch.autocast(torch.device(world.device).type, torch.bfloat16, enabled=half):
            made(*given)

    return {
        "model": made.spec,
        "parameters": sum(p.numel() for p in made.parameters()),
        "pass_float32": gpu.latency(lambda: one(False), world.device, sizes.edits // 2),
        "pass_bfloat16_autocast": gpu.latency(lambda: one(True), world.device, sizes.edits // 2),
    }


def deltaedit_d(world: World, settings: dict[str, Any], edits: int) -> dict[str, Any]:
    """One edit at the denoiser's resolution, to noise and back; and the next one of the same person."""
    from pipeline.editors.deltaedit_d import Params, build

    if world.denoiser is None:
        raise RuntimeError("the denoiser was not made")
    walker = build(world, Params(**settings))  # type: ignore[arg-type]
    person, direction = world.person(world.denoiser.spec["resolution"]), world.direction()
    evaluations: list[int] = []

    def edit(forget: bool) -> None:
        if forget:
            walker.known.things.clear()
        evaluations.append(walker.edit(person, direction, 1.0).evaluations)

    found = {
        "settings": settings,
        "paper_s": PAPER_D_S,
        "whole": gpu.latency(lambda: edit(True), world.device, edits, warm=1),
        "again": gpu.latency(lambda: edit(False), world.device, edits, warm=1),
        "evaluations": evaluations[-1],
    }
    found["paper_over_whole"] = 1e3 * PAPER_D_S / found["whole"]["median_ms"]
    return found


# ---------------------------------------------------------------- all of it


def run(path: Path, root: Path, device: str, sizes: Sizes | None = None) -> Iterator[tuple[str, Any]]:
    """Measure everything and write it to `path`; yields every item as it is done. InputError without a GPU.

    sizes: others than the published ones; a rehearsal with them runs on any device.
    """
    if sizes is None:
        gpu.check_gpu(device, "deltaspace bench ffhq")
    chosen = Sizes() if sizes is None else sizes
    record = gpu.record(path, "deltaspace bench ffhq", root, device, NOTES)
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
    shipped = params.load_yaml(root)["edit_diffusion"]["deltaedit_d"]
    published = {**shipped, "steps": chosen.slow_steps, "solver": "ddim", "refine": 0, "guidance": 1.0, "ridge": None}
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
