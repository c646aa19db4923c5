"""The networks of a domain, read when first asked for, and where each file comes from."""

from __future__ import annotations

from collections.abc import Callable, Collection
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from pipeline.runtime.errors import InputError
from pipeline.storage import weights
from pipeline.storage.artefacts import Layout

if TYPE_CHECKING:
    from pipeline.delta_mapper import DeltaMapper
    from pipeline.models.arcface import FaceNet
    from pipeline.models.classifiers import IdentityNet, Reader
    from pipeline.models.clip import Clip
    from pipeline.models.e4e import StyleEncoder
    from pipeline.models.perceptual import Inception, Lpips
    from pipeline.models.stylegan2 import Generator
    from pipeline.models.stylespace import Space
    from pipeline.models.unet import Denoiser
    from pipeline.storage.domains import Domain

SHIPPED = ("mapper", "relevance", "s_stats")  # also shipped, so that editing works before any `dvc repro`
BESIDE_MAPPER = ("mapper_wplus", "s_stats")  # in no domain file
MADE_BY_DVC = {  # network -> attribute of the layout
    **{name: name for name in ("mapper", "mapper_wplus", "relevance", "s_stats")},
    "denoiser": "diffusion",
}
IMPORTED = ("inception", "lpips", "clip")  # from originals; a CLIP is trained here where the domain says how large
ALONE = 32  # pictures that a single text is measured on where there is no matrix
STAGES = {  # of dvc.yaml that make what is not trained
    **{name: name for name in ("mapper", "mapper_wplus", "relevance")},
    "s_stats": "cache",
}


