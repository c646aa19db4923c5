"""Editing pictures one at a time: what stands behind `deltaspace edit`, `deltaspace invert` and `pipeline.load`.

Every picture is a batch of its own, so its result does not depend on its neighbours in a folder.
"""

from __future__ import annotations

import dataclasses
import io
import math
import re
import time
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from deltaspace.prompts import clean, in_range, untaught, words_that_fit
from pipeline import editors, sampling, sources
from pipeline.editors import Editor
from pipeline.inversion import InvertParams, errors, lacking, refine
from pipeline.runtime import processes
from pipeline.runtime.errors import InputError, nearest
from pipeline.storage import domains, params
from pipeline.values import Direction, Edited, Source, TextPair

if TYPE_CHECKING:
    from pipeline.networks import Backbones
    from pipeline.storage.domains import Domain
    from pipeline.storage.images import Photo

FAR = 0.04  # inversion error (MSE on [0,1], 14 dB) that is far where the encoder's file does not tell its own


@dataclass(frozen=True)
class Person:
    """A picture and its codes, a batch of one.

    inversion [3,R,R]: what the generator makes of the codes and their detail. error: its MSE on [0,1]; None for a
    generated picture. notes: what was done to the file. warnings: why results may disappoint.
    """

    name: str
    source: Source
    inversion: Tensor
    error: float | None = None
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    @property
    def picture(self) -> Tensor:
        """[3,R,R]"""
        return self.source.image[0].cpu()

    @property
    def psnr(self) -> float | None:
        """Of the inversion, in dB."""
        return None if self.error is None else -10 * math.log10(max(self.error, 1e-10))


@dataclass(frozen=True)
class Prompt:
    """A condition in words, cleaned, and what one should know about it."""

    pair: TextPair
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Tool:
    """An editor, ready to use, the settings it was built with, and why its results may disappoint."""

    name: str
    settings: Any
    editor: Editor
    warnings: tuple[str, ...] = ()

    @property
    def strength(self) -> float:
        """The strength its settings ask for."""
        return float(getattr(self.settings, "strength", 1.0))


@dataclass(frozen=True)
class Result:
    """One edit. moved of channels: style channels that the editor changed; None where it does not work on them."""

    person: Person
    prompt: Prompt
    editor: str
    strength: float
    edited: Edited
    seconds: float
    moved: int | None = None
    channels: int | None = None
    about_editor: tuple[str, ...] = ()

    @property
    def picture(self) -> Tensor:
        """The edited picture [3,R,R] within [-1,1], on the CPU."""
        return self.edited.images[0].float().clamp(-1, 1).cpu()

    @property
    def warnings(self) -> tuple[str, ...]:
        return (*self.person.warnings, *self.prompt.warnings, *self.about_editor)

    def save(self, path: str | Path) -> None:
        """Write the edited picture as PNG, whole or not at all."""
        from pipeline.storage import images

        images.save_png(Path(path), self.picture)


