"""Parameters of portraits: attributes, identity and view; random sampling; counterfactuals."""

import difflib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace

import numpy as np

FREQUENCIES: dict[str, dict[str, float]] = {  # attribute -> value -> probability
    "glasses": {"none": 0.52, "eyeglasses": 0.28, "sunglasses": 0.2},
    "expression": {"neutral": 0.22, "smile": 0.3, "sad": 0.24, "angry": 0.24},
    "skin": {"pale": 0.25, "light": 0.25, "tanned": 0.25, "dark": 0.25},
    "eye_size": {"normal": 0.5, "big": 0.5},
    "face_shape": {"thin": 0.3, "normal": 0.35, "chubby": 0.35},
    "clothes": {"sweater": 0.55, "suit": 0.45},
    "clothes_color": {"black": 0.17, "white": 0.16, "red": 0.17, "blue": 0.17, "green": 0.17, "yellow": 0.16},
    "hair_color": {"black": 0.2, "brown": 0.2, "blond": 0.2, "red": 0.2, "grey": 0.2},
    "hair_style": {
        "bald": 0.13,
        "receding": 0.12,
        "short": 0.17,
        "bowl": 0.12,
        "long": 0.18,
        "curly": 0.16,
        "mohawk": 0.12,
    },
    "bangs": {"no": 0.5, "yes": 0.5},
    "facial_hair": {"none": 0.54, "moustache": 0.2, "beard": 0.26},
    "lips": {"natural": 0.6, "red": 0.4},
    "age": {"young": 0.55, "old": 0.45},
    "mouth": {"closed": 0.55, "open": 0.45},
    "eyes": {"open": 0.75, "closed": 0.25},
    "brows": {"thin": 0.5, "bushy": 0.5},
    "background": {"blue": 0.2, "green": 0.2, "pink": 0.2, "orange": 0.2, "grey": 0.2},
    "pose": {"left": 0.27, "front": 0.46, "right": 0.27},
    "earrings": {"no": 0.7, "yes": 0.3},
}
ATTRIBUTES: dict[str, tuple[str, ...]] = {name: tuple(values) for name, values in FREQUENCIES.items()}
HAIR_WITH_BANGS = ("short", "long", "curly")
STYLES = ("painted", "inked")


@dataclass(frozen=True, slots=True)
class Trait:
    """Value of one attribute, and the position u in the range of looks that it allows (0..1)."""

    value: str
    u: float


@dataclass(frozen=True, slots=True)
class Traits:
    """All attributes that captions can name; the fields are the keys of ATTRIBUTES."""

    glasses: Trait
    expression: Trait
    skin: Trait
    eye_size: Trait
    face_shape: Trait
    clothes: Trait
    clothes_color: Trait
    hair_color: Trait
    hair_style: Trait
    bangs: Trait
    facial_hair: Trait
    lips: Trait
    age: Trait
    mouth: Trait
    eyes: Trait
    brows: Trait
    background: Trait
    pose: Trait
    earrings: Trait


@dataclass(frozen=True, slots=True)
class Identity:
    """Identity of the person: facial geometry and marks, each 0..1; kept when all else is sampled again."""

    width: float
    height: float
    jaw: float
    chin: float
    eye_gap: float
    eye_height: float
    eye_slant: float
    iris: float
    brow_arch: float
    nose_length: float
    nose_width: float
    mouth_width: float
    mouth_height: float
    ear_size: float
    skin_hue: float
    skin_light: float
    mole: float
    mole_x: float
    mole_y: float
    freckles: float


@dataclass(frozen=True, slots=True)
class Look:
    """View of one image: framing, light and details that captions do not name, each 0..1."""

    tilt: float
    shift_x: float
    shift_y: float
    zoom: float
    light: float
    light_strength: float
    hair_length: float
    hair_volume: float
    parting: float
    glasses_shape: float
    glasses_color: float
    tie: float
    shoulders: float


@dataclass(frozen=True, slots=True)
class Portrait:
    """Parameters of a portrait: the person's identity, the attributes, and the view.

    style: of the drawing, one of STYLES; all networks are trained on painted portraits.
    """

    identity: Identity
    traits: Traits
    look: Look
    style: str = STYLES[0]