class Backbones:
    """Read-only networks in evaluation mode. What `dvc repro` made takes precedence over what is shipped.

    Missing or broken files raise InputError with the command that makes them. `without` names networks that are taken
    for absent though they are there.
    """

    def __init__(self, domain: Domain, root: Path, device: str = "cpu", without: Collection[str] = ()) -> None:
        self.domain, self.root, self.device, self.without = domain, Path(root), device, without
        self.layout = Layout(domain, root)

    def path(self, name: str) -> Path:
        """The file that `name` is read from; the shipped one when neither exists."""
        if name in MADE_BY_DVC:
            made: Path = getattr(self.layout, MADE_BY_DVC[name])
            if made.exists():
                return made
        return self.shipped(name)

    def shipped(self, name: str) -> Path:
        """The file under data/pretrained/<domain>/."""
        if name in BESIDE_MAPPER:
            return self.root / Path(self.domain.mapper.path).with_name(f"{name}.safetensors")
        return self.root / self.domain.weights(name).path

    def absent(self, name: str) -> str | None:
        """What to say in place of a number that `name` would have given; None when its file is there."""
        if name not in self.without and self.path(name).exists():
            return None
        return f"not computed: weights missing at {self.shipped(name).relative_to(self.root)}"

    def hint(self, name: str) -> str:
        """The command that makes the file."""
        if name in STAGES:
            return f"run `dvc repro {STAGES[name]}@{self.domain.name}`"
        published = self.domain.weights(name)
        if published.url is not None:
            return f"run `deltaspace fetch {self.domain.name} {name}`"
        trained = name not in IMPORTED or name in self.domain.defaults.get("pretrain", {})
        if name == "generator" and published.original:
            return f"run `deltaspace import-generator {published.original} --name {self.domain.name} --force`"
        if published.original or not trained:
            return f"run `deltaspace import-{name} {published.original or 'FILE'} --domain {self.domain.name}`"
        return f"run `deltaspace pretrain {self.domain.name} {name}`"

    def _read(self, name: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
        return weights.load(self.path(name), device=self.device, hint=self.hint(name))

    def _network(self, name: str, build: Callable[[dict[str, Any]], nn.Module]) -> Any:
        """The network that `build` makes from the file's heading, with the file's weights."""
        tensors, meta = self._read(name)
        try:
            with weights.Unfilled():
                network = build(meta)
            if name == "generator":  # its mean w is no key of the published files
                network.w_mean = tensors.pop("w_mean")
            network.load_state_dict(tensors, assign=True)  # float32 files are mapped, not read: memory is the file's
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            reason = " ".join(str(error).split())[:200]
            raise InputError(
                f"{self.path(name)} does not hold this domain's {name} ({reason}): {self.hint(name)}"
            ) from error
        return network.to(self.device).eval().requires_grad_(False)

    @cached_property
    def generator(self) -> Generator:
        from pipeline.models import stylegan2

        return self._network("generator", lambda meta: stylegan2.build(meta["model"]))

    @cached_property
    def encoder(self) -> StyleEncoder:
        from pipeline.models import e4e

        return self._network("encoder", lambda meta: e4e.build(meta["model"]))

    @cached_property
    def clip(self) -> Clip:
        from pipeline.models import clip, synonyms

        def build(meta: dict[str, Any]) -> Clip:
            vocabulary = frozenset(meta["vocabulary"]) if meta.get("vocabulary") else None
            reads = None
            if vocabulary and (table := self.domain.words):
                reads = synonyms.load(self.root / "domains" / table.file, table.sha256, vocabulary)
            return clip.Clip(meta["model"], self.domain.clip_normalise, vocabulary, reads)

        return self._network("clip", build)

    @cached_property
    def identity(self) -> IdentityNet | FaceNet:
        from pipeline.models import classifiers

        return self._network("identity", lambda meta: classifiers.build(meta["model"]))

    @cached_property
    def oracle(self) -> Reader:
        from pipeline.models import classifiers

        return self._network("oracle", lambda meta: classifiers.reader(meta["model"]))

    @cached_property
    def oracle2(self) -> Reader:
        from pipeline.models import classifiers

        return self._network("oracle2", lambda meta: classifiers.reader(meta["model"]))

    @cached_property
    def inception(self) -> Inception:
        from pipeline.models import perceptual

        return self._network("inception", lambda meta: perceptual.Inception())

    @cached_property
    def lpips(self) -> Lpips:
        from pipeline.models import perceptual

        return self._network("lpips", lambda meta: perceptual.Lpips())

    @cached_property
    def denoiser(self) -> Denoiser:
        from pipeline.models import unet

        return unet.load(self.path("denoiser"), self.device, hint=self.hint("denoiser"))

    @cached_property
    def mapper(self) -> DeltaMapper:
        from pipeline import delta_mapper

        return self._network("mapper", lambda meta: delta_mapper.build(meta["model"]))

    @cached_property
    def mapper_wplus(self) -> DeltaMapper:
        from pipeline import delta_mapper

        return self._network("mapper_wplus", lambda meta: delta_mapper.build(meta["model"]))

    @cached_property
    def relevance(self) -> Tensor:
        """[S,E], unit rows."""
        return self._tensor("relevance", "relevance")

    @torch.no_grad()
    def effect(self, delta: Tensor) -> Tensor:
        """relevance . delta [S], what each style channel does for a CLIP difference [E].

        Where the domain has no matrix, that is measured for this difference alone, in seconds.
        """
        if not self.absent("relevance"):
            return self.relevance @ delta
        from pipeline import relevance

        settings = relevance.RelevanceParams(ALONE, 5.0, 0.7, 0, "reverse", "float32")
        return relevance.prompt_relevance(relevance.probe(self.generator, self.clip, *self.s_stats, settings), delta)

    @cached_property
    def s_stats(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of every style channel, [S] each; of a few samples where `cache` never ran."""
        if self.absent("s_stats"):
            from pipeline import sampling

            return sampling.spread(self.generator)
        return self._tensor("s_stats", "mean"), self._tensor("s_stats", "std")

    @cached_property
    def _w_plus_stats(self) -> tuple[Tensor, Tensor]:
        from pipeline import sampling

        return sampling.spread(self.generator, "w_plus")

    def spread(self, space: Space) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of codes: `s_stats`, or those of w_plus flattened, [L*D] each."""
        return self.s_stats if space == "s" else self._w_plus_stats

    @torch.no_grad()
    def told(self, w_plus: Tensor) -> Tensor:
        """What the denoiser is told of people with codes w_plus [B,L,D], standardised: their s, or w_plus itself."""
        from pipeline.models import ode_solvers

        space = self.denoiser.space
        code = self.generator.styles(w_plus) if space == "s" else w_plus.flatten(1)
        return ode_solvers.standardise(code, *self.spread(space))

    def _tensor(self, name: str, key: str) -> Tensor:
        tensors, _ = self._read(name)
        if key not in tensors:
            raise InputError(f"{self.path(name)} does not hold this domain's {name} (no '{key}'): {self.hint(name)}")
        return tensors[key]

    @property
    def s_mean(self) -> Tensor:
        return self.s_stats[0]

    @property
    def s_std(self) -> Tensor:
        return self.s_stats[1]

    @torch.no_grad()
    def direction_delta(self, source: str, target: str) -> Tensor:
        """delta_t [E] of two texts in the domain's templates, not normalised."""
        return self.clip.text_delta(source, target, tuple(self.domain.templates))
