"""Where an imported generator goes: its weights, a picture to check by eye, and a new domain to fill in."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pipeline import blank, domains, files, weights
from pipeline.blank import domain_file, quoted
from pipeline.foreign.generators import Imported, pictures
from pipeline.gallery import save_grid
from pipeline.values import InputError

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
    blank.check_name(name)
    there = [path for path in (domain_file(name), domains.default_path(name, "generator")) if (root / path).exists()]
    if there and not force:
        raise InputError(f"{' and '.join(there)} exist already: choose another --name, or give --force")


def place(
    imported: Imported, source: Path, name: str, root: Path, neutral: str, licence: str, seed: int, force: bool
) -> Placed:
    """Write weights (float32), picture grid and domain; an existing domain's file stays, if it has the resolution."""
    check(name, root, force)
    stands = (root / domain_file(name)).exists()
    size = imported.model["size"]
    if stands and (resolution := domains.load(name, root).resolution) != size:
        raise InputError(f"{source} makes pictures of {size} pixels, {domain_file(name)} says {resolution}: mend it")
    rows = pictures(imported.generator, seed)
    path = Path(domains.default_path(name, "generator"))
    original = {"file": source.name, "sha256": files.digest(source), "kind": imported.kind, "notes": imported.notes}
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
    plans = blank.plans_for(imported.model)
    text = blank.text(name, origin, size, neutral, plans, split=imported.model["split"], networks=network)
    files.write_bytes(root / domain_file(name), text.encode())
    domains.load(name, root)
    return Placed(path, grid, Path(domain_file(name)))
