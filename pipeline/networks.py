"""The networks of one domain: where each file is, whether it is there, and the network loaded on first use."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from pipeline.runtime.errors import InputError
from pipeline.storage import domains, weights
from pipeline.storage.artefacts import DomainPaths

if TYPE_CHECKING:
    from pipeline.delta_mapper import DeltaMapper
    from pipeline.models.arcface import FaceNet
    from pipeline.models.classifiers import AttributeClassifier, IdentityNet
    from pipeline.models.clip import Clip
    from pipeline.models.e4e import StyleEncoder
    from pipeline.models.perceptual import Inception, Lpips
    from pipeline.models.stylegan2 import Generator
    from pipeline.models.synonyms import SynonymTable
    from pipeline.models.unet import Denoiser
    from pipeline.storage.domains import Domain

SHIPPED = ("mapper", "relevance", "s_stats")  # DVC outputs that are shipped too: editing works before any `dvc repro`
BESIDE_MAPPER = ("mapper_wplus", "s_stats")  # in no domain file
MADE_BY_DVC = {  # network -> attribute of the domain's paths
    **{name: name for name in ("mapper", "mapper_wplus", "relevance", "s_stats")},
    "denoiser": "diffusion",
}


class Networks:
    """The read-only networks of a domain in evaluation mode; outputs of `dvc repro` take precedence over shipped files.

    domain, root: the domain and the project's folder.
    device: "cpu", "cuda" or "cuda:N".
    A missing or broken file raises InputError, which names the command that makes the file.
    """

    def __init__(self, domain: Domain, root: Path, device: str = "cpu") -> None:
        self.domain, self.root, self.device = domain, Path(root), device
        self.paths = DomainPaths(domain, root)

    def path(self, name: str) -> Path:
        """File that `name` is loaded from; the shipped one if neither exists."""
        if name in MADE_BY_DVC:
            output: Path = getattr(self.paths, MADE_BY_DVC[name])
            if output.exists():
                return output
        return self.shipped(name)

    def shipped(self, name: str) -> Path:
        """File of `name` under data/pretrained/<domain>/."""
        if name in BESIDE_MAPPER:
            return self.root / Path(self.domain.mapper.path).with_name(f"{name}.safetensors")
        return self.root / self.domain.weights(name).path

    def absent(self, name: str) -> str | None:
        """Note that stands in place of a metric computed by `name`; None if its file is there."""
        if self.path(name).exists():
            return None
        return f"not computed: weights missing at {self.shipped(name).relative_to(self.root)}"

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
        from pipeline.models import clip

        def build(meta: dict[str, Any]) -> Clip:
            vocabulary = frozenset(meta["vocabulary"]) if meta.get("vocabulary") else None
            table = self._synonyms(vocabulary) if vocabulary and self.domain.words else None
            return clip.Clip(meta["model"], self.domain.clip_normalise, vocabulary, table)

        return self._network("clip", build)

    def _synonyms(self, vocabulary: frozenset[str]) -> SynonymTable:
        """The domain's table for words that CLIP does not know. Raises InputError when its file is missing or wrong."""
        from pipeline.models import synonyms

        assert self.domain.words is not None
        path = self.root / "domains" / self.domain.words.file
        if not path.is_file():
            raise InputError(f"{path} is missing: `git checkout` it, or take `words` out of the domain's file")
        if (digest := weights.digest(path)) != self.domain.words.sha256:
            raise InputError(f"{path} is not the one that the domain's file names: its sha256 is {digest}")
        try:
            return synonyms.parse(path.read_bytes(), vocabulary)
        except ValueError as error:
            raise InputError(f"{path} is no table of synonyms: make it again with `deltaspace words`") from error

    @cached_property
    def identity(self) -> IdentityNet | FaceNet:
        from pipeline.models import classifiers

        return self._network("identity", lambda meta: classifiers.build_identity(meta["model"]))

    @cached_property
    def oracle(self) -> AttributeClassifier:
        from pipeline.models import classifiers

        return self._network("oracle", lambda meta: classifiers.build_classifier(meta["model"]))

    @cached_property
    def oracle2(self) -> AttributeClassifier:
        from pipeline.models import classifiers

        return self._network("oracle2", lambda meta: classifiers.build_classifier(meta["model"]))

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

        return self._network("denoiser", lambda meta: unet.Denoiser(**meta["model"]))

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
        """Relevance matrix [S,E], unit rows."""
        return self._tensor("relevance", "relevance")

    @cached_property
    def s_stats(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation [S] of the style channels; without the file, see `sampling.style_stats`."""
        return self._tensor("s_stats", "mean"), self._tensor("s_stats", "std")

    def _network(self, name: str, build: Callable[[dict[str, Any]], nn.Module]) -> Any:
        """The module that `build` makes from the file's metadata, with the file's weights."""
        tensors, meta = self._read(name)
        try:
            with weights.Unfilled():
                network = build(meta)
            if name == "generator":  # its mean w is no key of the published files
                network.w_mean = tensors.pop("w_mean")
            network.load_state_dict(tensors, assign=True)  # float32 files are mapped, not read: memory is the file's
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise self._wrong(name, " ".join(str(error).split())[:200]) from error
        return network.to(self.device).eval().requires_grad_(False)

    def _tensor(self, name: str, key: str) -> Tensor:
        tensors, _ = self._read(name)
        if key not in tensors:
            raise self._wrong(name, f"no '{key}'")
        return tensors[key]

    def _read(self, name: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
        return weights.load(self.path(name), device=self.device, hint=domains.how_to_get(self.domain, name))

    def _wrong(self, name: str, reason: str) -> InputError:
        advice = domains.how_to_get(self.domain, name)
        return InputError(f"{self.path(name)} does not hold this domain's {name} ({reason}): {advice}")
