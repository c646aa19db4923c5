"""Images of a domain: drawn by its renderer, or photographs, which are inspected first."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pipeline.runtime import files, processes, resumable
from pipeline.runtime.errors import InputError
from pipeline.storage import face_alignment, image_sources, images
from pipeline.storage.image_sources import Listing, Member

INSPECTED_AT_ONCE = 64  # photographs in one piece of work


@dataclass(frozen=True)
class PrepareParams:
    """Rows of the dataset.

    source: path of the photographs, or None for the domain's renderer.
    train: rows from 0 up; the last `val` of them are for validation.
    test: rows from `test_start` up; 58,000 is the paper's border between the two.
    shard: rows per Parquet shard, here and in the tables made of them: the unit of resuming.
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
    """One image of the dataset: PNG bytes, and the renderer's parameters as JSON where they are known."""

    id: int
    split: str
    image: bytes
    params: str | None


def row_ids(params: PrepareParams) -> list[tuple[int, str]]:
    """(row id, split) of every image, in the order of the ids."""
    border = params.train - params.val
    train = [(row, "train" if row < border else "val") for row in range(params.train)]
    return train + [(row, "test") for row in range(params.test_start, params.test_start + params.test)]


# ---------------------------------------------------------------- inspection of photographs


class Inspection(NamedTuple):
    """Result of reading one photograph.

    reason: why it cannot be used; None where it can.
    faces: number of faces; None where none were searched.
    corners: of the square to cut out, [4,2]; None for the centre of the image.
    """

    reason: str | None = None
    faces: int | None = None
    corners: list[list[float]] | None = None


def inspect(path: Path, member: Member, aligned: bool) -> Inspection:
    """Decode one photograph of the source at `path`, and detect its faces if they are to be aligned."""
    try:
        rgb, _ = images.read_rgb(image_sources.open_member(path, member), "it")
        detector = face_alignment.detector() if aligned else None
        if detector is None:
            return Inspection()
        detection = face_alignment.detect(rgb, detector)
    except InputError as error:
        return Inspection(str(error))
    return Inspection(None, detection.count, None if detection.corners is None else detection.corners.tolist())


class _Job(NamedTuple):
    """Photographs of a source to inspect."""

    path: Path
    members: tuple[Member, ...]
    aligned: bool


def _write_inspections(job: _Job, path: Path) -> None:
    files.write_bytes(path, json.dumps([inspect(job.path, member, job.aligned) for member in job.members]).encode())


def inspect_photographs(work: resumable.Work, listing: Listing, wanted: int, aligned: bool) -> list[Inspection]:
    """Inspect photographs in their order until enough of them can be used, or there are no more.

    work: keeps the inspections of an interrupted run.
    listing: the photographs.
    wanted: number of usable ones that is enough.
    aligned: also search faces.
    """
    inspections: list[Inspection] = []
    while len(inspections) < len(listing.members):
        missing = wanted - sum(one.reason is None for one in inspections)
        if missing <= 0:
            break
        members = listing.members[len(inspections) : len(inspections) + max(missing, INSPECTED_AT_ONCE)]
        starts = range(0, len(members), INSPECTED_AT_ONCE)
        jobs = [_Job(listing.path, members[start : start + INSPECTED_AT_ONCE], aligned) for start in starts]
        folder = f"inspections-{len(inspections)}"
        for name in processes.fill(work, folder, _write_inspections, jobs, processes.count(), ".json"):
            inspections += [Inspection(*one) for one in json.loads(work.path(name).read_bytes())]
    return inspections


# ---------------------------------------------------------------- rows


@dataclass(frozen=True)
class Rendered:
    """Rows of portraits drawn from their row id, in one of `portraits.STYLES`; call it with a position."""

    resolution: int
    rows: tuple[tuple[int, str], ...]
    style: str = "painted"

    def part(self, some: slice) -> Rendered:
        """Some of the rows."""
        return replace(self, rows=self.rows[some])

    def __call__(self, position: int) -> Row:
        from pipeline import portraits

        row, split = self.rows[position]
        person = portraits.with_style(portraits.sample(row), self.style)
        png = images.encode_png(images.from_uint8(portraits.render(person, self.resolution)))
        return Row(row, split, png, json.dumps(portraits.to_dict(person), sort_keys=True))


