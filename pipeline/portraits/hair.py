"""Hair of the head and beard, and the outline of the head that both follow."""

import math

from .geometry import Face, darker, lighter, mix, span
from .svg import Spot, dots, fill, line, path
from .traits import Portrait


def head_outline(face: Face) -> str:
    """Path of skull, cheeks and chin; the chin of a turned head is shifted to the side it faces."""
    w, jaw, q, top, chin = face.width, face.jaw, face.chin_width, face.top, face.chin
    k, low = face.sin * 7, chin - 1.5
    return (
        path("M", 0, top, "C", w * 0.6, top, w, top * 0.62, w, -4)
        + path("C", w, 12, jaw + k * 0.6, chin - 10, q + k, low, "Q", k, chin + 1.5, k - q, low)
        + path("C", k * 0.6 - jaw, chin - 10, -w, 12, -w, -4, "C", -w, top * 0.62, -w * 0.6, top, 0, top, "Z")
    )


def back(params: Portrait, face: Face) -> str:
    """Hair behind head and body."""
    style, look = params.traits.hair_style.value, params.look
    w, top = face.width, face.top
    deep = darker(face.hair, 0.38)
    if style == "long":
        low = span(look.hair_length, 52, 66)
        side = w + span(look.hair_volume, 6, 10)
        return fill(
            path("M", -side, low, "C", -side - 3, 10, -side, top - 12, 0, top - 8)
            + path("C", side, top - 12, side + 3, 10, side, low, "Z"),
            deep,
        )
    if style == "curly":
        return dots([(0, top * 0.2, w + 7)], deep) + dots(_ring(params, face, w + 6, 8.2, 22, 205), deep)
    if style == "bowl":
        return fill(path("M", -w - 4, 14, "L", -w - 4, -8, "L", w + 4, -8, "L", w + 4, 14, "Z"), deep)
    return ""


def front(params: Portrait, face: Face) -> str:
    """Hair in front of the head."""
    style = params.traits.hair_style.value
    draw = {
        "receding": _receding,
        "short": _short,
        "bowl": _bowl,
        "long": _long,
        "curly": _curly,
        "mohawk": _mohawk,
    }.get(style)
    return draw(params, face) if draw else ""


def beard(params: Portrait, face: Face) -> str:
    """Moustache or full beard, to be drawn below the mouth."""
    kind, u = params.traits.facial_hair.value, params.traits.facial_hair.u
    if kind == "none":
        return ""
    color, x, y = darker(face.hair, 0.2), face.x(0, 14), (face.nose_y + face.mouth_y) / 2 + 1
    reach = face.mouth_w + span(u, 1, 3)
    whiskers = path("M", x, y - 2.6, "C", x + reach * 0.5, y - 5.4, x + reach, y, x + reach + 1.5, y + 4.5)
    whiskers += path("Q", x + reach * 0.5, y + 4.6, x, y + 2.4, "Q", x - reach * 0.5, y + 4.6, x - reach - 1.5, y + 4.5)
    whiskers += path("C", x - reach, y, x - reach * 0.5, y - 5.4, x, y - 2.6, "Z")
    if kind == "moustache":
        return fill(whiskers, color)
    w, jaw, q, chin = face.width, face.jaw, face.chin_width, face.chin
    k, drop = face.sin * 7, chin + span(u, 4, 9)
    start, lip = face.eye_y + 7, face.mouth_y - 6
    data = path("M", -w - 0.6, start, "C", -w - 0.8, 13, k * 0.6 - jaw - 1.5, chin - 9, k - q - 2.5, chin + 2)
    data += path("Q", k, drop + 4, k + q + 2.5, chin + 2)
    data += path("C", k * 0.6 + jaw + 1.5, chin - 9, w + 0.8, 13, w + 0.6, start)
    data += path("C", w * 0.86, start + 14, x + w * 0.62, lip + 1, x + w * 0.36, lip - 1)
    data += path("Q", x, lip + 2, x - w * 0.36, lip - 1)
    data += path("C", x - w * 0.62, lip + 1, -w * 0.86, start + 14, -w - 0.6, start, "Z")
    strands = "".join(path("M", k + d * q, chin - 4, "l", d * 0.6, 5.5) for d in (-1.1, -0.4, 0.4, 1.1))
    return fill(data, color) + fill(whiskers, darker(color, 0.12)) + line(strands, darker(color, 0.35), 1.2, 0.8)


