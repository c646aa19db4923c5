"""Faces found in photographs, and aligned as FFHQ's are (Karras et al. 2019, appendix A).

Faces are found by dlib's detector and its 68 landmarks, by which FFHQ was aligned. They are an optional extra: without
it there is no detector, and photographs are cropped to their centre. Points are (x, y) in pixels of an image, y down,
(0, 0) the centre of the first pixel; left is the viewer's left.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageFilter, ImageStat

from pipeline.runtime import files
from pipeline.runtime.errors import InputError
from pipeline.storage import images

Detector = Callable[[Image.Image], Sequence[np.ndarray]]  # RGB image -> landmarks of each face, as `quad` takes them

INSTALL = "pip install 'deltaspace[faces]'"
LANDMARKS = "shape_predictor_68_face_landmarks.dat"  # trained on 300-W: research only
LANDMARKS_SHA256 = "fbdc2cb80eb9aa7a758672cbfdda32ba6300efe9b6e6c7a299ff7e736b11b92f"
DETECTION_SIZE = 1280  # pixels of the longer side in detection; images under half of it are detected at twice the size
ALIGNED = 0.05  # of the side: an image whose corners are that near to their place is left as it is
OVERSAMPLING = 4  # FFHQ's images were cut out at 4096 pixels and reduced to 1024
MIN_SIDE = 4.0  # pixels of a face's square


# ---------------------------------------------------------------- detection


@dataclass(frozen=True)
class Detection:
    """Faces of one photograph.

    count: number of faces.
    corners: of the square to cut out, [4,2]; None for the centre of the image.
    number: of the face cut out, from left to right, from 1 up.
    """

    count: int
    corners: np.ndarray | None = None
    number: int | None = None

    @property
    def warning(self) -> str | None:
        """Warning about a choice among several faces, or that there is none."""
        if not self.count:
            return "no face found, cropped to its centre and not aligned"
        if self.count > 1:
            return (
                f"{self.count} faces found, took the largest, number {self.number} from the left: "
                "--face N takes another"
            )
        return None


@functools.cache
def detector() -> Detector | None:
    """dlib's detector, or None without the extra. Raises InputError when its landmarks are not the published ones."""
    specs = [importlib.util.find_spec(name) for name in ("dlib", "face_recognition_models")]
    if not all(specs):
        return None
    (folder,) = (specs[1].submodule_search_locations or [""])[:1]  # type: ignore[union-attr]
    path = Path(folder) / "models" / LANDMARKS
    if not path.is_file() or files.digest(path) != LANDMARKS_SHA256:
        raise InputError(f"{path} is not dlib's published file: {INSTALL} --force-reinstall brings it")
    return _dlib(path)


def _dlib(path: Path) -> Detector:
    dlib = importlib.import_module("dlib")
    find_boxes, find_landmarks = dlib.get_frontal_face_detector(), dlib.shape_predictor(str(path))

    def detect_landmarks(image: Image.Image) -> list[np.ndarray]:
        pixels = np.asarray(image)
        scale = min(1.0, DETECTION_SIZE / max(image.size))
        small = pixels if scale == 1 else np.asarray(image.resize([max(1, round(n * scale)) for n in image.size]))
        boxes = find_boxes(small, 1 if max(image.size) < DETECTION_SIZE / 2 else 0)
        edges = [[round(n / scale) for n in (box.left(), box.top(), box.right(), box.bottom())] for box in boxes]
        shapes = [find_landmarks(pixels, dlib.rectangle(*edge)) for edge in edges]
        return [np.array([(point.x, point.y) for point in shape.parts()], dtype=np.float64) for shape in shapes]

    return detect_landmarks


