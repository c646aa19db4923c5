"""Parts of the face: skull and ears, wrinkles and other marks, nose, mouth, eyes and brows."""

from .geometry import IRIS, Color, Face, darker, lighter, mix, pick, span
from .hair import head_outline
from .svg import arc, circle, ellipse, fill, line, path
from .traits import Portrait

SIDES = (-1, 1)
FRECKLES = ((0, 0), (3, 2.5), (4.5, -1), (7.5, 1.5), (1, 4.5))
BROWS = {"neutral": (0, 0, 2.2), "smile": (-0.5, 0, 4.4), "sad": (-4.8, 3.2, 1.0), "angry": (5.2, -3.2, 0.4)}


def skull(face: Face) -> str:
    """Head, ears and double chin; a turned head hides the far ear and shows the near one in front."""
    parts, y = [], face.eye_y + 6
    for side in SIDES:
        if not face.hides(side):
            x = face.ear_x(side, 0.6)
            parts.append(ellipse(x, y, face.ear * 0.62, face.ear, mix(face.skin, face.shade, 0.3)))
            parts.append(ellipse(x, y, face.ear * 0.3, face.ear * 0.6, mix(face.skin, face.shade, 0.75)))
    if face.build == "chubby":
        parts.append(ellipse(face.sin * 4, face.chin - 3, face.width * 0.74, 9.0, mix(face.skin, face.shade, 0.5)))
    head = fill(head_outline(face), "url(#s)")
    return "".join([head, *parts] if face.turned else [*parts, head])


def marks(params: Portrait, face: Face) -> str:
    """Cheeks, wrinkles, lines of the expression, freckles, mole, and the highlight of a bald head."""
    identity, traits = params.identity, params.traits
    crease = mix(face.shade, (28, 8, 6), 0.5)
    expression = traits.expression.value
    old = traits.age.value == "old"
    parts = []
    for side in SIDES:
        parts.append(_cheek(face, side))
        if expression == "smile":
            x, y = [face.x(side * (face.mouth_w + out), 12) for out in (1.5, 5, 3)], face.mouth_y
            parts.append(line(arc(x[0], y - 8, x[1], y - 4, x[2], y + 1), crease, 1.3, 0.7))
        if old:
            parts.append(_wrinkles(face, side, crease))
        if identity.freckles > 0.7:
            x = [face.x(side * (9 + across), 14) for across, _ in FRECKLES]
            y = [face.eye_y + 10 + down for _, down in FRECKLES]
            parts.extend(circle(at_x, at_y, 0.9, crease, 0.7) for at_x, at_y in zip(x, y, strict=True))
    if old:
        for height, reach in ((0.42, 0.52), (0.54, 0.62), (0.66, 0.5)):
            y = face.top * height + face.eye_y * 0.3
            left, right = face.x(-face.width * reach, 12), face.x(face.width * reach, 12)
            parts.append(line(arc(left, y + 1, (left + right) / 2, y - 3, right, y + 1), crease, 1.9, 0.9))
    if expression == "angry":
        for side in SIDES:
            frown = path("M", face.x(side * 2, 16), face.eye_y - 11, "L", face.x(side * 1.6, 16), face.eye_y - 3)
            parts.append(line(frown, crease, 1.8, 0.9))
    if identity.mole > 0.6:
        spot = face.x((1 if identity.mole > 0.8 else -1) * span(identity.mole_x, 7, 16), 12)
        parts.append(circle(spot, span(identity.mole_y, 12, 27), 1.7, (52, 28, 20)))
    if traits.hair_style.value in ("bald", "receding"):
        parts.append(ellipse(face.light * 9 + face.sin * 6, face.top * 0.72, 8, 4, (255, 255, 255), 0.3))
    return "".join(parts)


def _cheek(face: Face, side: int) -> str:
    x, y, wide = face.x(side * face.width * 0.58, face.width * 0.4), face.eye_y + 14, side * face.width
    if face.build == "thin":
        edge, low, jaw = face.x(wide * 0.96, 2), face.x(wide * 0.42, 8), face.x(wide * 0.9, 0)
        hollow = arc(edge, y - 5, x, y + 1, low, y + 13) + path("Q", jaw, y + 12, edge, y - 5, "Z")
        return fill(hollow, face.shade, 0.55)
    size = 1.35 if face.build == "chubby" else 1.0
    blush = ellipse(x, y, 6.4 * size, 4.4 * size, mix(face.skin, (236, 70, 70), 0.34), 0.55)
    if face.build == "normal":
        return blush
    fold = arc(face.x(wide * 0.86, 4), y + 2, x + side * 4, y + 11, face.x(wide * 0.5, 8), y + 11)
    return blush + line(fold, face.shade, 1.3, 0.6)


def _wrinkles(face: Face, side: int, crease: Color) -> str:
    eye, below = face.x(side * face.eye_x, 14), face.eye_y + face.eye_h
    corner, y = face.x(side * (face.eye_x + face.eye_w + 1.2), 8), face.eye_y
    bag = arc(eye - 5.5, below + 2.6, eye, below + 6.6, eye + 5.5, below + 2.6)
    feet = path("M", corner, y, "l", side * 5, -3, "M", corner, y + 2, "l", side * 5.4, 0.4)
    feet += path("M", corner, y + 4, "l", side * 4.6, 3.4)
    fold, end = face.x(side * (face.nose_w + 3.5), 14), face.x(side * (face.mouth_w + 3.5), 12)
    laugh = arc(fold, face.nose_y - 2, end + side * 1.5, face.nose_y + 3, end, face.mouth_y + 2)
    return line(bag, crease, 1.9, 0.9) + line(feet, crease, 1.5, 0.9) + line(laugh, crease, 2.0, 0.9)


