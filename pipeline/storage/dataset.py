"""Where a domain's pictures come from: its renderer, or photographs (pipeline/storage/image_sources.py) that are looked at first."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pipeline.runtime import files, processes, resumable
from pipeline.runtime.errors import InputError
from pipeline.storage import faces, image_sources, images
from pipeline.storage.image_sources import Listing, Member

LOOKS = 64  # photographs that are looked at in one piece of work


@dataclass(frozen=True)
class PrepareParams:
    """source: a path, or None for the domain's renderer. train: rows from 0 up, the last `val` of them for validation.

    test: rows from `test_start` up; 58,000 is the paper's border between the two. shard: rows per Parquet shard, here
    and in what is made of them: the unit of resuming.
    """

    source: str | None
    train: int
    val: int
    test: int
    test_start: int
    shard: int

    def __post_init__(self) -> None:
        if not 0 <= self.val < self.train or self.test < 0 or self.shard < 1:
            raise ValueError(f"{self.val} of {self.train} pictures for validation leave none to train on")
        if self.train > self.test_start:
            raise ValueError(f"train may be at most test_start ({self.test_start}), not {self.train}")


class Row(NamedTuple):
    """One picture of the dataset: PNG bytes, and the renderer's parameters as JSON where they are known."""

    id: int
    split: str
    image: bytes
    params: str | None


def row_ids(params: PrepareParams) -> list[tuple[int, str]]:
    """(row id, split) of every picture, in id order."""
    border = params.train - params.val
    train = [(row, "train" if row < border else "val") for row in range(params.train)]
    return train + [(row, "test") for row in range(params.test_start, params.test_start + params.test)]


class Seen(NamedTuple):
    """What a look at one photograph showed. reason: why it cannot be used, None where it can.

    faces: how many were found, None where none were searched; corners [4,2]: of the square to cut out, None for the
    centre of the picture.
    """

    reason: str | None = None
    faces: int | None = None
    corners: list[list[float]] | None = None


def examine(path: Path, member: Member, aligned: bool) -> Seen:
    """Read one photograph of the source at `path` whole, and search it for faces if they are to be aligned."""
    try:
        rgb, _ = images.read_rgb(image_sources.opened(path, member), "it")
        find = faces.finder() if aligned else None
        if find is None:
            return Seen()
        found = faces.look(rgb, find)
    except InputError as error:
        return Seen(str(error))
    return Seen(None, found.faces, None if found.corners is None else found.corners.tolist())


class Look(NamedTuple):
    """Some photographs of a source, to be read and searched for faces."""

    path: Path
    members: tuple[Member, ...]
    aligned: bool


def look(job: Look, path: Path) -> None:
    seen = [examine(job.path, member, job.aligned) for member in job.members]
    files.write_bytes(path, json.dumps(seen).encode())


def looked_at(unit: resumable.Unit, listing: Listing, wanted: int, aligned: bool) -> list[Seen]:
    """Look at photographs in their order until `wanted` can be used, or there are no more."""
    seen: list[Seen] = []
    while len(seen) < len(listing.members) and (missing := wanted - sum(one.reason is None for one in seen)) > 0:
        members = listing.members[len(seen) : len(seen) + max(missing, LOOKS)]
        parts = [members[start : start + LOOKS] for start in range(0, len(members), LOOKS)]
        jobs = [Look(listing.path, part, aligned) for part in parts]
        for name in processes.fill(unit, f"looks-{len(seen)}", look, jobs, processes.count(), ".json"):
            seen += [Seen(*one) for one in json.loads(unit.path(name).read_bytes())]
    return seen


@dataclass(frozen=True)
class Rendered:
    """Portraits drawn from their row id, in one of `portraits.STYLES`."""

    resolution: int
    rows: tuple[tuple[int, str], ...]
    style: str = "painted"

    def part(self, some: slice) -> Rendered:
        return replace(self, rows=self.rows[some])

    def __call__(self, position: int) -> Row:
        from pipeline import portraits

        row, split = self.rows[position]
        person = portraits.restyled(portraits.sample(row), self.style)
        picture = images.encode_png(images.from_uint8(portraits.render(person, self.resolution)))
        return Row(row, split, picture, json.dumps(portraits.to_dict(person), sort_keys=True))


