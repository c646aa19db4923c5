"""SVG elements that portraits are drawn with. Lengths are in the units of the drawing, opacity from 0 to 1.

Paint is a colour (red, green, blue), 0 to 255, or the text of a reference to a gradient.
"""

Paint = tuple[float, float, float] | str
Spot = tuple[float, float, float]


def color(paint: Paint) -> str:
    """Colour in SVG's notation; text (the reference of a gradient) is returned unchanged."""
    if isinstance(paint, str):
        return paint
    red, green, blue = (min(255, max(0, round(channel))) for channel in paint)
    return f"#{red:02x}{green:02x}{blue:02x}"


def path(*items: str | float) -> str:
    """Path data of commands and numbers, the latter with one decimal."""
    return " ".join([item if isinstance(item, str) else f"{item:.1f}" for item in items]) + " "


def arc(*xy: float) -> str:
    """Path data of a quadratic curve from the first point to the third, with the second as control point."""
    return path("M", *xy[:2], "Q", *xy[2:])


def polygon(*xy: float) -> str:
    """Path data of a closed polygon through the points x, y, x, y, ..."""
    return path("M", *xy[:2], "L", *xy[2:], "Z")


def fill(data: str, paint: Paint, opacity: float = 1.0) -> str:
    """Filled path. data: as `path` returns it."""
    return f'<path d="{data}" fill="{color(paint)}"{_opacity("fill", opacity)}/>'


def line(data: str, paint: Paint, width: float, opacity: float = 1.0) -> str:
    """Stroked path with round ends. data: as `path` returns it. width: of the line."""
    return (
        f'<path d="{data}" fill="none" stroke="{color(paint)}" stroke-width="{width:.1f}"'
        f' stroke-linecap="round" stroke-linejoin="round"{_opacity("stroke", opacity)}/>'
    )


def ellipse(x: float, y: float, rx: float, ry: float, paint: Paint, opacity: float = 1.0) -> str:
    """Filled ellipse. x, y: centre. rx, ry: radii."""
    look = f'fill="{color(paint)}"{_opacity("fill", opacity)}'
    return f'<ellipse cx="{x:.1f}" cy="{y:.1f}" rx="{rx:.1f}" ry="{ry:.1f}" {look}/>'


def circle(x: float, y: float, radius: float, paint: Paint, opacity: float = 1.0) -> str:
    """Filled circle. x, y: centre."""
    return ellipse(x, y, radius, radius, paint, opacity)


def ring(x: float, y: float, radius: float, paint: Paint, width: float) -> str:
    """Outline of a circle. x, y: centre. radius: to the middle of the line. width: of the line."""
    look = f'fill="none" stroke="{color(paint)}" stroke-width="{width:.1f}"'
    return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius:.1f}" {look}/>'


def rounded_box(
    x: float, y: float, rx: float, ry: float, corner: float, glass: Paint, opacity: float, rim: Paint
) -> str:
    """Filled and outlined box with round corners. x, y: centre. rx, ry: half its width and height.

    corner: radius of the corners. glass, opacity: of the filling. rim: paint of the outline, 2.6 wide.
    """
    box = f'x="{x - rx:.1f}" y="{y - ry:.1f}" width="{2 * rx:.1f}" height="{2 * ry:.1f}" rx="{corner:.1f}"'
    look = f'fill="{color(glass)}"{_opacity("fill", opacity)} stroke="{color(rim)}" stroke-width="2.6"'
    return f"<rect {box} {look}/>"


def dots(spots: list[Spot], paint: Paint, opacity: float = 1.0) -> str:
    """Filled circles (x, y, radius) as one path, which renders faster than one element per circle."""
    data = "".join(
        f"M{x - r:.1f} {y:.1f}a{r:.1f} {r:.1f} 0 1 1 {2 * r:.1f} 0a{r:.1f} {r:.1f} 0 1 1 {-2 * r:.1f} 0z"
        for x, y, r in spots
    )
    return fill(data, paint, opacity)


def _opacity(prefix: str, opacity: float) -> str:
    return "" if opacity == 1.0 else f' {prefix}-opacity="{opacity:.2f}"'
