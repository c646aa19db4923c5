"""The few SVG elements everything is drawn with."""

Paint = tuple[float, float, float] | str
Spot = tuple[float, float, float]


def ink(paint: Paint) -> str:
    """A colour as SVG writes it; text (a gradient's address) stays as it is."""
    if isinstance(paint, str):
        return paint
    red, green, blue = (min(255, max(0, round(channel))) for channel in paint)
    return f"#{red:02x}{green:02x}{blue:02x}"


def path(*items: str | float) -> str:
    """Path data: letters as they are, numbers with one decimal."""
    return " ".join([item if isinstance(item, str) else f"{item:.1f}" for item in items]) + " "


def arc(*xy: float) -> str:
    """Path data of one bent line: from the first point, bent towards the second, to the third."""
    return path("M", *xy[:2], "Q", *xy[2:])


def polygon(*xy: float) -> str:
    """Path data of a closed polygon through the points x, y, x, y, ..."""
    return path("M", *xy[:2], "L", *xy[2:], "Z")


def fill(data: str, paint: Paint, opacity: float = 1.0) -> str:
    """A filled path."""
    return f'<path d="{data}" fill="{ink(paint)}"{_see_through("fill", opacity)}/>'


def line(data: str, paint: Paint, width: float, opacity: float = 1.0) -> str:
    """A stroked path with round ends."""
    return (
        f'<path d="{data}" fill="none" stroke="{ink(paint)}" stroke-width="{width:.1f}"'
        f' stroke-linecap="round" stroke-linejoin="round"{_see_through("stroke", opacity)}/>'
    )


def ellipse(x: float, y: float, rx: float, ry: float, paint: Paint, opacity: float = 1.0) -> str:
    """A filled ellipse."""
    look = f'fill="{ink(paint)}"{_see_through("fill", opacity)}'
    return f'<ellipse cx="{x:.1f}" cy="{y:.1f}" rx="{rx:.1f}" ry="{ry:.1f}" {look}/>'


def circle(x: float, y: float, radius: float, paint: Paint, opacity: float = 1.0) -> str:
    """A filled circle."""
    return ellipse(x, y, radius, radius, paint, opacity)


def ring(x: float, y: float, radius: float, paint: Paint, width: float) -> str:
    """The outline of a circle."""
    look = f'fill="none" stroke="{ink(paint)}" stroke-width="{width:.1f}"'
    return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius:.1f}" {look}/>'


def frame(x: float, y: float, rx: float, ry: float, corner: float, glass: Paint, opacity: float, rim: Paint) -> str:
    """A filled and outlined box with round corners around (x, y)."""
    box = f'x="{x - rx:.1f}" y="{y - ry:.1f}" width="{2 * rx:.1f}" height="{2 * ry:.1f}" rx="{corner:.1f}"'
    look = f'fill="{ink(glass)}"{_see_through("fill", opacity)} stroke="{ink(rim)}" stroke-width="2.6"'
    return f"<rect {box} {look}/>"


def dots(spots: list[Spot], paint: Paint, opacity: float = 1.0) -> str:
    """Many filled circles (x, y, radius) as one path: cheap where one element each would not be."""
    data = "".join(
        f"M{x - r:.1f} {y:.1f}a{r:.1f} {r:.1f} 0 1 1 {2 * r:.1f} 0a{r:.1f} {r:.1f} 0 1 1 {-2 * r:.1f} 0z"
        for x, y, r in spots
    )
    return fill(data, paint, opacity)


def _see_through(what: str, opacity: float) -> str:
    return "" if opacity == 1.0 else f' {what}-opacity="{opacity:.2f}"'
