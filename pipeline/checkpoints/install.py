"""Where what is imported goes: a domain's weights; with a generator a picture to check by eye, and a new domain."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from deltaspace.outputs import save_grid
from pipeline.checkpoints import deltaedit
from pipeline.checkpoints.generators import Imported, pictures
from pipeline.checkpoints.generators import load as load_generator
from pipeline.delta_mapper import numbers
from pipeline.runtime import files
from pipeline.runtime.errors import InputError
from pipeline.storage import domain_template, domains, weights
from pipeline.storage.artefacts import Layout
from pipeline.storage.domain_template import domain_file, quoted
from pipeline.storage.domains import Domain, Weights

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
class Placed:
    """The files that were written, relative to the project; domain None when one of that name stands already."""

    weights: Path
    grid: Path
    domain: Path | None


def check(name: str, root: Path, force: bool) -> None:
    """InputError unless a domain `name` can be made, or replaced with `force`."""
    domain_template.check_name(name)
    there = [path for path in (domain_file(name), domains.default_path(name, "generator")) if (root / path).exists()]
    if there and not force:
        raise InputError(f"{' and '.join(there)} exist already: choose another --name, or give --force")


def fits(imported: Imported, source: Path, domain: domains.Domain) -> None:
    """InputError unless a generator makes pictures of the size that its domain says."""
    if (size := imported.model["size"]) != domain.resolution:
        where = domain_file(domain.name)
        raise InputError(f"{source} makes pictures of {size} pixels, {where} says {domain.resolution}: mend it")


def place(
    imported: Imported, source: Path, name: str, root: Path, neutral: str, licence: str, seed: int, force: bool
) -> Placed:
    """Write weights (float32), picture grid and domain; an existing domain's file stays, if it has the resolution."""
    check(name, root, force)
    stands = (root / domain_file(name)).exists()
    size = imported.model["size"]
    if stands:
        fits(imported, source, domains.load(name, root))
    rows = pictures(imported.generator, seed)
    path = Path(domains.load(name, root).generator.path if stands else domains.default_path(name, "generator"))
    original = {**of(source), "kind": imported.kind, "notes": imported.notes}
    meta = {"model": imported.model, "domain": name, "original": original, "licence": licence}
    weights.save(root / path, imported.tensors(), meta, half=False)
    grid = path.with_suffix(".png")
    save_grid(root / grid, rows)
    if stands:
        return Placed(path, grid, None)
    network = NETWORK.format(
        path=path.as_posix(),
        sha256=files.digest(root / path),
        licence=quoted(licence),
        original=quoted(source.name),
        original_sha256=original["sha256"],
    )
    origin = f"`deltaspace import-generator` from {quoted(source.name)} ({imported.kind})"
    plans = domain_template.plans_for(imported.model)
    text = domain_template.text(name, origin, size, neutral, plans, split=imported.model["split"], networks=network)
    files.write_bytes(root / domain_file(name), text.encode())
    domains.load(name, root)
    return Placed(path, grid, Path(domain_file(name)))


def generator(file: Path, domain: Domain, root: Path) -> tuple[str, list[str]]:
    """Import a generator into a domain that exists. (what was written, what a person must know), here and below."""
    imported = load_generator(file, domain.level_split)
    licence = domain.generator.licence
    where = place(imported, file, domain.name, root, domain.neutral, licence, seed=0, force=True)
    return f"wrote {where.weights} ({imported.kind}) and pictures of it, {where.grid.name}", imported.notes


def mapper(file: Path, domain: Domain, root: Path) -> tuple[str, list[str]]:
    """Import a Delta Mapper that was trained for the domain's generator."""
    layout = deltaedit.layout_of(domain, root)
    network, clip_dim = deltaedit.mapper_of(file, layout)
    meta = {"model": numbers(layout, clip_dim), "domain": domain.name, "original": of(file)}
    weights.save(root / domain.mapper.path, network.state_dict(), meta, half=False)
    notes = _preceded(Layout(domain, root).mapper, root)
    if domain.clip_normalise:
        notes.append(
            f"DeltaEdit trained on pictures without CLIP's mean and deviation; {domain.name} has clip_normalise: true"
        )
    return f"wrote {domain.mapper.path}: {layout.size} style channels, embeddings of {clip_dim} numbers", notes


def relevance(file: Path, domain: Domain, root: Path) -> tuple[str, list[str]]:
    """Import a relevance matrix of the domain's generator."""
    matrix, notes = deltaedit.relevance(file, deltaedit.layout_of(domain, root))
    weights.save(
        root / domain.relevance.path, {"relevance": matrix}, {"domain": domain.name, "original": of(file)}, half=False
    )
    line = f"wrote {domain.relevance.path}: {matrix.shape[0]} style channels, {matrix.shape[1]} numbers each"
    return line, [*notes, *_preceded(Layout(domain, root).relevance, root)]


def of(original: Path) -> dict[str, str]:
    """Where weights come from, for the heading of their file."""
    return {"file": original.name, "sha256": files.digest(original)}


def other(entry: Weights, original: dict[str, str]) -> list[str]:
    """What to say where an original is another than its domain names."""
    known = entry.original_sha256
    return [] if known in (None, original["sha256"]) else ["its sha256 is not the one that the domain's file names"]


def _preceded(made: Path, root: Path) -> list[str]:
    """What `dvc repro` made is used before what is imported."""
    return [f"{made.relative_to(root)}, made by `dvc repro`, is used before it"] if made.exists() else []