@dataclass(frozen=True)
class Photographs:
    """Photographs as squares: the face where `examine` found one, else the centre. One member and look per row."""

    path: Path
    resolution: int
    rows: tuple[tuple[int, str], ...]
    members: tuple[Member, ...]
    seen: tuple[Seen, ...]

    def part(self, some: slice) -> Photographs:
        return replace(self, rows=self.rows[some], members=self.members[some], seen=self.seen[some])

    def __call__(self, position: int) -> Row:
        (row, split), member, seen = self.rows[position], self.members[position], self.seen[position]
        rgb, notes = images.read_rgb(image_sources.opened(self.path, member), member.name)
        corners = None if seen.corners is None else np.array(seen.corners)
        photo = images.photo_of(faces.cut_out(rgb, corners, self.resolution, notes), notes)
        return Row(row, split, images.encode_png(photo.image[0]), None)


def photographs(source: str | None, root: Path, wanted: int) -> Listing:
    """What lies at `source`, relative to `root`; InputError without one, or where it holds fewer than `wanted`."""
    if source is None:
        raise InputError("no pictures are known for this domain: set prepare.source to a folder, .zip or .parquet file")
    found = image_sources.listing((root / source).expanduser())
    if len(found.members) < wanted:
        raise InputError(
            f"{found.path} holds {len(found.members)} pictures, {wanted} are asked for: "
            "lower prepare.train or prepare.test"
        )
    return found


def chosen(listing: Listing, seen: Sequence[Seen], params: PrepareParams, resolution: int) -> Photographs:
    """The usable ones among the first members, as many as are asked for; `seen` is what looking at them showed.

    Unusable ones are taken off the training pictures where no others can take their place. Raises InputError when too
    few are left for that.
    """
    usable = [(member, look) for member, look in zip(listing.members, seen) if look.reason is None]
    missing = max(0, len(row_ids(params)) - len(usable))
    if params.train - missing <= params.val:
        bad = next(place for place, look in enumerate(seen) if look.reason is not None)
        raise InputError(
            f"only {len(usable)} of the {len(seen)} pictures in {listing.path} can be used, too few to train on; "
            f"{listing.members[bad].name}: {seen[bad].reason}"
        )
    rows = row_ids(replace(params, train=params.train - missing))
    members, looks = zip(*usable[: len(rows)])
    return Photographs(listing.path, resolution, tuple(rows), members, looks)


def account(listing: Listing, seen: Sequence[Seen], used: Photographs) -> dict[str, Any]:
    """What became of every file, ready for JSON: counts, and name and reason of each that was skipped."""
    skipped = [*listing.skipped]
    skipped += [(member.name, look.reason) for member, look in zip(listing.members, seen) if look.reason is not None]
    counts = [look.faces for look in used.seen if look.faces is not None]
    return {
        "pictures": len(used.rows),
        "not_needed": len(listing.members) - len(used.rows) - sum(look.reason is not None for look in seen),
        "searched_for_faces": len(counts),
        "without_a_face": counts.count(0),
        "with_several_faces": sum(count > 1 for count in counts),
        "skipped": [{"name": name, "reason": reason} for name, reason in sorted(skipped)],
    }


def told(found: dict[str, Any], where: str) -> str:
    """An account in one line; `where` is the file that holds all of it."""
    line = f"{found['pictures']:,} pictures"
    if found["searched_for_faces"]:
        line += f", {found['without_a_face']:,} of them without a face (cropped to their centre)"
        line += f", {found['with_several_faces']:,} with several (the largest)"
    if skipped := found["skipped"]:
        line += f"; skipped {len(skipped):,}, such as {skipped[0]['name']} ({skipped[0]['reason']}): all in {where}"
    return line
