"""Where faces are in a photograph: dlib's detector and its 68 points, the ones that FFHQ was aligned by.

An optional extra: without it there is no finder, and pictures are cropped to their centre.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from pipeline.runtime import files
from pipeline.runtime.errors import InputError
from pipeline.storage import alignment, images

Finder = Callable[[Image.Image], Sequence[np.ndarray]]  # an RGB picture -> landmarks of each face, as `quad` takes them

INSTALL = "pip install 'deltaspace[faces]'"
POINTS = "shape_predictor_68_face_landmarks.dat"  # trained on 300-W: research only
POINTS_SHA256 = "fbdc2cb80eb9aa7a758672cbfdda32ba6300efe9b6e6c7a299ff7e736b11b92f"
LOOKED_AT = 1280  # pixels of the longer side that faces are searched in; in less than half of it, at twice the size
ALIGNED = 0.05  # of the side: a picture whose corners are that near to where they belong is left as it is


@dataclass(frozen=True)
class Look:
    """What was found: how many faces, and the square [4,2] to cut out; None for the centre of the picture.

    place: which face it is, from left to right, from 1 up.
    """

    faces: int
    corners: np.ndarray | None = None
    place: int | None = None

    @property
    def warning(self) -> str | None:
        """What to tell of a choice that nobody asked for."""
        if not self.faces:
            return "no face found, cropped to its centre and not aligned"
        if self.faces > 1:
            return (
                f"{self.faces} faces found, took the largest, number {self.place} from the left: --face N takes another"
            )
        return None


@functools.cache
def finder() -> Finder | None:
    """The installed finder, None without the extra. InputError when its points are not the published ones."""
    places = [importlib.util.find_spec(name) for name in ("dlib", "face_recognition_models")]
    if not all(places):
        return None
    (folder,) = (places[1].submodule_search_locations or [""])[:1]  # type: ignore[union-attr]
    path = Path(folder) / "models" / POINTS
    if not path.is_file() or files.digest(path) != POINTS_SHA256:
        raise InputError(f"{path} is not dlib's published file: {INSTALL} --force-reinstall brings it")
    return _dlib(path)


def _dlib(path: Path) -> Finder:
    dlib = importlib.import_module("dlib")
    detect, points = dlib.get_frontal_face_detector(), dlib.shape_predictor(str(path))

    def find(picture: Image.Image) -> list[np.ndarray]:
        pixels = np.asarray(picture)
        scale = min(1.0, LOOKED_AT / max(picture.size))
        small = pixels if scale == 1 else np.asarray(picture.resize([max(1, round(n * scale)) for n in picture.size]))
        boxes = detect(small, 1 if max(picture.size) < LOOKED_AT / 2 else 0)
        edges = [[round(n / scale) for n in (box.left(), box.top(), box.right(), box.bottom())] for box in boxes]
        shapes = [points(pixels, dlib.rectangle(*edge)) for edge in edges]
        return [np.array([(point.x, point.y) for point in shape.parts()], dtype=np.float64) for shape in shapes]

    return find


def look(picture: Image.Image, find: Finder, face: int | None = None, name: str = "the picture") -> Look:
    """Search an RGB picture. face: which of them, from left to right, from 1 up; None: the largest.

    Raises InputError, about `name`, when there are fewer.
    """
    squares = []
    for landmarks in find(picture):
        try:
            squares.append(alignment.quad(landmarks))
        except InputError:  # a few pixels that look like a face
            continue
    squares.sort(key=lambda corners: (corners[:, 0].mean(), corners[:, 1].mean()))
    if face is not None and not 1 <= face <= len(squares):
        found = f"{len(squares)} face{'' if len(squares) == 1 else 's'}"
        advice = f"give 1 to {len(squares)}, from the left" if squares else "leave it out to take the centre"
        raise InputError(f"--face {face}: {found} found in {name}, {advice}")
    if not squares:
        return Look(0)
    sides = [float(np.linalg.norm(corners[3] - corners[0])) for corners in squares]
    index = face - 1 if face is not None else sides.index(max(sides))
    return Look(len(squares), squares[index], index + 1)


def not_aligned(domain: str) -> str:
    """What to tell, once, when the domain's faces are aligned but there is no finder."""
    return f"pictures are cropped to their centre, not aligned as the faces of {domain} are: {INSTALL} aligns them"


def is_aligned(corners: np.ndarray, size: tuple[int, int]) -> bool:
    """Whether a picture (width, height) shows just that square already, as FFHQ's own pictures do."""
    width, height = size
    edges = np.array([(0, 0), (0, height), (width, height), (width, 0)], dtype=np.float64) - 0.5
    return width == height and bool(np.abs(corners - edges).max() <= ALIGNED * width)


def cut_out(picture: Image.Image, corners: np.ndarray | None, size: int, notes: list[str]) -> Image.Image:
    """size x size pixels of an RGB picture: the face aligned, or the centre for None; `notes` gets what was done."""
    if corners is None or is_aligned(corners, picture.size):
        return images.squared(picture, size, notes)
    notes.append("aligned by its face")
    return alignment.align(picture, corners, size)