def detect(image: Image.Image, detector: Detector, face: int | None = None, name: str = "the picture") -> Detection:
    """Detect the faces of an RGB image and choose one.

    face: number of the face, from left to right, from 1 up; None for the largest.
    name: of the image, for errors.

    Raises InputError when there are fewer faces.
    """
    squares = []
    for landmarks in detector(image):
        try:
            squares.append(quad(landmarks))
        except InputError:  # a few pixels that resemble a face
            continue
    squares.sort(key=lambda corners: (corners[:, 0].mean(), corners[:, 1].mean()))
    if face is not None and not 1 <= face <= len(squares):
        count = f"{len(squares)} face{'' if len(squares) == 1 else 's'}"
        advice = f"give 1 to {len(squares)}, from the left" if squares else "leave it out to take the centre"
        raise InputError(f"--face {face}: {count} found in {name}, {advice}")
    if not squares:
        return Detection(0)
    sides = [float(np.linalg.norm(corners[3] - corners[0])) for corners in squares]
    index = face - 1 if face is not None else sides.index(max(sides))
    return Detection(len(squares), squares[index], index + 1)


def missing_detector(domain: str) -> str:
    """Warning for a domain of aligned faces when there is no detector."""
    return f"pictures are cropped to their centre, not aligned as the faces of {domain} are: {INSTALL} aligns them"


# ---------------------------------------------------------------- alignment


def quad(landmarks: np.ndarray) -> np.ndarray:
    """Corners [4,2] of the square that FFHQ cuts out: top left, bottom left, bottom right, top right.

    landmarks: dlib's 68 points, or 5 (eyes, nose, mouth corners), or 4 (eyes, mouth corners), each pair left first.

    Raises ValueError for other shapes, InputError for points that span no square.
    """
    eye_left, eye_right, mouth = _eyes_and_mouth(np.asarray(landmarks, dtype=np.float64))
    eyes, eye_to_eye = (eye_left + eye_right) / 2, eye_right - eye_left
    eye_to_mouth = mouth - eyes
    across = eye_to_eye - _quarter_turn(eye_to_mouth)
    length = math.hypot(*across)
    half = max(2.0 * math.hypot(*eye_to_eye), 1.8 * math.hypot(*eye_to_mouth))
    if not (math.isfinite(length) and math.isfinite(half) and length > 0 and 2 * half >= MIN_SIDE):
        raise InputError("eyes and mouth are too close together to align a face: give a larger picture")
    across *= half / length
    down, middle = _quarter_turn(across), eyes + 0.1 * eye_to_mouth
    return np.stack([middle - across - down, middle - across + down, middle + across + down, middle + across - down])


def align(image: Image.Image, corners: np.ndarray, size: int) -> Image.Image:
    """Cut the square `corners` (from `quad`) out of an RGB image as size x size pixels.

    Beyond its edges the image is continued by its reflection, more and more blurred and nearer to the median colour.
    Large images are reduced and cropped first, so that memory depends on `size` and the image alone.

    Raises InputError where the square lies outside the image.
    """
    image, corners = _shrink(image, np.asarray(corners, dtype=np.float64), size)
    image, corners = _crop(image, corners)
    image, corners = _pad(image, corners)
    large = size * OVERSAMPLING
    # Pillow counts from the edge of the first pixel
    data: Any = (corners + 0.5).ravel().tolist()
    square = image.transform((large, large), Image.Transform.QUAD, data, Image.Resampling.BILINEAR)
    return square.resize((size, size), Image.Resampling.LANCZOS)


def is_aligned(corners: np.ndarray, size: tuple[int, int]) -> bool:
    """Whether an image (width, height) shows that square already, as FFHQ's own images do."""
    width, height = size
    edges = np.array([(0, 0), (0, height), (width, height), (width, 0)], dtype=np.float64) - 0.5
    return width == height and bool(np.abs(corners - edges).max() <= ALIGNED * width)


def crop(image: Image.Image, corners: np.ndarray | None, size: int, notes: list[str]) -> Image.Image:
    """size x size pixels of an RGB image: the aligned face, or the centre for None; `notes` gets what was done."""
    if corners is None or is_aligned(corners, image.size):
        return images.squared(image, size, notes)
    notes.append("aligned by its face")
    return align(image, corners, size)


