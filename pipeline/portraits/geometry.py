"""Lengths, positions and colours of a portrait on the 128 x 128 canvas, from its parameters."""

import math
from dataclasses import dataclass

from .traits import Look, Portrait

Color = tuple[float, float, float]

SKIN: dict[str, tuple[Color, Color]] = {
    "pale": ((255, 236, 226), (250, 225, 212)),
    "light": ((241, 193, 152), (232, 180, 136)),
    "tanned": ((198, 138, 88), (180, 120, 72)),
    "dark": ((118, 74, 48), (84, 52, 35)),
}
HAIR: dict[str, tuple[Color, Color]] = {
    "black": ((16, 14, 18), (38, 32, 40)),
    "brown": ((84, 52, 28), (112, 70, 38)),
    "blond": ((232, 190, 84), (246, 218, 130)),
    "red": ((196, 52, 14), (222, 84, 30)),
    "grey": ((166, 170, 178), (212, 214, 220)),
}
CLOTHES: dict[str, tuple[Color, Color]] = {
    "black": ((24, 24, 30), (44, 42, 50)),
    "white": ((240, 242, 246), (226, 226, 230)),
    "red": ((206, 28, 44), (184, 30, 56)),
    "blue": ((30, 76, 200), (46, 104, 222)),
    "green": ((20, 140, 60), (40, 164, 84)),
    "yellow": ((244, 196, 28), (228, 184, 50)),
}
BACKGROUND: dict[str, tuple[Color, Color]] = {
    "blue": ((120, 176, 226), (150, 196, 232)),
    "green": ((136, 196, 128), (166, 208, 150)),
    "pink": ((240, 160, 190), (244, 182, 204)),
    "orange": ((244, 180, 104), (246, 198, 132)),
    "grey": ((164, 168, 174), (188, 190, 194)),
}
IRIS: tuple[Color, ...] = ((70, 40, 22), (40, 110, 206), (44, 140, 70), (120, 130, 140), (158, 98, 30))
TIES: tuple[Color, ...] = ((176, 24, 40), (28, 40, 96), (70, 70, 78), (96, 32, 110))
FRAMES: tuple[Color, ...] = ((18, 18, 20), (70, 34, 18), (24, 36, 92))


@dataclass(frozen=True, slots=True)
class Face:
    """Geometry of a head in its own coordinates: origin at the centre, x to the viewer's right, y down."""

    width: float
    top: float
    chin: float
    jaw: float
    chin_width: float
    sin: float
    cos: float
    eye_x: float
    eye_y: float
    eye_w: float
    eye_h: float
    nose_y: float
    nose_w: float
    mouth_y: float
    mouth_w: float
    smile: float
    opening: float
    ear: float
    skin: Color
    shade: Color
    hair: Color
    light: float
    build: str

    def x(self, across: float, depth: float) -> float:
        """Projected x of a point `across` the face and `depth` in front of its centre, after the head's rotation."""
        return across * self.cos + depth * self.sin

    def eye(self, side: int) -> tuple[float, float]:
        """Centre (x, y) of the eye on a side (-1: the viewer's left, 1: right)."""
        return self.x(side * self.eye_x, 15), self.eye_y

    @property
    def mouth(self) -> tuple[float, float, float]:
        """(x of the centre, projected half width, y of the corners) of the mouth."""
        return self.x(0, 13), self.mouth_w * (0.5 + 0.5 * self.cos), self.mouth_y - self.smile * 0.8

    @property
    def turned(self) -> bool:
        """Whether the head is turned so far that one ear is hidden."""
        return abs(self.sin) > 0.3

    def hides(self, side: int) -> bool:
        """Whether the ear on a side is hidden (-1: the viewer's left, 1: right)."""
        return side * self.sin >= 0.3

    def ear_x(self, side: int, out: float) -> float:
        """Projected x of the ear on a side, `out` beyond the edge of the face."""
        return self.x(side * (self.width + out), -2) - side * (3 if side * self.sin < -0.3 else 0)


@dataclass(frozen=True, slots=True)
class HeadPlacement:
    """Placement of the head on the canvas: centre, tilt in degrees to the viewer's right, scale."""

    x: float
    y: float
    tilt: float
    zoom: float


def mix(first: Color, second: Color, amount: float) -> Color:
    """Linear interpolation of two colours, `amount` in 0..1."""
    return (
        first[0] + (second[0] - first[0]) * amount,
        first[1] + (second[1] - first[1]) * amount,
        first[2] + (second[2] - first[2]) * amount,
    )


