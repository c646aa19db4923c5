"""Editing of single images: the library behind `deltaspace.load`, `deltaspace edit` and `deltaspace invert`.

Every image is a batch of its own, so its result does not depend on the other images of a run.
"""

from __future__ import annotations

import dataclasses
import io
import re
import time
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from deltaspace.prompts import check_row_id, check_strength, clean, vocabulary_warnings, words_that_fit
from deltaspace.values import ConfiguredEditor, EditableImage, Prompt, Result
from pipeline import editors, sampling, sources
from pipeline.inversion import InvertParams, errors, missing_detail, refine
from pipeline.runtime import processes
from pipeline.runtime.errors import InputError, nearest
from pipeline.storage import domains, params
from pipeline.values import Direction, Inversion, Prepared, TextPair

if TYPE_CHECKING:
    from pipeline.networks import Networks
    from pipeline.storage.domains import Domain
    from pipeline.storage.images import Photo

FAR_ERROR = 0.04  # encoder error (MSE on [0,1], 14 dB) of an image far from the domain, where its file names none


class Studio:
    """A domain's networks, loaded at first use, and its editors."""

    def __init__(self, networks: Networks, domain: Domain, root: Path, device: str = "cpu") -> None:
        self.networks, self.domain, self.root, self.device = networks, domain, Path(root), device
        self._editors: dict[tuple, ConfiguredEditor] = {}
        self._directions: dict[tuple, Direction] = {}
        self._prepared: tuple[EditableImage, ConfiguredEditor, Prepared] | None = None  # of the last edit

    @classmethod
    def load(cls, domain: str, device: str = "auto", root: str | Path | None = None) -> Studio:
        """The studio of a domain. Raises InputError for an unknown domain, and for a device that is not there."""
        from pipeline.networks import Networks

        folder = Path(root) if root else params.root()
        loaded, chosen = domains.load(domain, folder), device_named(device)
        return cls(Networks(loaded, folder, chosen), loaded, folder, chosen)

    def ready(self, photographs: bool = True) -> None:
        """Load the networks that every edit needs; InputError when one is missing, naming the command that makes it.

        photographs: images that the generator did not make, which need the encoder too
        """
        for network in ("generator", *(["encoder"] if photographs else []), "clip"):
            getattr(self.networks, network)

    # ------------------------------------------------------------ images

    @torch.no_grad()
    def photo(self, photo: Any, name: str | None = None, face: int | None = None) -> EditableImage:
        """Invert a photograph; one that the domain cannot draw, or that could not be aligned, gets a warning.

        photo: a path, a PIL image, an array uint8 [H,W,3], or a tensor [3,R,R] in [-1,1]
        face: number of the face, from left to right, from 1 up, in domains of aligned faces; None: the largest
        Raises InputError for an unreadable image, and for a face that is not there.
        """
        name = name or (Path(photo).name if isinstance(photo, str | Path) else "picture")
        opened, warnings = self._opened(photo, name, face)
        image, notes = opened.image.to(self.device), tuple(opened.notes)
        generator, encoder, settings = self.networks.generator, self.networks.encoder, self.invert_params
        guess = encoder(image)
        w_plus = refine(encoder, generator, image, guess, settings.refine)
        detail = None
        if settings.seeks_detail:
            detail = missing_detail(encoder, generator, image, w_plus, settings.detail, settings.refine)
        source = sources.source(self.networks, image, Inversion(w_plus, detail, settings.refine))
        inversion = source.decode(generator, source.s).clamp(-1, 1)
        error = float(((inversion - image) / 2).square().mean())
        encoder_error = errors(generator, image, guess).item()
        if encoder_error > self.far_error:
            warnings.append(
                f"{name} is far from what {self.domain.name} can draw (the encoder's error is {encoder_error:.3f}, up "
                f"to {self.far_error:.3f} is usual): expect flaws, or a different face"
            )
        return EditableImage(name, source, inversion[0].cpu(), error, notes, tuple(warnings))

    @torch.no_grad()
    def sample(self, row_id: int, seed: int | None = None) -> EditableImage:
        """The generated image `row_id`: with the project's seed (None) the fake of that id in the domain's codes."""
        settings = params.section(sampling.SampleParams, self.root, "sample", domain=self.domain)
        generator = self.networks.generator
        seed = settings.seed if seed is None else seed
        w = sampling.sample_w(
            generator, [check_row_id(row_id)], seed, settings.truncation, batch=8, redrawn=settings.redrawn
        )
        w_plus = generator.repeat(w.to(self.device))
        source = sources.source(self.networks, generator(w_plus).clamp(-1, 1), Inversion(w_plus))
        return EditableImage(f"sample-{row_id}", source, source.image[0].cpu())

    def portrait(self, row_id: int) -> EditableImage:
        """The drawn portrait `row_id` of a domain with a renderer, inverted like a photograph; its traits are known."""
        if self.domain.renderer is None:
            raise InputError(f"{self.domain.name} has no renderer of portraits: give an image instead")
        from pipeline import portraits
        from pipeline.storage import images

        person = portraits.sample(check_row_id(row_id))
        pixels = images.from_uint8(portraits.render(person, self.domain.resolution))
        image = self.photo(pixels, name=f"portrait-{row_id}")
        return replace(image, source=replace(image.source, people=(person,)))

    def _opened(self, photo: Any, name: str, face: int | None) -> tuple[Photo, list[str]]:
        """The image in the domain's resolution, aligned where the domain asks for it, and warnings."""
        from pipeline.storage import images

        size = self.domain.resolution
        if face is not None and self.domain.aligned is None:
            raise InputError(f"images of {self.domain.name} are not aligned by faces: leave --face out")
        if isinstance(photo, Tensor):
            if photo.shape not in ((3, size, size), (1, 3, size, size)):
                raise InputError(f"a tensor [3,{size},{size}] in [-1,1] is expected, not {list(photo.shape)}")
            return images.Photo(photo.float().reshape(1, 3, size, size)), []
        rgb, notes = images.read_rgb(Path(photo) if isinstance(photo, str | Path) else _as_file(photo))
        if self.domain.aligned is None:
            return images.photo_of(images.squared(rgb, size, notes), notes), []
        from pipeline.storage import face_alignment

        detector = face_alignment.detector()
        if detector is None:
            if face is not None:
                raise InputError(f"--face needs a face detector: {face_alignment.INSTALL}")
            warning = face_alignment.missing_detector(self.domain.name)
            return images.photo_of(images.squared(rgb, size, notes), notes), [warning]
        detection = face_alignment.detect(rgb, detector, face, name)
        square = face_alignment.crop(rgb, detection.corners, size, notes)
        chosen = face is not None or detection.warning is None
        return images.photo_of(square, notes), [] if chosen else [f"{name}: {detection.warning}"]

    @cached_property
    def invert_params(self) -> InvertParams:
        """Settings of the inversion, as in the workflow."""
        return params.section(InvertParams, self.root, "invert", domain=self.domain)

    @cached_property
    def far_error(self) -> float:
        """The encoder's error above which an image is far from the domain; from the header of its weights."""
        from pipeline.storage import weights

        own = weights.read_meta(self.networks.path("encoder")).get("far_error")
        return float(own) if isinstance(own, int | float) else FAR_ERROR

    # ------------------------------------------------------------ edits

    def prompt(self, text: str, source: str | None = None) -> Prompt:
        """The condition from the source text (None: the domain's neutral word) to `text`.

        Raises InputError for an empty text. Words unknown to CLIP, and text beyond its length, become warnings.
        """
        clip, warnings = self.networks.clip, []
        target = clean(text, "prompt")
        neutral = clean(self.domain.neutral if source is None else source, "--source word")
        fitting = words_that_fit(target, clip, self.domain.templates)
        if fitting != target:
            read, total = len(fitting.split()), len(target.split())
            warnings.append(f"the prompt is too long: CLIP reads the first {read} of its {total} words")
        for words in (fitting, *([neutral] if source is not None else [])):
            warnings += vocabulary_warnings(words, clip, self.domain.name)
        known = next((prompt for prompt in self.domain.prompts if prompt.text.casefold() == target.casefold()), None)
        pair = TextPair(neutral, fitting or target)
        return Prompt(replace(pair, asks=known.asks) if known else pair, tuple(warnings))

    def editor(self, name: str = editors.DEFAULT, threshold: float | None = None) -> ConfiguredEditor:
        """The editor `name` with the effective settings of its section; a threshold replaces its top_share, too.

        Raises InputError for an unknown editor, with the nearest name, and for a threshold that it does not have.
        """
        module = editors.module(name)
        if threshold is not None and "threshold" not in {field.name for field in dataclasses.fields(module.Params)}:
            raise InputError(f"{name} has no threshold: leave it out, or use an editor such as {editors.DEFAULT}")
        overrides = {} if threshold is None else {"threshold": threshold, "top_share": None}
        section = f"edit_{module.KIND}.{name}"
        settings = params.resolve(module.Params, self.root, section, overrides, domain=self.domain)
        if (name, threshold) not in self._editors:
            warnings = ()
            if "relevance" in module.NEEDS and self.networks.absent("relevance"):
                domain = self.domain.name
                warnings = (
                    f"{domain} has no relevance matrix: relevance is measured for each text alone, in seconds, and "
                    f"less well; `dvc repro relevance@{domain}` makes the matrix",
                )
            built = module.build(self.networks, settings.values)
            self._editors[name, threshold] = ConfiguredEditor(name, settings.values, built, warnings, settings.origins)
        return self._editors[name, threshold]

    @torch.no_grad()
    def apply(
        self, image: EditableImage, prompt: Prompt, editor: ConfiguredEditor, strength: float | None = None
    ) -> Result:
        """One edit, at the editor's own strength when None.

        A direction is fitted once per prompt and editor, and an image prepared once for edits in a row; `seconds` of
        the first edit includes both.
        """
        strength = editor.strength if strength is None else strength
        started = time.perf_counter()
        key = (editor.name, editor.settings, prompt.pair)
        if key not in self._directions:
            self._directions[key] = editor.editor.fit(prompt.pair)
        if self._prepared is None or self._prepared[0] is not image or self._prepared[1] is not editor:
            self._prepared = image, editor, editor.editor.prepare(image.source)
        edited = editor.editor.edit(self._prepared[2], self._directions[key], strength)
        seconds = time.perf_counter() - started
        s = image.source.s
        moved = None if edited.s is None else int((edited.s != s).any(dim=0).sum())
        channels = None if moved is None else s.shape[1]
        return Result(image, prompt, editor.name, strength, edited, seconds, moved, channels, editor.warnings)

    def edit(
        self,
        image: Any,
        text: str,
        strength: float | None = None,
        *,
        source: str | None = None,
        editor: str = editors.DEFAULT,
        threshold: float | None = None,
        face: int | None = None,
    ) -> Result:
        """Edit an image towards `text`.

        image: what `photo` takes, or an EditableImage
        strength, threshold: None for the editor's effective settings
        source: text that describes the image now; None for the domain's neutral word
        face: as in `photo`
        Raises InputError, one line, for arguments that cannot be used.
        """
        amount = None if strength is None else check_strength(strength)
        configured, prompt = self.editor(editor, threshold), self.prompt(text, source)
        opened = image if isinstance(image, EditableImage) else self.photo(image, face=face)
        return self.apply(opened, prompt, configured, amount)