def nose(face: Face) -> str:
    """Line along the darker side of the nose, and a light tip."""
    x, y, w = face.x(0, 20), face.nose_y, face.nose_w
    side = 1 if face.sin > 0.3 or (not face.turned and face.light < 0) else -1
    bridge = arc(face.x(0, 14) + side * 2.4, face.eye_y + 3, x + side * 1.5, y - 4, x + side * w, y - 0.5)
    bridge += path("Q", x + side * w, y + 2.6, x, y + 2)
    bridge += path("Q", x - side * w * 0.6, y + 2.6, x - side * w * 0.9, y)
    tip = ellipse(x - side * 0.8, y - 2.2, w * 0.5, 2.2, lighter(face.skin, 0.35), 0.55)
    return line(bridge, darker(face.shade, 0.15), 1.7, 0.9) + tip


def mouth(params: Portrait, face: Face) -> str:
    """Lips, bent by the expression; an open mouth with teeth and tongue."""
    lips = params.traits.lips
    red, own = mix((206, 8, 44), (224, 22, 60), lips.u), span(lips.u, 0.36, 0.46)
    lip = red if lips.value == "red" else mix(darker(face.skin, 0.3), (190, 70, 72), own)
    upper, lower = (3.1, 4.2) if lips.value == "red" else (1.5, 2.3)
    x, w, corner = face.mouth
    y, gape, bend = face.mouth_y, face.opening, face.smile * 1.5
    rise, drop = y + bend - gape * 0.35, y + bend + gape * 1.7
    bow, left, right = (corner + rise) / 2 - 1.6 * upper, x - w, x + w
    outer = arc(left - 0.8, corner, x - w * 0.55, bow, x, rise * 0.55 + corner * 0.45 - upper)
    outer += path("Q", x + w * 0.55, bow, right + 0.8, corner, "Q", x, drop + 2 * lower, left - 0.8, corner, "Z")
    inner = arc(left + 0.8, corner, x, rise, right - 0.8, corner)
    dark = (74, 12, 20)
    if not gape:
        return fill(outer, lip) + line(inner, mix(darker(lip, 0.5), dark, 0.6), 1.9)
    hole = inner + path("Q", x, drop, left + 0.8, corner, "Z")
    edge = corner * 0.72 + rise * 0.12 + y * 0.16
    teeth = arc(left + 3, edge, x, rise, right - 3, edge) + path("Q", x, rise * 0.58 + drop * 0.42, left + 3, edge, "Z")
    tongue = ellipse(x, (corner + drop) / 2 - 1.4, w * 0.42, 1.5, (206, 84, 92))
    return fill(outer, lip) + fill(hole, dark) + tongue + fill(teeth, (252, 250, 246))


def eyes(params: Portrait, face: Face) -> str:
    """Both eyes, open or closed; empty behind sunglasses."""
    if params.traits.glasses.value == "sunglasses":
        return ""
    return "".join(_eye(params, face, side) for side in SIDES)


def _eye(params: Portrait, face: Face, side: int) -> str:
    identity, traits = params.identity, params.traits
    far = 1 - 0.22 * max(0.0, side * face.sin)
    x, y = face.eye(side)
    w, h = face.eye_w * far, face.eye_h
    slant = span(identity.eye_slant, -1.3, 1.6) * side
    lash = mix((26, 16, 14), face.hair, 0.1)
    if traits.eyes.value == "closed":
        lid = arc(x - w, y + slant * 0.5, x, y + 7.6, x + w, y - slant * 0.5)
        lashes = "".join(path("M", x + k * w * 0.55, y + 3.6 - abs(k), "l", k * 1.6, 3) for k in (-1, 0, 1))
        return ellipse(x, y, w, 4.8, lighter(face.skin, 0.16)) + line(lid, lash, 2.5) + line(lashes, lash, 1.3)
    low, half = h * (0.8 if traits.expression.value == "smile" else 1.0), w * 0.55
    lid = arc(x - w, y + slant, x - half, y - h * 1.25, x, y - h)
    lid += path("Q", x + half, y - h * 1.25, x + w, y - slant)
    lower = path("Q", x + w * 0.5, y + low * 1.15, x, y + low, "Q", x - w * 0.5, y + low * 1.15, x - w, y + slant, "Z")
    at, radius = x + face.sin * 3, min(h * 0.86, 5.4)
    return (
        fill(lid + lower, (254, 254, 254))
        + circle(at, y - 0.3, radius, pick(identity.iris, IRIS))
        + circle(at, y - 0.3, radius * 0.5, (12, 10, 12))
        + circle(at + 1.3, y - 1.8, radius * 0.26, (255, 255, 255))
        + line(lid, lash, 2.1)
    )


def brows(params: Portrait, face: Face) -> str:
    """Both brows, tilted by the expression, and visible above sunglasses."""
    traits = params.traits
    inner, outer, arch = BROWS[traits.expression.value]
    y, half = face.eye_y - face.eye_h - 5.6, 8.0
    if traits.glasses.value == "sunglasses":
        y = min(y, face.eye_y - 12)
    peak = y - arch * span(params.identity.brow_arch, 0.5, 1.5) + (inner + outer) / 2
    thick = span(traits.brows.u, 4.8, 5.6) if traits.brows.value == "bushy" else span(traits.brows.u, 1.8, 2.2)
    color = mix(darker(face.hair, 0.42), face.shade, 0.12)
    middles = ((side, face.x(side * face.eye_x, 15)) for side in SIDES)
    strokes = (arc(x - s * half, y + inner, x + s, peak, x + s * half, y + outer) for s, x in middles)
    return "".join(line(stroke, color, thick) for stroke in strokes)