def darker(color: Color, amount: float) -> Color:
    """Mix a colour with black, by `amount` in 0..1."""
    return mix(color, (0, 0, 0), amount)


def lighter(color: Color, amount: float) -> Color:
    """Mix a colour with white, by `amount` in 0..1."""
    return mix(color, (255, 255, 255), amount)


def span(u: float, low: float, high: float) -> float:
    """Linear interpolation from low to high, u in 0..1."""
    return low + (high - low) * u


def pick(u: float, choices: tuple[Color, ...]) -> Color:
    """Choose a colour by u in 0..1."""
    return choices[min(int(u * len(choices)), len(choices) - 1)]


def head_placement(look: Look) -> HeadPlacement:
    """Placement of the head in a view."""
    return HeadPlacement(
        64 + span(look.shift_x, -4, 4),
        67 + span(look.shift_y, -2, 2),
        span(look.tilt, -7, 7),
        span(look.zoom, 1.05, 1.15),
    )


def face_geometry(params: Portrait) -> Face:
    """Geometry and colours of a portrait's head."""
    identity, traits, look = params.identity, params.traits, params.look
    shape, u_shape = traits.face_shape.value, traits.face_shape.u
    build = {"thin": span(u_shape, 0.8, 0.84), "normal": 1.0, "chubby": span(u_shape, 1.16, 1.21)}[shape]
    width = 28.5 * span(identity.width, 0.94, 1.06) * build
    tall = span(identity.height, 0.9, 1.08) * {"thin": 1.04, "normal": 1.0, "chubby": 0.98}[shape]
    jaw = width * span(identity.jaw, 0.62, 1.08) * {"thin": 0.9, "normal": 1.0, "chubby": 1.12}[shape]
    yaw = {"left": -span(traits.pose.u, 0.36, 0.47), "front": span(traits.pose.u, -0.07, 0.07)}.get(
        traits.pose.value, span(traits.pose.u, 0.36, 0.47)
    )
    big = traits.eye_size.value == "big"
    u_eye, u_smile = traits.eye_size.u, traits.expression.u
    smile = {
        "neutral": span(u_smile, 0.2, 0.6),
        "smile": span(u_smile, 5.0, 6.6),
        "sad": -span(u_smile, 4.8, 6.2),
        "angry": -span(u_smile, 1.6, 2.3),
    }[traits.expression.value]
    skin = mix(*SKIN[traits.skin.value], traits.skin.u)
    rosy = (skin[0], skin[1] * span(identity.skin_hue, 0.93, 1.02), skin[2] * span(identity.skin_hue, 1.0, 0.88))
    skin = darker(rosy, span(identity.skin_light, 0.0, 0.08))
    if traits.age.value == "old":
        skin = mix(skin, (150, 140, 132), 0.08)
    return Face(
        width=width,
        top=-35 * tall,
        chin=35 * tall + span(identity.chin, -2, 2),
        jaw=jaw,
        chin_width=width * span(identity.chin, 0.22, 0.46),
        sin=math.sin(yaw),
        cos=math.cos(yaw),
        eye_x=width * 0.46 * span(identity.eye_gap, 0.88, 1.14),
        eye_y=-3.5 * tall + span(identity.eye_height, -2.5, 2.5),
        eye_w=span(u_eye, 8.4, 9.0) if big else span(u_eye, 6.3, 6.8),
        eye_h=span(u_eye, 7.4, 8.2) if big else span(u_eye, 3.7, 4.2),
        nose_y=span(identity.nose_length, 6, 11.5) * tall,
        nose_w=span(identity.nose_width, 3, 6.4),
        mouth_y=span(identity.mouth_height, 19.5, 21.5) * tall,
        mouth_w=span(identity.mouth_width, 9.6, 13.4) * (1.1 if traits.expression.value == "smile" else 1.0),
        smile=smile,
        opening=span(traits.mouth.u, 6.6, 8.4) if traits.mouth.value == "open" else 0.0,
        ear=span(identity.ear_size, 5, 9.5),
        skin=skin,
        shade=mix(darker(skin, 0.3), (150, 40, 30), 0.1),
        hair=mix(*HAIR[traits.hair_color.value], traits.hair_color.u),
        light=span(look.light, -1, 1),
        build=shape,
    )
