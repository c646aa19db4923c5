"""A domain is data: `domains/<name>.yaml` says what its pictures are, where its networks come from, what to ask for."""

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
OF_TRUTH = ("oracle", "oracle2")  # what judges edits where truth is known
OF_PHOTOGRAPHS = ("inception", "lpips")  # and where it is not


@dataclass(frozen=True)
class Weights:
    """One network's weights, and under which terms they may be used.

    path: the safetensors file the pipeline reads, relative to the project; sha256 its digest, None while unknown.
    url: where the published original comes from (https://..., or gdrive:ID), None when it is trained here; original
    its file name there, original_size its bytes, original_sha256 its digest. The original is converted to `path` once.
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
    """The table of what CLIP reads for words it was not taught (`pipeline.models.synonyms`): a file in domains/, its digest."""

    file: str
    sha256: str

    def __post_init__(self) -> None:
        if PurePosixPath(self.file).name != self.file or not self.file:
            raise ValueError(f"words.file '{self.file}' is no name of a file in domains/")


@dataclass(frozen=True)
class Prompt:
    """A text to edit towards; what it asks of whom is known where the domain has true attributes.

    also: further attributes that it asks for, with their values. split: "seen" for wordings in the grammar CLIP was
    taught with, "heldout" for synonyms it never saw, "combined" for several attributes at once in words it knows.
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
        """Everything that it asks for: attribute -> value."""
        return {} if self.attribute is None or self.value is None else {self.attribute: self.value, **self.also}


@dataclass(frozen=True)
class Domain:
    """What the pipeline knows of one kind of pictures.

    resolution R of the images; neutral: the word for any picture of it; renderer: the world that draws its images
    with known attributes, None for photographs; aligned: how photographs are cut out around a face, None for their
    centre; level_split: how many style convolutions are coarse, and coarse or medium; clip_normalise: whether images
    get CLIP's mean and deviation (released DeltaEdit weights: no, facts of the published code); words: what CLIP reads
    for words it was never taught, None where it read the world's captions or is to read them as they are;
    defaults[section][key]: what `null` in params.yaml stands for.
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
        """Those of NETWORKS that mean something here."""
        return tuple(name for name in NETWORKS if name not in (OF_PHOTOGRAPHS if self.renderer else OF_TRUTH))

    def weights(self, network: str) -> Weights:
        """The weights of one of NETWORKS by name."""
        if network not in NETWORKS:
            raise InputError(
                f"unknown network '{network}'{nearest(network, NETWORKS)}: known are {', '.join(NETWORKS)}"
            )
        return getattr(self, network)


def names(root: Path) -> tuple[str, ...]:
    """The domains of the project at `root`, sorted."""
    return tuple(sorted(path.stem for path in (Path(root) / "domains").glob("*.yaml") if path.is_file()))


def load(name: str, root: Path) -> Domain:
    """The domain `name` of the project at `root`; networks its file does not mention are made here, under its name."""
    known = names(root)
    if name not in known:
        there = f"there are {', '.join(known)}" if known else f"there are none in {Path(root) / 'domains'}"
        raise InputError(f"unknown domain '{name}'{nearest(name, known)}: {there}")
    where = f"domains/{name}.yaml"
    content = params.read_mapping(Path(root) / where)
    networks = {
        network: params.build(
            Weights, {"path": default_path(name, network), **_entry(content, network, where)}, f"{where}: {network}"
        )
        for network in NETWORKS
    }
    for network, entry in networks.items():
        if entry.path != (place := default_path(name, network)):
            raise InputError(
                f"{where}: {network}.path is {entry.path}, but the workflow reads {place}: put a copy there"
            )
    rest = {key: value for key, value in content.items() if key not in NETWORKS}
    if isinstance(rest.get("templates"), str):
        rest["templates"] = _lines(Path(root) / "domains" / PurePosixPath(rest["templates"]).name, where)
    return params.build(Domain, rest, where, given={"name": name, **networks})


def _inside(name: str) -> bool:
    """Whether a file of this name lies below the folder it is looked up in."""
    path = PurePosixPath(name)
    return (
        bool(path.parts) and not path.is_absolute() and ".." not in path.parts and "\\" not in name and "\0" not in name
    )


def default_path(domain: str, network: str) -> str:
    """Where a network's weights lie, relative to the project: DVC watches them there."""
    return f"data/pretrained/{domain}/{network}.safetensors"


def _entry(content: dict[str, Any], network: str, where: str) -> dict[str, Any]:
    entry = content.get(network) or {}
    if not isinstance(entry, dict):
        raise InputError(f"{where}: {network} is {entry!r}: a mapping with path, sha256, licence and url is expected")
    return entry


def _lines(path: Path, where: str) -> list[str]:
    """The templates of a text file beside the domain's own, one per line."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise InputError(f"{where}: templates names {path.name}, which cannot be read: {error}") from error
    return [line for line in lines if line.strip()]