@dataclass(frozen=True)
class Photographs:
    """Rows of photographs as squares: the face where one was found, else the centre; call it with a position.

    members, inspections: one per row.
    """

    path: Path
    resolution: int
    rows: tuple[tuple[int, str], ...]
    members: tuple[Member, ...]
    inspections: tuple[Inspection, ...]

    def part(self, some: slice) -> Photographs:
        """Some of the rows."""
        return replace(self, rows=self.rows[some], members=self.members[some], inspections=self.inspections[some])

    def __call__(self, position: int) -> Row:
        (row, split), member, inspection = self.rows[position], self.members[position], self.inspections[position]
        rgb, notes = images.read_rgb(image_sources.open_member(self.path, member), member.name)
        corners = None if inspection.corners is None else np.array(inspection.corners)
        photo = images.photo_of(face_alignment.crop(rgb, corners, self.resolution, notes), notes)
        return Row(row, split, images.encode_png(photo.image[0]), None)


def source_listing(source: str | None, root: Path, wanted: int) -> Listing:
    """List the photographs at `source`, relative to `root`. Raises InputError without a source or `wanted` images."""
    if source is None:
        raise InputError("no pictures are known for this domain: set prepare.source to a folder, .zip or .parquet file")
    listing = image_sources.list_images((root / source).expanduser())
    if len(listing.members) < wanted:
        raise InputError(
            f"{listing.path} holds {len(listing.members)} pictures, {wanted} are asked for: "
            "lower prepare.train or prepare.test"
        )
    return listing


def select_usable(
    listing: Listing, inspections: Sequence[Inspection], params: PrepareParams, resolution: int
) -> Photographs:
    """Select the usable photographs among the first members, as many as `params` asks for.

    Where too few are usable, the training rows become fewer. Raises InputError when none would be left.

    listing, inspections: all members, and inspections of the first ones in their order.
    resolution: of the images to make, pixels.
    """
    usable = [(member, one) for member, one in zip(listing.members, inspections) if one.reason is None]
    missing = max(0, len(row_ids(params)) - len(usable))
    if params.train - missing <= params.val:
        bad = next(position for position, one in enumerate(inspections) if one.reason is not None)
        raise InputError(
            f"only {len(usable)} of the {len(inspections)} pictures in {listing.path} can be used, too few to train "
            f"on; {listing.members[bad].name}: {inspections[bad].reason}"
        )
    rows = row_ids(replace(params, train=params.train - missing))
    members, chosen = zip(*usable[: len(rows)])
    return Photographs(listing.path, resolution, tuple(rows), members, chosen)


def summary(listing: Listing, inspections: Sequence[Inspection], used: Photographs) -> dict[str, Any]:
    """Content of prepared.json: counts of the photographs, and name and reason of each that was skipped.

    listing: of the source.
    inspections: of its first members, in their order.
    used: the rows that became images.
    """
    unusable = [
        (member.name, one.reason) for member, one in zip(listing.members, inspections) if one.reason is not None
    ]
    skipped = [*listing.skipped, *unusable]
    counts = [one.faces for one in used.inspections if one.faces is not None]
    return {
        "pictures": len(used.rows),
        "not_needed": len(listing.members) - len(used.rows) - len(unusable),
        "searched_for_faces": len(counts),
        "without_a_face": counts.count(0),
        "with_several_faces": sum(count > 1 for count in counts),
        "skipped": [{"name": name, "reason": reason} for name, reason in sorted(skipped)],
    }


def summary_line(summary: dict[str, Any], path: str) -> str:
    """A `summary` in one line; `path` names the file that holds the whole."""
    line = f"{summary['pictures']:,} pictures"
    if summary["searched_for_faces"]:
        line += f", {summary['without_a_face']:,} of them without a face (cropped to their centre)"
        line += f", {summary['with_several_faces']:,} with several (the largest)"
    if skipped := summary["skipped"]:
        line += f"; skipped {len(skipped):,}, such as {skipped[0]['name']} ({skipped[0]['reason']}): all in {path}"
    return line
