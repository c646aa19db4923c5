"""A face turned, scaled and cropped as FFHQ's are (Karras et al. 2019, appendix A), from where its eyes and mouth are.

Points are (x, y) in pixels of a picture, y down, (0, 0) the middle of its first pixel; left is the viewer's left.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from PIL import Image, ImageFilter, ImageStat

from pipeline.runtime.errors import InputError

OVERSAMPLING = 4  # FFHQ's pictures were cut out at 4096 pixels and reduced to 1024
SMALLEST = 4.0  # pixels: a square of less is no face


def quad(landmarks: np.ndarray) -> np.ndarray:
    """The corners [4,2] of the square that FFHQ cuts out: top left, bottom left, bottom right, top right.

    landmarks: dlib's 68 points, or 5 (eyes, nose, mouth corners), or 4 (eyes, mouth corners), each pair left first.
    Raises ValueError for other shapes, InputError for points that span no square.
    """
    eye_left, eye_right, mouth = _eyes_and_mouth(np.asarray(landmarks, dtype=np.float64))
    eyes, eye_to_eye = (eye_left + eye_right) / 2, eye_right - eye_left
    eye_to_mouth = mouth - eyes
    across = eye_to_eye - _quarter_turn(eye_to_mouth)
    length = math.hypot(*across)
    half = max(2.0 * math.hypot(*eye_to_eye), 1.8 * math.hypot(*eye_to_mouth))
    if not (math.isfinite(length) and math.isfinite(half) and length > 0 and 2 * half >= SMALLEST):
        raise InputError("eyes and mouth are too close together to align a face: give a larger picture")
    across *= half / length
    down, middle = _quarter_turn(across), eyes + 0.1 * eye_to_mouth
    return np.stack([middle - across - down, middle - across + down, middle + across + down, middle + across - down])


def align(picture: Image.Image, corners: np.ndarray, size: int) -> Image.Image:
    """The square `corners` (what `quad` gives) of an RGB picture as size x size pixels.

    Where it reaches beyond the picture, the picture is continued by its reflection, ever more blurred and ever nearer
    to the median colour. Large pictures are reduced and cropped first: memory follows from `size` and the picture.
    """
    picture, corners = _shrunk(picture, np.asarray(corners, dtype=np.float64), size)
    picture, corners = _cropped(picture, corners)
    picture, corners = _padded(picture, corners)
    large = size * OVERSAMPLING
    # Pillow counts from the edge of the first pixel
    data: Any = (corners + 0.5).ravel().tolist()
    square = picture.transform((large, large), Image.Transform.QUAD, data, Image.Resampling.BILINEAR)
    return square.resize((size, size), Image.Resampling.LANCZOS)


def _eyes_and_mouth(points: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Middles of the left and right eye and of the mouth's corners, [2] each."""
    if points.shape == (68, 2):
        return points[36:42].mean(0), points[42:48].mean(0), (points[48] + points[54]) / 2
    if points.shape in ((5, 2), (4, 2)):
        return points[0], points[1], (points[-2] + points[-1]) / 2
    raise ValueError(f"landmarks have the shape {list(points.shape)}: [68,2], [5,2] or [4,2] is expected")


def _quarter_turn(vector: np.ndarray) -> np.ndarray:
    """From the x axis towards the y axis: with y down, clockwise as seen."""
    return np.array([-vector[1], vector[0]])


def _side(corners: np.ndarray) -> float:
    return math.hypot(*(corners[3] - corners[0]))


def _shrunk(picture: Image.Image, corners: np.ndarray, size: int) -> tuple[Image.Image, np.ndarray]:
    """Reduced by a whole number, so that the square is still at least twice as wide as what is made of it."""
    factor = math.floor(_side(corners) / size * 0.5)
    if factor <= 1:
        return picture, corners
    reduced = (max(1, round(picture.width / factor)), max(1, round(picture.height / factor)))
    return picture.resize(reduced, Image.Resampling.LANCZOS), corners / factor


def _cropped(picture: Image.Image, corners: np.ndarray) -> tuple[Image.Image, np.ndarray]:
    """Without what lies farther from the square than a border."""
    border = _border(corners)
    left, top = (max(math.floor(low) - border, 0) for low in corners.min(0))
    right = min(math.ceil(corners[:, 0].max()) + border, picture.width)
    bottom = min(math.ceil(corners[:, 1].max()) + border, picture.height)
    if left >= right or top >= bottom:
        raise InputError("the face lies outside the picture: it cannot be aligned")
    return picture.crop((left, top, right, bottom)), corners - np.array((left, top))


def _padded(picture: Image.Image, corners: np.ndarray) -> tuple[Image.Image, np.ndarray]:
    """Continued on all sides where the square comes near to an edge; reflected, blurred, and faded to the median."""
    border, side = _border(corners), _side(corners)
    low, high = np.floor(corners.min(0)).astype(int), np.ceil(corners.max(0)).astype(int)
    needed = np.array([*(border - low), *(high - picture.size + border)])
    if needed.max() <= border - 4:
        return picture, corners
    left, top, right, bottom = (int(width) for width in np.maximum(needed, max(1, round(0.3 * side))))
    wide = np.pad(np.asarray(picture), ((top, bottom), (left, right), (0, 0)), "reflect")
    inside = np.maximum.outer(_outside(len(wide), top, bottom), _outside(wide.shape[1], left, right))
    picture = Image.fromarray(wide)
    # Pillow's Gaussian is three box filters; a true one of that width would take minutes
    blurred = picture.filter(ImageFilter.GaussianBlur(0.02 * side))
    picture = Image.composite(blurred, picture, _mask(3 * inside + 1))
    median: Any = tuple(round(value) for value in ImageStat.Stat(picture).median)
    picture = Image.composite(Image.new("RGB", picture.size, median), picture, _mask(inside))
    return picture, corners + np.array((left, top))


def _outside(length: int, before: int, after: int) -> np.ndarray:
    """Along one axis [length]: 1 at the ends, 0 where the picture begins, below 0 inside."""
    place = np.arange(length, dtype=np.float32)
    return 1 - np.minimum(place / before, place[::-1] / after)


def _mask(share: np.ndarray) -> Image.Image:
    return Image.fromarray((share.clip(0, 1) * 255).round().astype(np.uint8))


def _border(corners: np.ndarray) -> int:
    return max(round(_side(corners) * 0.1), 3)