def _hairline(params: Portrait, face: Face, inset: float, low: float) -> str:
    """Path from the right temple to the left: a jagged fringe, or a free forehead below the parting."""
    w, shift = face.width - inset, face.sin * 5
    if params.traits.bangs.value == "yes":
        hem = face.eye_y - face.eye_h - 5.2
        points = []
        for i in range(9):
            across = w * (0.94 - 1.88 * i / 8)
            points += ["L", across + shift * 0.5, hem + (3.2 if i % 2 else 0) - 2.5 * (1 - abs(across) / w)]
        return path("L", w, (low + hem) / 2, *points, "L", -w, (low + hem) / 2, "L", -w, low)
    part = span(params.look.parting, -0.55, 0.55) * w + shift
    high = face.top * 0.8
    right = path("C", w, high * 0.55, w * 0.55 + part * 0.3, high * 0.95, part, high)
    return right + path("C", -w * 0.55 + part * 0.3, high * 0.95, -w, high * 0.55, -w, low)


def _strands(params: Portrait, face: Face, rise: float) -> str:
    part = span(params.look.parting, -0.55, 0.55) * face.width + face.sin * 5
    top, w = face.top - rise, face.width
    shine = path("M", -w * 0.5 + part * 0.3, top * 0.82, "Q", part * 0.5, top * 1.0, w * 0.5 + part * 0.3, top * 0.84)
    flow = path("M", part, top * 0.92, "Q", part - w * 0.5, top * 0.84, -w * 0.82, top * 0.4)
    flow += path("M", part, top * 0.92, "Q", part + w * 0.5, top * 0.84, w * 0.82, top * 0.4)
    return line(flow, darker(face.hair, 0.45), 1.2, 0.55) + line(shine, lighter(face.hair, 0.45), 2.6, 0.4)


def _short(params: Portrait, face: Face) -> str:
    w, rise = face.width + 2.4, span(params.look.hair_volume, 4, 8)
    top, low = face.top - rise, face.eye_y + 1
    cap = path("M", -w + 1, low, "C", -w - 3, top * 0.7, -w * 0.66, top, 0, top)
    cap += path("C", w * 0.66, top, w + 3, top * 0.7, w - 1, low)
    cap += path("L", face.width - 3, low) + _hairline(params, face, 3, low) + "Z"
    return fill(cap, "url(#h)") + _strands(params, face, rise)


def _bowl(params: Portrait, face: Face) -> str:
    w, rise = face.width + 5.5, span(params.look.hair_volume, 6, 9)
    top, low, hem = face.top - rise, face.eye_y + 10, face.eye_y - face.eye_h - 5.5
    inner = face.width - 5
    cap = path("M", -w, low, "C", -w - 3, top * 1.0, -w * 0.6, top, 0, top, "C", w * 0.6, top, w + 3, top, w, low)
    cap += path("L", inner, low, "L", inner - 1, hem + 1, "Q", face.sin * 5, hem + 2.5, -inner + 1, hem + 1)
    cap += path("L", -inner, low, "Z")
    lines = "".join(path("M", d * inner, hem, "L", d * inner * 0.75, hem - 13) for d in (-0.75, -0.4, 0, 0.4, 0.75))
    shine = path("M", -w * 0.6, top * 0.72, "Q", 0, top * 0.95, w * 0.6, top * 0.72)
    return (
        fill(cap, "url(#h)")
        + line(lines, darker(face.hair, 0.45), 1.1, 0.5)
        + line(shine, lighter(face.hair, 0.45), 3, 0.4)
    )


def _long(params: Portrait, face: Face) -> str:
    look, w = params.look, face.width
    rise, out = span(look.hair_volume, 5, 9), w + span(look.hair_volume, 5, 9)
    top, low = face.top - rise, span(look.hair_length, 46, 60)
    cap = path("M", -out, low, "C", -out - 4, 8, -out, top, 0, top, "C", out, top, out + 4, 8, out, low)
    cap += path("Q", out - 6, low + 2, out - 11, low - 3, "C", w - 1, 26, w + 1, 12, w - 4, -6)
    cap += _hairline(params, face, 4, -6)
    cap += path("C", -w - 1, 12, -w + 1, 26, -out + 11, low - 3, "Q", -out + 6, low + 2, -out, low, "Z")
    lock = (path("M", s * (w + 1), 0, "C", s * (w + 3), 20, s * (out - 3), 30, s * (out - 4), low - 4) for s in (-1, 1))
    locks = "".join(lock)
    return fill(cap, "url(#h)") + line(locks, darker(face.hair, 0.45), 1.3, 0.55) + _strands(params, face, rise)


