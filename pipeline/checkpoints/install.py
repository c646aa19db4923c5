"""Installs third-party weights into a domain: the importer of each network, provenance, new domains for generators."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

from pipeline.checkpoints import deltaedit, generators
from pipeline.checkpoints.generators import Imported
from pipeline.delta_mapper import numbers
from pipeline.runtime import files
from pipeline.runtime.errors import InputError
from pipeline.storage import domain_template, domains, images, weights
from pipeline.storage.artefacts import DomainPaths
from pipeline.storage.domain_template import domain_file, quoted
from pipeline.storage.domains import Domain, Weights

Importer = Callable[..., tuple[str, list[str]]]
"""(original, domain, project, further options by name) -> (line about what was written, warnings).

Writes the safetensors file that the domain names, whole or not at all, with `provenance(original)` under "original" in
its header, by which a later `fetch` sees that nothing is left to do. Nothing in the original is executed.
"""

IMPORTERS = {  # network -> "module:function"
    "clip": "pipeline.checkpoints.clip:install_clip",
    "generator": "pipeline.checkpoints.install:install_generator",
    "encoder": "pipeline.checkpoints.encoders:install_encoder",
    "identity": "pipeline.checkpoints.encoders:install_identity",
    "inception": "pipeline.checkpoints.metric_networks:install_inception",
    "lpips": "pipeline.checkpoints.metric_networks:install_lpips",
    "mapper": "pipeline.checkpoints.install:install_mapper",
    "relevance": "pipeline.checkpoints.install:install_relevance",
}
LICENCE = "that of the file it was imported from: look it up (NVIDIA's own networks: non-commercial use only)"
NETWORK = """
generator:
  path: {path}
  sha256: {sha256}
  licence: {licence}
  original: {original}
  original_sha256: {original_sha256}
"""


@dataclass(frozen=True)
class WrittenGenerator:
    """Files that were written, relative to the project; domain is None where the domain's file existed already."""

    weights: Path
    grid: Path
    domain: Path | None


def importer(network: str) -> Importer:
    """The importer of a network of IMPORTERS; its module is imported here."""
    module, _, function = IMPORTERS[network].partition(":")
    return getattr(import_module(module), function)


def provenance(original: Path) -> dict[str, str]:
    """Name and sha256 of the file that weights were made of, for their header."""
    return {"file": original.name, "sha256": files.digest(original)}


def digest_warnings(entry: Weights, original: dict[str, str]) -> list[str]:
    """A warning where an original is another file than its domain names."""
    published = entry.original_sha256
    return [] if published in (None, original["sha256"]) else ["its sha256 is not the one that the domain's file names"]


def check_resolution(imported: Imported, source: Path, domain: Domain) -> None:
    """Raises InputError unless a generator makes images of its domain's resolution."""
    if (size := imported.model["size"]) != domain.resolution:
        where = domain_file(domain.name)
        raise InputError(f"{source} makes images of {size} pixels, {where} says {domain.resolution}: correct it")


def write_generator(
    imported: Imported, source: Path, name: str, root: Path, neutral: str, licence: str, seed: int
) -> WrittenGenerator:
    """Write weights (float32) and an image grid; and the domain's file, where there is none yet.

    imported, source: the converted generator, and the file that it comes from.
    name: of the domain. root: folder of the project.
    neutral: word for any of its images, such as cat, in a new domain's file.
    licence: of the weights, for their header.
    seed: of the images in the grid.

    Raises InputError for a name that no domain may have, and for a resolution other than the existing domain's.
    """
    domain_template.check_name(name)
    domain = domains.load(name, root) if (root / domain_file(name)).exists() else None
    if domain:
        check_resolution(imported, source, domain)
    rows = generators.example_images(imported.generator, seed)
    path = Path(domain.generator.path if domain else domains.default_path(name, "generator"))
    original = {**provenance(source), "kind": imported.kind, "notes": imported.notes}
    meta = {"model": imported.model, "domain": name, "original": original, "licence": licence}
    weights.save(root / path, imported.tensors(), meta, half=False)
    grid = path.with_suffix(".png")
    images.save_grid(root / grid, rows)
    if domain:
        return WrittenGenerator(path, grid, None)
    network = NETWORK.format(
        path=path.as_posix(),
        sha256=files.digest(root / path),
        licence=quoted(licence),
        original=quoted(source.name),
        original_sha256=original["sha256"],
    )
    origin = f"`deltaspace import generator` from {quoted(source.name)} ({imported.kind})"
    model, size = imported.model, imported.model["size"]
    plans = domain_template.plans_for(model)
    text = domain_template.text(name, origin, size, neutral, plans, split=model["split"], networks=network)
    files.write_bytes(root / domain_file(name), text.encode())
    domains.load(name, root)
    return WrittenGenerator(path, grid, Path(domain_file(name)))


def install_generator(file: Path, domain: Domain, root: Path) -> tuple[str, list[str]]:
    """Import a generator into an existing domain."""
    imported = generators.load(file, domain.level_split)
    written = write_generator(imported, file, domain.name, root, domain.neutral, domain.generator.licence, seed=0)
    return f"wrote {written.weights} ({imported.kind}) and images of it, {written.grid.name}", imported.notes


def install_mapper(file: Path, domain: Domain, root: Path) -> tuple[str, list[str]]:
    """Import a Delta Mapper that was trained for the domain's generator."""
    layout = deltaedit.layout_of(domain, root)
    network, clip_dim = deltaedit.mapper_of(file, layout)
    meta = {"model": numbers(layout, clip_dim), "domain": domain.name, "original": provenance(file)}
    weights.save(root / domain.mapper.path, network.state_dict(), meta, half=False)
    warnings = _precedence_warnings(DomainPaths(domain, root).mapper, root)
    if domain.clip_normalise:
        warnings.append(
            f"DeltaEdit trained on images without CLIP's mean and deviation; {domain.name} has clip_normalise: true"
        )
    return f"wrote {domain.mapper.path}: {layout.size} style channels, embeddings of {clip_dim} numbers", warnings


def install_relevance(file: Path, domain: Domain, root: Path) -> tuple[str, list[str]]:
    """Import a relevance matrix [S,E] of the domain's generator."""
    matrix, warnings = deltaedit.relevance(file, deltaedit.layout_of(domain, root))
    meta = {"domain": domain.name, "original": provenance(file)}
    weights.save(root / domain.relevance.path, {"relevance": matrix}, meta, half=False)
    line = f"wrote {domain.relevance.path}: {matrix.shape[0]} style channels, {matrix.shape[1]} numbers each"
    return line, [*warnings, *_precedence_warnings(DomainPaths(domain, root).relevance, root)]


def _precedence_warnings(made: Path, root: Path) -> list[str]:
    """A warning where `dvc repro` has made the same artefact, which takes precedence."""
    return [f"{made.relative_to(root)}, made by `dvc repro`, is used before it"] if made.exists() else []