def device_named(name: str) -> str:
    """A torch device for "auto", "cpu", "cuda" or "cuda:N"; InputError for what is unknown or not there."""
    if name == "auto":
        return processes.device()
    if name == "cpu":
        return name
    if not isinstance(name, str) or not re.fullmatch(r"cuda(:\d+)?", name):
        choices = ("auto", "cpu", "cuda")
        raise InputError(f"unknown device '{name}'{nearest(str(name), choices)}: give auto, cpu, cuda or cuda:N")
    count = torch.cuda.device_count()
    if int(name.partition(":")[2] or 0) >= count:
        have = f"only {count} CUDA devices" if count else "no CUDA device"
        raise InputError(f"device {name} is not there, this machine has {have}: use --device auto")
    return name


def _as_file(image: Any) -> io.BytesIO:
    """A PIL image or an array uint8 [H,W] or [H,W,3] as an encoded file in memory."""
    import numpy as np
    from PIL import Image

    if isinstance(image, np.ndarray) and image.dtype == np.uint8 and image.ndim in (2, 3) and image.size:
        image = Image.fromarray(image)
    if not isinstance(image, Image.Image):
        raise InputError(
            f"a {type(image).__name__} is not an image: give a path, a PIL image, uint8 pixels or a tensor"
        )
    content = io.BytesIO()
    image.save(content, "TIFF" if image.mode in ("CMYK", "F") else "PNG", exif=image.getexif())
    content.seek(0)
    return content