def _ring(params: Portrait, face: Face, reach: float, size: float, count: int, sweep: float) -> list[Spot]:
    """Circles of curls along an arc over the head, of slightly varying sizes."""
    phase, center = params.look.parting * 6, face.top * 0.2
    spots = []
    for i in range(count):
        angle = math.radians(-90 + sweep * (i / (count - 1) - 0.5) * 1.15)
        swing = math.sin(phase + 2.4 * i)
        far = reach + swing * 1.4
        spots.append((far * math.cos(angle), center + far * math.sin(angle) * 1.02, size + swing * 0.8))
    return spots


def _curly(params: Portrait, face: Face) -> str:
    w, size = face.width, span(params.look.hair_volume, 6.2, 7.6)
    spots = _ring(params, face, w + 4, size, 17, 205) + _ring(params, face, w - 5, size * 0.94, 10, 118)
    spots += [(x * w * 0.72, face.top * 0.86 - 3 * (1 - abs(x)), size * 0.95) for x in (-0.7, -0.35, 0, 0.35, 0.7)]
    if params.traits.bangs.value == "yes":
        hem = face.eye_y - face.eye_h - 10.5
        positions = (-1, -0.67, -0.33, 0, 0.33, 0.67, 1)
        spots += [(x * w * 0.84 + face.sin * 4, hem - 1.5 * (1 - abs(x)), 5.8) for x in positions]
    toward = face.light * 1.8
    lights = [(x + toward, y - 1.6, r * 0.62) for x, y, r in spots]
    sparks = [(x + toward * 1.5, y - 2.6, r * 0.26) for x, y, r in spots]
    return (
        dots([(x, y, r + 0.6) for x, y, r in spots], darker(face.hair, 0.24))
        + dots(lights, lighter(face.hair, 0.06))
        + dots(sparks, lighter(face.hair, 0.34))
    )


def _receding(params: Portrait, face: Face) -> str:
    w, out = face.width, face.width + span(params.look.hair_volume, 3, 5.5)
    parts = []
    for s in (-1, 1):
        low, high = face.eye_y + 4, face.top * 0.66
        tuft = path("M", s * (w - 4), low, "C", s * (w - 4), -8, s * (w - 7), high * 0.8, s * w * 0.6, high)
        tuft += path("C", s * (w + 1), high * 1.12, s * (out + 3), high * 0.5, s * (out + 1), low - 6)
        tuft += path("Q", s * (out + 1), low + 3, s * (w + 0.5), low + 2, "Z")
        comb = path("M", s * (w - 1), low - 4, "Q", s * (w + 1), high * 0.5, s * (w - 6), high * 0.82)
        parts.append(fill(tuft, face.hair) + line(comb, darker(face.hair, 0.4), 1.2, 0.6))
    thin = "".join(path("M", d * w, face.top * 0.86 + abs(d) * 6, "q", 4, -4.5, 9, -2) for d in (-0.45, -0.2, 0.05))
    return "".join(parts) + line(thin, darker(face.hair, 0.15), 1.3, 0.85)


def _mohawk(params: Portrait, face: Face) -> str:
    w, top, x = face.width, face.top, face.sin * 5
    low = face.eye_y - 2
    stubble = path("M", -w, low, "C", -w, top * 0.62, -w * 0.6, top, 0, top, "C", w * 0.6, top, w, top * 0.62, w, low)
    stubble += path("Q", w - 3, top * 0.5, w * 0.35, top * 0.74, "L", -w * 0.35, top * 0.74)
    stubble += path("Q", -w + 3, top * 0.5, -w, low, "Z")
    half, tall = span(params.look.hair_volume, 9, 12), top - span(params.look.hair_length, 14, 18)
    crest = path("M", x - half, top * 0.66, "L", x - half - 2.5, tall + 5, "L", x - half * 0.5, tall + 4)
    crest += path("L", x - half * 0.3, tall - 1, "L", x + half * 0.1, tall + 3, "L", x + half * 0.5, tall - 1.5)
    crest += path("L", x + half * 0.62, tall + 4, "L", x + half + 2.5, tall + 4, "L", x + half, top * 0.66)
    crest += path("L", x + half * 0.4, top * 0.6, "L", x, top * 0.68, "L", x - half * 0.4, top * 0.6, "Z")
    strands = (path("M", x + d * half * 0.4, tall + 8, "L", x + d * half * 0.3, top * 0.72) for d in (-1, 1))
    spikes = "".join(strands)
    return (
        fill(stubble, mix(face.hair, face.skin, 0.35), 0.4)
        + fill(crest, "url(#h)")
        + line(spikes, darker(face.hair, 0.45), 1.2, 0.6)
    )
