"""Second drawing style: lines of ink, a few washed colours, the grain of paper."""

import numpy as np
from PIL import Image, ImageFilter, ImageOps

from .traits import Look

BITS = 3  # per colour channel
WASH, VIVID = 0.8, 1.15  # factors on the depth and the saturation of colours
PRESSURE, LIGHT = 5.0, 0.25  # a line has the darkness PRESSURE * edge - LIGHT
DARKNESS = 0.85  # of a line
GRAIN, CELLS = 0.06, 32  # of the paper: depth, cells along a side


def ink_drawing(painting: Image.Image, look: Look) -> Image.Image:
    """Convert a painted portrait, square RGB, to an ink drawing of its size; `look` seeds the grain of the paper."""
    size = painting.width
    scale = size / 128
    flat = ImageOps.posterize(painting.filter(ImageFilter.MedianFilter(2 * round(2 * scale) + 1)), BITS)
    colours = 1 - WASH * (1 - _unit(flat))
    grey = colours.mean(axis=2, keepdims=True)
    soft = painting.convert("L").filter(ImageFilter.GaussianBlur(scale))
    edges = _unit(soft.filter(ImageFilter.FIND_EDGES))[1:-1, 1:-1]  # the filter leaves the border unchanged
    lines = (np.pad(edges, 1) * PRESSURE * scale - LIGHT).clip(0, 1)
    drawn = (grey + VIVID * (colours - grey)) * (1 - DARKNESS * lines)[..., None] * _paper(size, look)[..., None]
    return Image.fromarray((255 * drawn.clip(0, 1)).astype(np.uint8))


def _paper(size: int, look: Look) -> np.ndarray:
    """Reflectance of the paper [size,size], up to 1."""
    rng = np.random.default_rng([int(2**32 * part) for part in (look.tilt, look.shift_x, look.shift_y)])
    cells = Image.fromarray((255 * (1 - GRAIN * rng.random((CELLS, CELLS)))).astype(np.uint8))
    return _unit(cells.resize((size, size), Image.Resampling.BICUBIC))


def _unit(image: Image.Image) -> np.ndarray:
    return np.asarray(image, dtype=np.float32) / 255