def _eyes_and_mouth(points: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Centres of the left eye, of the right eye and between the mouth's corners, [2] each."""
    if points.shape == (68, 2):
        return points[36:42].mean(0), points[42:48].mean(0), (points[48] + points[54]) / 2
    if points.shape in ((5, 2), (4, 2)):
        return points[0], points[1], (points[-2] + points[-1]) / 2
    raise ValueError(f"landmarks have the shape {list(points.shape)}: [68,2], [5,2] or [4,2] is expected")


def _quarter_turn(vector: np.ndarray) -> np.ndarray:
    """Turn from the x axis towards the y axis: clockwise as seen, with y down."""
    return np.array([-vector[1], vector[0]])


def _side(corners: np.ndarray) -> float:
    return math.hypot(*(corners[3] - corners[0]))


def _shrink(image: Image.Image, corners: np.ndarray, size: int) -> tuple[Image.Image, np.ndarray]:
    """Reduce by a whole number, to a square still at least twice as wide as `size`."""
    factor = math.floor(_side(corners) / size * 0.5)
    if factor <= 1:
        return image, corners
    reduced = (max(1, round(image.width / factor)), max(1, round(image.height / factor)))
    return image.resize(reduced, Image.Resampling.LANCZOS), corners / factor


def _crop(image: Image.Image, corners: np.ndarray) -> tuple[Image.Image, np.ndarray]:
    """Remove what lies farther from the square than a border."""
    border = _border(corners)
    left, top = (max(math.floor(low) - border, 0) for low in corners.min(0))
    right = min(math.ceil(corners[:, 0].max()) + border, image.width)
    bottom = min(math.ceil(corners[:, 1].max()) + border, image.height)
    if left >= right or top >= bottom:
        raise InputError("the face lies outside the picture: it cannot be aligned")
    return image.crop((left, top, right, bottom)), corners - np.array((left, top))


def _pad(image: Image.Image, corners: np.ndarray) -> tuple[Image.Image, np.ndarray]:
    """Continue all sides where the square comes near to an edge: reflected, blurred, and faded to the median colour."""
    border, side = _border(corners), _side(corners)
    low, high = np.floor(corners.min(0)).astype(int), np.ceil(corners.max(0)).astype(int)
    needed = np.array([*(border - low), *(high - image.size + border)])
    if needed.max() <= border - 4:
        return image, corners
    left, top, right, bottom = (int(width) for width in np.maximum(needed, max(1, round(0.3 * side))))
    wide = np.pad(np.asarray(image), ((top, bottom), (left, right), (0, 0)), "reflect")
    outside = np.maximum.outer(_outside(len(wide), top, bottom), _outside(wide.shape[1], left, right))
    image = Image.fromarray(wide)
    # Pillow's Gaussian is three box filters; a true one of that width would take minutes
    blurred = image.filter(ImageFilter.GaussianBlur(0.02 * side))
    image = Image.composite(blurred, image, _mask(3 * outside + 1))
    median: Any = tuple(round(value) for value in ImageStat.Stat(image).median)
    image = Image.composite(Image.new("RGB", image.size, median), image, _mask(outside))
    return image, corners + np.array((left, top))


def _outside(length: int, before: int, after: int) -> np.ndarray:
    """Weight along one axis [length]: 1 at the ends, 0 where the image begins, below 0 inside."""
    position = np.arange(length, dtype=np.float32)
    return 1 - np.minimum(position / before, position[::-1] / after)


def _mask(weight: np.ndarray) -> Image.Image:
    return Image.fromarray((weight.clip(0, 1) * 255).round().astype(np.uint8))


def _border(corners: np.ndarray) -> int:
    return max(round(_side(corners) * 0.1), 3)
