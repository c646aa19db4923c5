"""Positions of the eyes and the corners of the mouth in drawn portraits, from the geometry they are drawn with."""

import math

import numpy as np

from pipeline.portraits import Portrait
from pipeline.portraits.geometry import face_geometry, head_placement
from pipeline.portraits.render import CANVAS


def landmarks(params: Portrait) -> np.ndarray:
    """Centres of the eyes and corners of the mouth, each the viewer's left first: [4,2], (x, y) in the unit square."""
    face, at = face_geometry(params), head_placement(params.look)
    x, half, y = face.mouth
    sin, cos = math.sin(math.radians(at.tilt)), math.cos(math.radians(at.tilt))
    points = (face.eye(-1), face.eye(1), (x - half, y), (x + half, y))
    turned = [(at.x + at.zoom * (cos * x - sin * y), at.y + at.zoom * (sin * x + cos * y)) for x, y in points]
    return np.array(turned) / CANVAS
