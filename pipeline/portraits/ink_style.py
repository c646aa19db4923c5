"""A second style: lines of ink, a few washed colours, the grain of paper."""

import numpy as np
from PIL import Image, ImageFilter, ImageOps

from .traits import Look

BITS = 3  # of every colour that is left
WASH, VIVID = 0.8, 1.15  # how much of the colour's depth, and of its saturation
PRESSURE, LIGHT = 5.0, 0.25  # edges times this, less that, are lines
DARKNESS = 0.85  # of a line
GRAIN, CELLS = 0.06, 32  # of the paper: depth, and cells along a side


def inked(painting: Image.Image, look: Look) -> Image.Image:
    """A painted portrait [N x N, RGB] as an ink drawing of the same size; `look` decides the sheet of paper."""
    size = painting.width
    fine = size / 128
    flat = ImageOps.posterize(painting.filter(ImageFilter.MedianFilter(2 * round(2 * fine) + 1)), BITS)
    colours = 1 - WASH * (1 - _unit(flat))
    grey = colours.mean(axis=2, keepdims=True)
    soft = painting.convert("L").filter(ImageFilter.GaussianBlur(fine))
    edges = _unit(soft.filter(ImageFilter.FIND_EDGES))[1:-1, 1:-1]  # the filter leaves the rim as it is
    lines = (np.pad(edges, 1) * PRESSURE * fine - LIGHT).clip(0, 1)
    drawn = (grey + VIVID * (colours - grey)) * (1 - DARKNESS * lines)[..., None] * _paper(size, look)[..., None]
    return Image.fromarray((255 * drawn.clip(0, 1)).astype(np.uint8))


def _paper(size: int, look: Look) -> np.ndarray:
    """How much light a sheet of paper gives back, [size, size] up to 1."""
    chance = np.random.default_rng([int(2**32 * part) for part in (look.tilt, look.shift_x, look.shift_y)])
    cells = Image.fromarray((255 * (1 - GRAIN * chance.random((CELLS, CELLS)))).astype(np.uint8))
    return _unit(cells.resize((size, size), Image.Resampling.BICUBIC))


def _unit(picture: Image.Image) -> np.ndarray:
    return np.asarray(picture, dtype=np.float32) / 255
