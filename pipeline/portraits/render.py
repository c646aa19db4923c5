"""Rendering of portraits: parameters -> SVG -> pixels."""

import io

import numpy as np
import resvg_py
from PIL import Image

from . import accessories, features, hair
from .geometry import BACKGROUND, Face, darker, face_geometry, head_placement, lighter, mix, span
from .ink_style import ink_drawing
from .svg import color
from .traits import Portrait

CANVAS = 128
SIZES = (8, 1024)


def render(params: Portrait, size: int) -> np.ndarray:
    """Render a portrait as RGB uint8 pixels [size,size,3]; equal parameters give equal bytes.

    Raises ValueError for a size outside 8..1024.
    """
    if not SIZES[0] <= size <= SIZES[1]:
        raise ValueError(f"size must lie in {SIZES[0]}..{SIZES[1]}, not {size}")
    if params.style == "painted":
        return np.array(_painted(params, size))
    large = ink_drawing(_painted(params, max(size, CANVAS)), params.look)
    return np.array(large.resize((size, size), Image.Resampling.LANCZOS))


def _painted(params: Portrait, size: int) -> Image.Image:
    png = resvg_py.svg_to_bytes(svg_string=svg(params), width=size, height=size, skip_system_fonts=True)
    return Image.open(io.BytesIO(png)).convert("RGB")


def svg(params: Portrait) -> str:
    """SVG of a portrait, on a 128 x 128 canvas, for any drawing style."""
    face, at = face_geometry(params), head_placement(params.look)
    head = f'<g transform="translate({at.x:.2f} {at.y:.2f}) rotate({at.tilt:.2f}) scale({at.zoom:.3f})">'
    return "".join(
        (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {CANVAS} {CANVAS}">',
            _gradients(params, face),
            f'<rect width="{CANVAS}" height="{CANVAS}" fill="url(#b)"/>',
            head + hair.back(params, face) + "</g>",
            accessories.body(params, face, at.x, at.y, at.zoom),
            head,
            features.skull(face),
            features.marks(params, face),
            hair.beard(params, face),
            features.mouth(params, face),
            features.nose(face),
            features.eyes(params, face),
            hair.front(params, face),
            features.brows(params, face),
            accessories.glasses(params, face),
            accessories.earrings(params, face),
            "</g></svg>",
        )
    )


def _gradients(params: Portrait, face: Face) -> str:
    look, traits = params.look, params.traits
    back = mix(*BACKGROUND[traits.background.value], traits.background.u)
    depth = span(look.light_strength, 0.556, 0.812)
    center = 50 + 24 * face.light
    start = 50 + 50 * face.light
    return (
        f'<linearGradient id="b" x1="{start:.0f}%" y1="0%" x2="{100 - start:.0f}%" y2="100%">'
        f'<stop stop-color="{color(lighter(back, 0.3))}"/><stop offset="1" stop-color="{color(darker(back, 0.14))}"/>'
        f'</linearGradient><radialGradient id="s" cx="{center:.0f}%" cy="38%" r="72%">'
        f'<stop stop-color="{color(lighter(face.skin, 0.14))}"/><stop offset=".5" stop-color="{color(face.skin)}"/>'
        f'<stop offset="1" stop-color="{color(mix(face.skin, face.shade, depth))}"/></radialGradient>'
        f'<linearGradient id="h" x1="{start:.0f}%" y1="0%" x2="{100 - start:.0f}%" y2="90%">'
        f'<stop stop-color="{color(lighter(face.hair, 0.2))}"/><stop offset=".45" stop-color="{color(face.hair)}"/>'
        f'<stop offset="1" stop-color="{color(darker(face.hair, 0.3))}"/></linearGradient>'
    )
