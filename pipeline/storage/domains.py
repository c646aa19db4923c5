"""A domain is data: `domains/<name>.yaml` describes its images, the origin of its networks, and its prompts."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from pipeline.runtime.errors import InputError, nearest
from pipeline.storage import params

NETWORKS = (
    *("generator", "encoder", "clip", "identity", "oracle", "denoiser", "mapper", "relevance"),
    *("inception", "lpips", "oracle2"),
)
ORACLES = ("oracle", "oracle2")  # classifiers that measure edits of rendered images, whose attributes are known
PHOTO_METRICS = ("inception", "lpips")  # networks that measure edits of photographs
STAGE_OF = {  # network that no domain file lists as trained -> stage of dvc.yaml that makes it
    **{name: name for name in ("mapper", "mapper_wplus", "relevance")},
    "s_stats": "cache",
}
IMPORTED = ("inception", "lpips", "clip")  # clip: unless the domain's `defaults.pretrain` gives its size


@dataclass(frozen=True)
class Weights:
    """Weights of one network, and their licence.

    path: safetensors file that the pipeline reads, relative to the project.
    sha256: its digest; None while unknown.
    url: of the published original (https://..., or gdrive:ID), which is converted to `path` once; None if trained here.
    original: file name of the original; original_size: its bytes; original_sha256: its digest.
    """

    path: str
    sha256: str | None = None
    licence: str = "made here, as the data it is trained on"
    url: str | None = None
    original: str | None = None
    original_size: int | None = None
    original_sha256: str | None = None

    def __post_init__(self) -> None:
        if not _inside(self.path):
            raise ValueError(f"the path '{self.path}' must lie inside the project: give it relative to the project")
        if self.original is not None and not _inside(self.original):
            raise ValueError(f"original '{self.original}' is no file name: give the published one, such as model.pt")
        if self.original_size is not None and self.original_size <= 0:
            raise ValueError(f"original_size is {self.original_size}: a number of bytes is expected")
        for name, value in (("sha256", self.sha256), ("original_sha256", self.original_sha256)):
            if value is not None and not re.fullmatch(r"[0-9a-f]{64}", value):
                raise ValueError(f"{name} '{value}' is not a sha256: 64 hexadecimal digits are expected")


@dataclass(frozen=True)
class Words:
    """Table of synonyms for words outside CLIP's training captions: a file in domains/, and its sha256."""

    file: str
    sha256: str

    def __post_init__(self) -> None:
        if PurePosixPath(self.file).name != self.file or not self.file:
            raise ValueError(f"words.file '{self.file}' is no name of a file in domains/")


@dataclass(frozen=True)
class Prompt:
    """Target text of an edit, with the attribute that it asks for where the domain's attributes are known.

    attribute, value: the attribute and its target value.
    split: "seen" for wordings in the grammar of CLIP's training captions, "heldout" for synonyms outside of it,
        "combined" for several attributes at once in known words.
    also: further attributes of a combined prompt, with their values.
    """

    text: str
    attribute: str | None = None
    value: str | None = None
    split: Literal["seen", "heldout", "combined"] = "seen"
    also: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.text.strip():
            raise ValueError("the text is empty: write what to edit towards")
        if self.text.strip().upper().startswith("TODO"):
            raise ValueError(f"'{self.text}' is still to be filled in: write what to edit towards")
        if (self.attribute is None) != (self.value is None):
            raise ValueError(f"'{self.text}' needs both an attribute and a value, or neither")
        if bool(self.also) != (self.split == "combined"):
            raise ValueError(
                f"'{self.text}' needs both split: combined and, in also, what else it asks for, or neither"
            )
        if self.also and (self.attribute is None or self.attribute in self.also):
            raise ValueError(f"'{self.text}' needs an attribute and a value besides what it also asks for")

    @property
    def asks(self) -> dict[str, str]:
        """All attributes of the prompt: attribute -> value."""
        return {} if self.attribute is None or self.value is None else {self.attribute: self.value, **self.also}


@dataclass(frozen=True)
class Domain:
    """Description of one kind of images.

    resolution: R of the images.
    neutral: word for any image of the domain, such as "face".
    renderer: renders its images with known attributes; None for photographs.
    aligned: alignment of photographs by their face; None for their centre.
    clip_normalise: whether images get CLIP's mean and deviation (no with DeltaEdit's released weights).
    level_split: number of style convolutions that are coarse, and that are coarse or medium.
    words: synonyms for words outside CLIP's training captions; None where prompts are read as they are.
    templates: texts with one "{}", over which a prompt's embedding is averaged.
    defaults: section -> key -> value of `null` in params.yaml.
    """

    name: str
    resolution: int
    neutral: str
    generator: Weights
    encoder: Weights
    clip: Weights
    identity: Weights
    oracle: Weights
    denoiser: Weights
    mapper: Weights
    relevance: Weights
    inception: Weights
    lpips: Weights
    oracle2: Weights
    renderer: Literal["portraits"] | None = None
    aligned: Literal["ffhq"] | None = None
    clip_normalise: bool = True
    level_split: tuple[int, int] = (3, 7)
    words: Words | None = None
    templates: tuple[str, ...] = ("{}",)
    prompts: tuple[Prompt, ...] = ()
    defaults: dict[str, dict[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.resolution < 4 or self.resolution & (self.resolution - 1):
            raise ValueError(f"resolution is {self.resolution}: a power of two from 4 up is expected")
        if not 0 <= self.level_split[0] <= self.level_split[1]:
            raise ValueError(f"level_split is {list(self.level_split)}: two numbers that do not fall are expected")
        if not self.neutral.strip():
            raise ValueError("neutral is empty: give the word for any picture of this domain, such as 'face'")
        for template in self.templates:
            if template.count("{}") != 1 or re.search(r"[{}]", template.replace("{}", "")):
                raise ValueError(f"the template '{template}' must hold '{{}}' exactly once, and no other brace")
        texts = [prompt.text for prompt in self.prompts]
        for text in texts:
            if texts.count(text) > 1:
                raise ValueError(f"the prompt '{text}' stands twice")

    @property
    def networks(self) -> tuple[str, ...]:
        """NETWORKS without those for the other kind of images."""
        return tuple(name for name in NETWORKS if name not in (PHOTO_METRICS if self.renderer else ORACLES))

    def weights(self, network: str) -> Weights:
        """Weights of one of NETWORKS. Raises InputError for another name."""
        if network not in NETWORKS:
            raise InputError(
                f"unknown network '{network}'{nearest(network, NETWORKS)}: known are {', '.join(NETWORKS)}"
            )
        return getattr(self, network)


def names(root: Path) -> tuple[str, ...]:
    """Names of the domains of the project at `root`, sorted."""
    return tuple(sorted(path.stem for path in (Path(root) / "domains").glob("*.yaml") if path.is_file()))


def load(name: str, root: Path) -> Domain:
    """Load the domain `name` of the project at `root`.

    Networks that its file does not mention are trained here, and lie at `default_path`. Raises InputError for an
    unknown domain and for a mistake in its file.
    """
    known = names(root)
    if name not in known:
        choices = f"there are {', '.join(known)}" if known else f"there are none in {Path(root) / 'domains'}"
        raise InputError(f"unknown domain '{name}'{nearest(name, known)}: {choices}")
    where = f"domains/{name}.yaml"
    content = params.read_mapping(Path(root) / where)
    networks = {
        network: params.build(
            Weights, {"path": default_path(name, network), **_entry(content, network, where)}, f"{where}: {network}"
        )
        for network in NETWORKS
    }
    for network, entry in networks.items():
        if entry.path != (path := default_path(name, network)):
            raise InputError(
                f"{where}: {network}.path is {entry.path}, but the workflow reads {path}: put a copy there"
            )
    rest = {key: value for key, value in content.items() if key not in NETWORKS}
    if isinstance(rest.get("templates"), str):
        rest["templates"] = _lines(Path(root) / "domains" / PurePosixPath(rest["templates"]).name, where)
    return params.build(Domain, rest, where, extra_fields={"name": name, **networks})


def _inside(name: str) -> bool:
    """Whether a relative name stays below its folder."""
    path = PurePosixPath(name)
    return (
        bool(path.parts) and not path.is_absolute() and ".." not in path.parts and "\\" not in name and "\0" not in name
    )


def default_path(domain: str, network: str) -> str:
    """Path of a network's weights, relative to the project, where DVC tracks them."""
    return f"data/pretrained/{domain}/{network}.safetensors"


def how_to_get(domain: Domain, network: str) -> str:
    """Advice that ends the error about a missing network, such as "run `deltaspace fetch cat generator`"."""
    if network in STAGE_OF:
        return f"run `dvc repro {STAGE_OF[network]}@{domain.name}`"
    entry = domain.weights(network)
    if entry.url is not None:
        return f"run `deltaspace fetch {domain.name} {network}`"
    trained = network not in IMPORTED or network in domain.defaults.get("pretrain", {})
    if entry.original or not trained:
        return f"run `deltaspace import {network} {entry.original or 'FILE'} --domain {domain.name}`"
    return f"run `deltaspace pretrain {domain.name} {network}`"


def _entry(content: dict[str, Any], network: str, where: str) -> dict[str, Any]:
    entry = content.get(network) or {}
    if not isinstance(entry, dict):
        raise InputError(f"{where}: {network} is {entry!r}: a mapping with path, sha256, licence and url is expected")
    return entry


def _lines(path: Path, where: str) -> list[str]:
    """Templates of a text file in domains/, one per line."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise InputError(f"{where}: templates names {path.name}, which cannot be read: {error}") from error
    return [line for line in lines if line.strip()]
