"""Neck and clothes, glasses, earrings."""

from .geometry import CLOTHES, FRAMES, TIES, Color, Face, darker, lighter, mix, pick, span
from .svg import arc, fill, line, path, polygon, ring, rounded_box
from .traits import Portrait

SHIRT: Color = (250, 250, 252)
GLASS: Color = (16, 16, 20)


def body(params: Portrait, face: Face, x: float, y: float, zoom: float) -> str:
    """Neck and shoulders in a sweater or a suit, in canvas coordinates, with the head's centre at (x, y).

    face: geometry of the head. zoom: size of the head on the canvas relative to that geometry.
    """
    traits, look = params.traits, params.look
    cloth = mix(*CLOTHES[traits.clothes_color.value], traits.clothes_color.u)
    wide = span(look.shoulders, 44, 56) + 6 * (traits.face_shape.value == "chubby")
    neck = max(face.width * 0.52, 11.5) * zoom
    chin = y + face.chin * zoom
    under, collar = y + face.chin * 0.5, min(max(chin + 2.5, 104.0), 110.0)
    suit = traits.clothes.value == "suit"
    parts = [_shoulders(cloth, x, wide, neck, collar)]
    if suit:
        parts.append(_jacket(cloth, pick(look.tie, TIES), x, neck, collar))
    throat = path("M", x - neck, under, "L", x - neck, collar - 4, "Q", x, collar + 13, x + neck, collar - 4)
    shadow = path("M", x - neck, under, "L", x - neck, chin - 3, "Q", x, chin + 8, x + neck, chin - 3)
    close = path("L", x + neck, under, "Z")
    parts.append(fill(throat + close, mix(face.skin, face.shade, 0.35)) + fill(shadow + close, face.shade, 0.55))
    if suit:
        parts.append(_collar(pick(look.tie, TIES), x, neck, collar))
    else:
        rim = arc(x - neck - 1.5, collar - 5, x, collar + 13, x + neck + 1.5, collar - 5)
        parts.append(line(rim, _fold(cloth), 5.4) + line(rim, cloth, 2.6))
    return "".join(parts)


def glasses(params: Portrait, face: Face) -> str:
    """Transparent eyeglasses or dark sunglasses."""
    kind, look = params.traits.glasses.value, params.look
    if kind == "none":
        return ""
    dark = kind == "sunglasses"
    rim = (14, 14, 16) if dark else pick(look.glasses_color, FRAMES)
    wide, high, corner = min(face.eye_x - 1.6, 12.2), 9.2, span(look.glasses_shape, 3, 9)
    y, parts = face.eye_y, []
    for side in (-1, 1):
        x = face.x(side * face.eye_x, 16)
        lens = wide * (1 - 0.18 * max(0.0, side * face.sin))
        parts.append(rounded_box(x, y, lens, high, corner, GLASS if dark else "#fff", 1.0 if dark else 0.12, rim))
        if dark:
            parts.append(line(path("M", x - 5, y + 3, "l", 5, -7), (120, 130, 150), 2, 0.8))
        if not face.hides(side):
            temple = face.x(side * (face.width + 0.5), -2)
            parts.append(line(path("M", x + side * lens, y - 3, "L", temple, y - 2), rim, 2.2))
    left, right = face.x(-face.eye_x, 16) + wide, face.x(face.eye_x, 16) - wide
    bridge = arc(left - 1, y - 1, (left + right) / 2, y - 4, right + 1, y - 1)
    return "".join(parts) + line(bridge, rim, 2.4)


def earrings(params: Portrait, face: Face) -> str:
    """Golden ring under every visible ear."""
    if params.traits.earrings.value == "no":
        return ""
    gold = mix((255, 200, 40), (255, 222, 90), params.traits.earrings.u)
    y = face.eye_y + 11 + face.ear
    spots = [face.ear_x(side, 1.5) for side in (-1, 1) if not face.hides(side)]
    return "".join(ring(x, y, 4.6, (122, 82, 6), 3.8) + ring(x, y, 4.6, gold, 2.4) for x in spots)


def _fold(cloth: Color) -> Color:
    return darker(cloth, 0.3) if sum(cloth) > 180 else lighter(cloth, 0.16)


def _shoulders(cloth: Color, x: float, wide: float, neck: float, collar: float) -> str:
    slope = wide * 0.6
    left = path("M", x - wide, 130, "C", x - wide, collar + 8, x - slope, collar + 5, x - neck, collar - 3)
    right = path("L", x + neck, collar - 3, "C", x + slope, collar + 5, x + wide, collar + 8, x + wide, 130, "Z")
    sleeves = (path("M", x + s * wide * 0.62, 118, "L", x + s * wide * 0.66, 130) for s in (-1, 1))
    return fill(left + right, cloth) + "".join(line(sleeve, _fold(cloth), 1.6) for sleeve in sleeves)


def _jacket(cloth: Color, tie: Color, x: float, neck: float, collar: float) -> str:
    lapel = darker(cloth, 0.34) if sum(cloth) > 180 else lighter(cloth, 0.2)
    front = polygon(x - neck - 1, collar - 4, x, 134, x + neck + 1, collar - 4)
    strip = polygon(x - 3.6, collar + 5, x + 3.6, collar + 5, x + 5, 130, x - 5, 130)
    parts = [fill(front, SHIRT), fill(strip, tie)]
    for side in (-1, 1):
        edge = path("M", x + side * (neck - 1), collar - 7, "L", x + side * (neck + 8), collar - 1)
        edge += path("L", x + side * (neck + 9), 117, "L", x + side * 6, 130, "L", x + side * 4.5, 130)
        parts.append(fill(edge + path("L", x + side * (neck - 2), collar + 2, "Z"), lapel))
    return "".join(parts)


def _collar(tie: Color, x: float, neck: float, collar: float) -> str:
    parts = []
    for side in (-1, 1):
        flap = polygon(x + side * (neck + 1), collar - 8, x, collar + 6, x + side * 8, collar + 11)
        parts.append(fill(flap, SHIRT) + line(flap, (196, 198, 206), 0.8))
    knot = polygon(x - 4, collar + 5, x + 4, collar + 5, x + 2.6, collar + 11, x - 2.6, collar + 11)
    return "".join(parts) + fill(knot, darker(tie, 0.25))