def sample(row_id: int) -> Portrait:
    """Sample the portrait of a row id; the same id always gives the same portrait."""
    values, positions, identity, look = (
        np.random.default_rng(np.random.SeedSequence(row_id, spawn_key=(stream,))) for stream in range(4)
    )
    traits = {}
    for name, draw, u in zip(
        FREQUENCIES, values.random(len(FREQUENCIES)), positions.random(len(FREQUENCIES)), strict=True
    ):
        bounds = np.cumsum(list(FREQUENCIES[name].values()))
        index = min(int(np.searchsorted(bounds, draw, side="right")), len(bounds) - 1)
        traits[name] = Trait(ATTRIBUTES[name][index], float(u))
    return Portrait(
        Identity(*identity.random(len(fields(Identity))).tolist()),
        Traits(**traits),
        Look(*look.random(len(fields(Look))).tolist()),
    )


def attributes(params: Portrait) -> dict[str, str]:
    """True value of every attribute, visible or not."""
    return {name: getattr(params.traits, name).value for name in ATTRIBUTES}


def visible(params: Portrait) -> dict[str, bool]:
    """Attribute -> whether it is visible: sunglasses and closed lids hide the eyes, baldness colour and bangs."""
    traits = params.traits
    sunglasses = traits.glasses.value == "sunglasses"
    hidden = {
        "eyes": sunglasses,
        "eye_size": sunglasses or traits.eyes.value == "closed",
        "hair_color": traits.hair_style.value == "bald",
        "bangs": traits.hair_style.value not in HAIR_WITH_BANGS,
    }
    return {name: not hidden.get(name, False) for name in ATTRIBUTES}


def counterfactual(params: Portrait, values: Mapping[str, str]) -> Portrait:
    """The same portrait with other values of some attributes. Raises ValueError for unknown attributes or values."""
    traits = {}
    for attribute, value in values.items():
        _check("attribute", attribute, tuple(ATTRIBUTES))
        _check(f"value of {attribute}", value, ATTRIBUTES[attribute])
        traits[attribute] = replace(getattr(params.traits, attribute), value=value)
    return replace(params, traits=replace(params.traits, **traits))


def with_nuisance(params: Portrait, row_id: int) -> Portrait:
    """The same person with all but the identity taken from the sample of another row id."""
    return replace(sample(row_id), identity=params.identity, style=params.style)


def with_style(params: Portrait, style: str) -> Portrait:
    """The same portrait in another drawing style. Raises ValueError for an unknown style."""
    _check("style", style, STYLES)
    return replace(params, style=style)


def to_dict(params: Portrait) -> dict[str, float | str]:
    """Flat dictionary of floats and strings, for JSON or a Parquet row."""
    flat: dict[str, float | str] = {}
    for name in ATTRIBUTES:
        trait = getattr(params.traits, name)
        flat[f"trait.{name}"] = trait.value
        flat[f"u.{name}"] = trait.u
    for part in ("identity", "look"):
        flat |= {f"{part}.{key}": number for key, number in asdict(getattr(params, part)).items()}
    return flat if params.style == STYLES[0] else flat | {"style": params.style}


def from_dict(flat: dict[str, float | str]) -> Portrait:
    """Portrait of a dictionary of `to_dict`. Raises ValueError for unknown values."""
    for name, values in ATTRIBUTES.items():
        _check(f"value of {name}", str(flat[f"trait.{name}"]), values)
    style = str(flat.get("style", STYLES[0]))
    _check("style", style, STYLES)
    return Portrait(
        Identity(**{field.name: float(flat[f"identity.{field.name}"]) for field in fields(Identity)}),
        Traits(**{name: Trait(str(flat[f"trait.{name}"]), float(flat[f"u.{name}"])) for name in ATTRIBUTES}),
        Look(**{field.name: float(flat[f"look.{field.name}"]) for field in fields(Look)}),
        style,
    )


def _check(kind: str, name: str, known: tuple[str, ...]) -> None:
    if name not in known:
        nearest = difflib.get_close_matches(name, known, n=1, cutoff=0.0)[0]
        raise ValueError(f"unknown {kind} {name!r}: did you mean {nearest!r}? (known: {', '.join(known)})")