class Studio:
    """A domain's networks, read when first used; its editors; and pictures to edit."""

    def __init__(self, backbones: Backbones, domain: Domain, root: Path, device: str = "cpu") -> None:
        self.backbones, self.domain, self.root, self.device = backbones, domain, Path(root), device
        self._tools: dict[tuple, Tool] = {}
        self._directions: dict[tuple, Direction] = {}

    @classmethod
    def load(cls, domain: str, device: str = "auto", root: str | Path | None = None) -> Studio:
        """Raises InputError for an unknown domain, with the nearest name, and for a device that is not there."""
        from pipeline.networks import Backbones

        place = Path(root) if root else params.root()
        found, chosen = domains.load(domain, place), device_named(device)
        return cls(Backbones(found, place, chosen), found, place, chosen)

    def ready(self, photographs: bool = True) -> None:
        """Read the networks that every edit needs; InputError when one is missing, naming the command that makes it.

        photographs: pictures that are not the generator's own, which need the encoder too.
        """
        for network in ("generator", *(["encoder"] if photographs else []), "clip"):
            getattr(self.backbones, network)

    # ------------------------------------------------------------ pictures

    @torch.no_grad()
    def photo(self, picture: Any, name: str | None = None, face: int | None = None) -> Person:
        """Invert a photograph: a path, a PIL image, an array uint8 [H,W,3], or a tensor [3,R,R] in [-1,1].

        face: which one, from left to right, from 1 up, where the domain's pictures are aligned by faces; None for the
        largest. Raises InputError for what is not a readable picture, and for a face that is not there. A picture that
        the domain cannot draw, or that is not aligned though it should be, gets a warning.
        """
        name = name or (Path(picture).name if isinstance(picture, str | Path) else "picture")
        photo, warnings = self._opened(picture, name, face)
        image, notes = photo.image.to(self.device), tuple(photo.notes)
        generator = self.backbones.generator
        guess = self.backbones.encoder(image)
        w_plus = refine(self.backbones.encoder, generator, image, guess, self.inverting.refine)
        added = None
        if self.inverting.seeks_detail:
            added = lacking(
                self.backbones.encoder, generator, image, w_plus, self.inverting.detail, self.inverting.refine
            )
        source = sources.source(self.backbones, image, w_plus, added)
        inversion = generator.synthesis(source.s, w_plus, detail=source.detail).clamp(-1, 1)
        error = float(((inversion - image) / 2).square().mean())
        first = errors(generator, image, guess).item()
        if first > self.far_error:
            warnings.append(
                f"{name} is far from what {self.domain.name} can draw (the encoder's error is {first:.3f}, up to "
                f"{self.far_error:.3f} is usual): expect flaws, or a different face"
            )
        return Person(name, source, inversion[0].cpu(), error, notes, tuple(warnings))

    @torch.no_grad()
    def sample(self, row_id: int, seed: int | None = None) -> Person:
        """The generated person `row_id`: with the project's seed (None) the fake of that id in the domain's codes."""
        settings = params.section(sampling.SampleParams, self.root, "sample", domain=self.domain)
        generator = self.backbones.generator
        seed = settings.seed if seed is None else seed
        w = sampling.sample_w(generator, [row_id], seed, settings.truncation, batch=8, redrawn=settings.redrawn)
        w_plus = generator.repeat(w.to(self.device))
        source = sources.source(self.backbones, generator(w_plus).clamp(-1, 1), w_plus)
        return Person(f"sample-{row_id}", source, source.image[0].cpu())

    def portrait(self, row_id: int) -> Person:
        """The drawn person `row_id` of a domain with a renderer, inverted like a photograph, parameters known."""
        if self.domain.renderer is None:
            raise InputError(
                f"{self.domain.name} has photographs, not drawn people: give a picture instead of a portrait"
            )
        from pipeline import portraits
        from pipeline.storage import images

        drawn = portraits.sample(row_id)
        picture = images.from_uint8(portraits.render(drawn, self.domain.resolution))
        person = self.photo(picture, name=f"portrait-{row_id}")
        return replace(person, source=replace(person.source, people=(drawn,)))

    def _opened(self, picture: Any, name: str, face: int | None) -> tuple[Photo, list[str]]:
        """The picture as R x R, and warnings."""
        from pipeline.storage import images

        size = self.domain.resolution
        if face is not None and self.domain.aligned is None:
            raise InputError(f"pictures of {self.domain.name} are not aligned by faces: leave --face out")
        if isinstance(picture, Tensor):
            if picture.shape not in ((3, size, size), (1, 3, size, size)):
                raise InputError(f"a tensor [3,{size},{size}] in [-1,1] is expected, not {list(picture.shape)}")
            return images.Photo(picture.float().reshape(1, 3, size, size)), []
        rgb, notes = images.read_rgb(Path(picture) if isinstance(picture, str | Path) else _as_file(picture))
        if self.domain.aligned is None:
            return images.photo_of(images.squared(rgb, size, notes), notes), []
        from pipeline.storage import faces

        find = faces.finder()
        if find is None:
            if face is not None:
                raise InputError(f"--face needs a finder of faces: {faces.INSTALL}")
            return images.photo_of(images.squared(rgb, size, notes), notes), [faces.not_aligned(self.domain.name)]
        found = faces.look(rgb, find, face, name)
        square = faces.cut_out(rgb, found.corners, size, notes)
        chosen = face is not None or found.warning is None
        return images.photo_of(square, notes), [] if chosen else [f"{name}: {found.warning}"]

    @cached_property
    def inverting(self) -> InvertParams:
        """How photographs are inverted, as in the workflow."""
        return params.section(InvertParams, self.root, "invert", domain=self.domain)

    @cached_property
    def far_error(self) -> float:
        """The encoder's own error above which a picture is far from the domain; its file may tell that number."""
        from pipeline.storage import weights

        own = weights.read_meta(self.backbones.path("encoder")).get("far_error")
        return float(own) if isinstance(own, int | float) else FAR

    # ------------------------------------------------------------ words

    def prompt(self, text: str, source: str | None = None) -> Prompt:
        """`text` against the neutral word `source` (the domain's when None).

        Raises InputError for a text with nothing to see in it. Words CLIP was never taught, and words beyond the
        length it reads, become warnings.
        """
        clip, warnings = self.backbones.clip, []
        target, neutral = (
            clean(text, "prompt"),
            clean(self.domain.neutral if source is None else source, "--source word"),
        )
        fitting = words_that_fit(target, clip, self.domain.templates)
        if fitting != target:
            read, all_words = len(fitting.split()), len(target.split())
            warnings.append(f"the prompt is too long: CLIP reads the first {read} of its {all_words} words")
        for words in (fitting, *([neutral] if source is not None else [])):
            warnings += untaught(words, clip, self.domain.name)
        known = next((prompt for prompt in self.domain.prompts if prompt.text.casefold() == target.casefold()), None)
        pair = TextPair(neutral, fitting or target)
        return Prompt(replace(pair, asks=known.asks) if known else pair, tuple(warnings))

    # ------------------------------------------------------------ editing

    def tool(self, editor: str = editors.DEFAULT, threshold: float | None = None) -> Tool:
        """The editor of that name with its section of params.yaml; a `threshold`, if given, wins, also over a share.

        Raises InputError for an unknown editor, with the nearest name, and for a threshold where there is none.
        """
        module = editors.module(editor)
        if threshold is not None and "threshold" not in {field.name for field in dataclasses.fields(module.Params)}:
            raise InputError(f"{editor} has no threshold: leave it out, or use an editor such as {editors.DEFAULT}")
        stage = f"edit_{module.KIND}"
        own = (params.load_yaml(self.root).get(stage) or {}).get(editor) or {}
        values = own if threshold is None else {**own, "threshold": float(threshold), "share": None}
        settings = params.build(module.Params, values, f"{stage}.{editor}", complete=True)
        key = (editor, threshold)
        if key not in self._tools:
            warnings = ()
            if "relevance" in module.NEEDS and self.backbones.absent("relevance"):
                name = self.domain.name
                warnings = (
                    f"{name} has no relevance matrix: what a text concerns is measured for it alone, in seconds, and "
                    f"less well; `dvc repro relevance@{name}` makes the matrix",
                )
            self._tools[key] = Tool(editor, settings, module.build(self.backbones, settings), warnings)
        return self._tools[key]

    @torch.no_grad()
    def apply(self, person: Person, prompt: Prompt, tool: Tool, strength: float | None = None) -> Result:
        """One edit, at the editor's own strength when None. A direction is fitted once per prompt and editor; the time
        of that counts for the first edit."""
        strength = tool.strength if strength is None else strength
        started = time.perf_counter()
        key = (tool.name, tool.settings, prompt.pair)
        if key not in self._directions:
            self._directions[key] = tool.editor.fit(prompt.pair)
        edited = tool.editor.edit(person.source, self._directions[key], strength)
        seconds = time.perf_counter() - started
        s = person.source.s
        moved = None if edited.s is None else int((edited.s != s).any(dim=0).sum())
        channels = None if moved is None else s.shape[1]
        return Result(person, prompt, tool.name, strength, edited, seconds, moved, channels, tool.warnings)

    def edit(
        self,
        picture: Any,
        text: str,
        strength: float | None = None,
        *,
        source: str | None = None,
        editor: str = editors.DEFAULT,
        threshold: float | None = None,
        face: int | None = None,
    ) -> Result:
        """Edit a picture (what `photo` takes, or a Person) towards `text`.

        strength, threshold: the editor's own from params.yaml when None; face as in `photo`. Raises InputError for what
        cannot be used.
        """
        tool, amount = self.tool(editor, threshold), None if strength is None else in_range(strength)
        prompt = self.prompt(text, source)
        person = picture if isinstance(picture, Person) else self.photo(picture, face=face)
        return self.apply(person, prompt, tool, amount)


def device_named(name: str) -> str:
    """A torch device for "auto", "cpu", "cuda" or "cuda:N"; InputError for what is unknown or not there."""
    if name == "auto":
        return processes.device()
    if name == "cpu":
        return name
    if not re.fullmatch(r"cuda(:\d+)?", name):
        choices = ("auto", "cpu", "cuda")
        raise InputError(f"unknown device '{name}'{nearest(name, choices)}: give auto, cpu, cuda or cuda:N")
    count = torch.cuda.device_count()
    if int(name.partition(":")[2] or 0) >= count:
        have = f"only {count} CUDA devices" if count else "no CUDA device"
        raise InputError(f"device {name} is not there, this machine has {have}: use --device auto")
    return name


def _as_file(picture: Any) -> io.BytesIO:
    """A PIL image or an array uint8 [H,W] or [H,W,3] as an encoded file in memory."""
    import numpy as np
    from PIL import Image

    if isinstance(picture, np.ndarray) and picture.dtype == np.uint8 and picture.ndim in (2, 3):
        picture = Image.fromarray(picture)
    if not isinstance(picture, Image.Image):
        raise InputError(
            f"a {type(picture).__name__} is not a picture: give a path, a PIL image, uint8 pixels or a tensor"
        )
    content = io.BytesIO()
    picture.save(content, "TIFF" if picture.mode in ("CMYK", "F") else "PNG", exif=picture.getexif())
    content.seek(0)
    return content
