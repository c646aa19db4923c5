"""Captions of portraits: phrases for every attribute value, and a grammar that combines them."""

import re
from collections.abc import Collection

import numpy as np

from .traits import Portrait, attributes, visible

Phrases = tuple[tuple[str, ...], tuple[str, ...]]

PHRASES: dict[str, dict[str, Phrases]] = {  # attribute -> value -> (training phrases, held-out synonyms)
    "glasses": {
        "none": (("without glasses", "with no glasses"), ()),
        "eyeglasses": (
            ("with glasses", "with eyeglasses", "wearing glasses", "wearing eyeglasses"),
            ("with spectacles",),
        ),
        "sunglasses": (("with sunglasses", "wearing sunglasses", "wearing dark sunglasses"), ("wearing shades",)),
    },
    "expression": {
        "neutral": (("neutral", "with a neutral expression"), ("expressionless",)),
        "smile": (("smiling", "happy", "with a smile", "with a happy expression"), ("cheerful", "grinning")),
        "sad": (("sad", "unhappy", "with a sad expression", "frowning"), ("gloomy", "sorrowful")),
        "angry": (("angry", "with an angry expression", "mad"), ("furious",)),
    },
    "skin": {
        "pale": (("pale", "with pale skin", "pale-skinned"), ("pallid",)),
        "light": (("light-skinned", "with light skin"), ()),
        "tanned": (("tanned", "with tanned skin", "with brown skin"), ("bronzed",)),
        "dark": (("dark-skinned", "with dark skin", "with very dark skin"), ("with deep-brown skin",)),
    },
    "eye_size": {
        "normal": (("with normal eyes", "with small eyes"), ()),
        "big": (("with big eyes", "big-eyed", "with large eyes"), ("with huge eyes", "wide-eyed")),
    },
    "face_shape": {
        "thin": (("thin", "with a thin face", "slim"), ("skinny",)),
        "normal": (("with a normal face shape", "with an oval face"), ()),
        "chubby": (("chubby", "with a chubby face", "round-faced", "with a round face"), ("plump",)),
    },
    "clothes": {
        "sweater": (("in a sweater", "wearing a sweater"), ("wearing a pullover",)),
        "suit": (("in a suit", "wearing a suit", "wearing a suit and tie"), ("in formal wear",)),
    },
    "clothes_color": {
        "black": (("in black clothes", "wearing black clothes", "dressed in black"), ()),
        "white": (("in white clothes", "wearing white clothes", "dressed in white"), ()),
        "red": (("in red clothes", "wearing red clothes", "dressed in red"), ("in crimson clothes",)),
        "blue": (("in blue clothes", "wearing blue clothes", "dressed in blue"), ("in azure clothes",)),
        "green": (("in green clothes", "wearing green clothes", "dressed in green"), ("in emerald clothes",)),
        "yellow": (("in yellow clothes", "wearing yellow clothes", "dressed in yellow"), ("in mustard clothes",)),
    },
    "hair_color": {
        "black": (("with black hair", "black-haired"), ("with raven hair",)),
        "brown": (("with brown hair", "brown-haired"), ("with brunette hair",)),
        "blond": (("with blond hair", "with blonde hair", "with yellow hair"), ("with golden hair",)),
        "red": (("with red hair", "red-haired", "with orange hair"), ("with ginger hair",)),
        "grey": (("with grey hair", "with gray hair", "grey-haired", "with white hair"), ("with silver hair",)),
    },
    "hair_style": {
        "bald": (("bald", "with a bald head", "with no hair"), ("hairless",)),
        "receding": (("with receding hair", "with a receding hairline", "balding"), ("with thinning hair",)),
        "short": (("with short hair", "short-haired"), ("with cropped hair",)),
        "bowl": (("with a bowl cut", "with bowl cut hair", "with a bowl cut hairstyle"), ("with a mushroom cut",)),
        "long": (("with long hair", "long-haired"), ("with lengthy hair",)),
        "curly": (("with curly hair", "curly-haired", "with curls"), ("with frizzy hair",)),
        "mohawk": (("with a mohawk", "with mohawk hair", "with a mohawk hairstyle"), ("with punk hair",)),
    },
    "bangs": {
        "no": (("without bangs", "with no bangs"), ()),
        "yes": (("with bangs", "with hair bangs", "with hair over the forehead"), ("with a fringe",)),
    },
    "facial_hair": {
        "none": (("clean-shaven", "without a beard", "with no beard"), ("beardless",)),
        "moustache": (("with a moustache", "with a mustache"), ("mustachioed",)),
        "beard": (("with a beard", "bearded", "with a full beard"), ("with whiskers",)),
    },
    "lips": {
        "natural": (("without lipstick", "with no lipstick"), ()),
        "red": (("with lipstick", "with red lips", "wearing red lipstick", "wearing lipstick"), ("with scarlet lips",)),
    },
    "age": {
        "young": (("young", "without wrinkles"), ("youthful",)),
        "old": (("old", "with wrinkles", "wrinkled"), ("elderly", "aged")),
    },
    "mouth": {
        "closed": (("with a closed mouth", "with closed lips"), ("with a shut mouth",)),
        "open": (("with an open mouth", "with the mouth open", "showing teeth"), ("with parted lips",)),
    },
    "eyes": {
        "open": (("with open eyes", "with the eyes open"), ()),
        "closed": (("with closed eyes", "with the eyes closed"), ("sleeping",)),
    },
    "brows": {
        "thin": (("with thin eyebrows", "with fine eyebrows"), ("with slender eyebrows",)),
        "bushy": (("with bushy eyebrows", "with thick eyebrows"), ("with heavy eyebrows",)),
    },
    "background": {
        "blue": (("on a blue background", "with a blue background"), ()),
        "green": (("on a green background", "with a green background"), ()),
        "pink": (("on a pink background", "with a pink background"), ("on a rose background",)),
        "orange": (("on an orange background", "with an orange background"), ("on a peach background",)),
        "grey": (("on a grey background", "with a gray background", "on a gray background"), ()),
    },
    "pose": {
        "left": (("facing left", "looking to the left", "turned to the left"), ("gazing left",)),
        "front": (("facing forward", "looking straight ahead", "seen from the front"), ("gazing ahead",)),
        "right": (("facing right", "looking to the right", "turned to the right"), ("gazing right",)),
    },
    "earrings": {
        "no": (("without earrings", "with no earrings"), ()),
        "yes": (("with earrings", "wearing earrings", "wearing gold earrings"), ("with hoops",)),
    },
}
HELDOUT_PAIRS: tuple[tuple[str, str], ...] = (  # named together in held-out captions only
    ("hair_style=curly", "hair_color=grey"),
    ("hair_style=mohawk", "glasses=eyeglasses"),
    ("clothes=suit", "clothes_color=yellow"),
    ("glasses=sunglasses", "expression=sad"),
    ("age=old", "lips=red"),
    ("hair_style=long", "facial_hair=moustache"),
)
SPLITS = ("train", "heldout")

# Attributes of few pixels are named more often: a contrastive loss learns the large and colourful ones anyway.
_SMALL = "expression mouth age facial_hair lips brows bangs face_shape pose earrings hair_style".split()
_DEFAULT_VALUES = (  # named less often
    {"glasses": "none", "bangs": "no", "facial_hair": "none", "lips": "natural", "earrings": "no"}
    | {"expression": "neutral", "eye_size": "normal", "face_shape": "normal", "mouth": "closed", "eyes": "open"}
    | {"pose": "front"}
)
_COUNT_PROBABILITIES = (0.03, 0.11, 0.15, 0.16, 0.15, 0.13, 0.11, 0.09, 0.07)
_NOUNS = ("face", "face", "face", "person", "person", "portrait")
_OPENINGS = ("", "", "a ", "a ", "the ", "a portrait of a ", "a picture of a ", "a photo of a ", "an image of a ")
_TRAILING = "with without in on wearing dressed facing looking turned seen showing gazing"
_POSTFIX = tuple(f"{word} " for word in _TRAILING.split())
_HAIR = re.compile(r"^with (\S+) hair$")
_CLOTHES = re.compile(r"^(in|wearing) (\S+) clothes$")
_GARMENT = re.compile(r"^(in|wearing) a (.+)$")


def caption(
    params: Portrait, rng: np.random.Generator, split: str = "train", among: Collection[str] | None = None
) -> str:
    """Random caption that names 0 to 8 visible attributes.

    params: the portrait. rng: source of randomness. split: "heldout" uses words and pairs of attributes that "train"
    never does. among: attributes that may be named; None: all. Raises ValueError for an unknown split.
    """
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}: did you mean 'train' or 'heldout'?")
    values = attributes(params)
    names = _chosen(params, values, rng, split, among)
    phrases = {name: _phrase(name, values[name], rng, split) for name in names}
    return _sentence(_merged(phrases, rng), rng)


def noun_phrase(noun: str, phrase: str) -> str:
    """Combine noun and phrase: "face with red hair" for "with red hair", "bald face" for "bald"."""
    return f"{noun} {phrase}" if phrase.startswith(_POSTFIX) else f"{phrase} {noun}"


def _chosen(
    params: Portrait, values: dict[str, str], rng: np.random.Generator, split: str, among: Collection[str] | None
) -> list[str]:
    candidates = [
        name for name, is_visible in visible(params).items() if is_visible and (among is None or name in among)
    ]
    if not candidates:
        return []
    weights = np.array([_weight(name, values[name]) for name in candidates])
    count = min(int(rng.choice(len(_COUNT_PROBABILITIES), p=_COUNT_PROBABILITIES)), len(candidates))
    names = [str(name) for name in rng.choice(candidates, size=count, replace=False, p=weights / weights.sum())]
    pairs = [
        tuple(part.split("=")[0] for part in pair)
        for pair in HELDOUT_PAIRS
        if all(values[part.split("=")[0]] == part.split("=")[1] for part in pair)
    ]
    if split == "train":
        for first, second in pairs:
            if first in names and second in names:
                names.remove(first if rng.random() < 0.5 else second)
    elif pairs and count >= 2 and among is None:
        pair = pairs[int(rng.integers(len(pairs)))]
        names = [*pair, *(name for name in names if name not in pair)][:count]
    return names


def _weight(name: str, value: str) -> float:
    return (4.0 if name in _SMALL else 1.0) * (0.4 if _DEFAULT_VALUES.get(name) == value else 1.0)


def _phrase(name: str, value: str, rng: np.random.Generator, split: str) -> str:
    train, heldout = PHRASES[name][value]
    choices = heldout if split == "heldout" and heldout else train
    return choices[int(rng.integers(len(choices)))]


def _merged(phrases: dict[str, str], rng: np.random.Generator) -> list[str]:
    """Phrases in random order; those of hair colour and style, and of clothes and their colour, are merged."""
    phrases = dict(phrases)
    color, style = _HAIR.match(phrases.get("hair_color", "")), _HAIR.match(phrases.get("hair_style", ""))
    if color and style:
        phrases["hair_style"] = f"with {style[1]} {color[1]} hair"
        del phrases["hair_color"]
    elif color and phrases.get("hair_style", "") in ("with a mohawk", "with a bowl cut") and rng.random() < 0.7:
        phrases["hair_style"] = f"with a {color[1]} {phrases['hair_style'].removeprefix('with a ')}"
        del phrases["hair_color"]
    tint, garment = _CLOTHES.match(phrases.get("clothes_color", "")), _GARMENT.match(phrases.get("clothes", ""))
    if tint and garment:
        article = "an" if tint[2][0] in "aeiou" else "a"
        phrases["clothes"] = f"{garment[1]} {article} {tint[2]} {garment[2]}"
        del phrases["clothes_color"]
    merged = list(phrases.values())
    rng.shuffle(merged)
    return merged


def _sentence(phrases: list[str], rng: np.random.Generator) -> str:
    before = [phrase for phrase in phrases if not phrase.startswith(_POSTFIX)]
    after = [phrase for phrase in phrases if phrase.startswith(_POSTFIX)]
    if phrases and not before and all(phrase.startswith("with ") for phrase in after) and rng.random() < 0.1:
        return _listed([phrase.removeprefix("with ") for phrase in after])
    if phrases and rng.random() < 0.06:
        return ", ".join(phrases)
    adjectives = " ".join(before)
    noun = _NOUNS[int(rng.integers(len(_NOUNS)))]
    opening = _OPENINGS[int(rng.integers(len(_OPENINGS)))]
    if noun == "portrait" and "of a" in opening:
        noun = "person"
    if before and noun != "portrait" and rng.random() < 0.12:
        body = f"{noun} that is {' and '.join(before)}" if len(before) > 1 else f"{noun} that looks {before[0]}"
    else:
        body = f"{adjectives} {noun}".strip()
    text = f"{opening}{body} {_joined(after)}".strip()
    return re.sub(r"\ba (?=[aeiou])", "an ", text)


def _joined(after: list[str]) -> str:
    """Join trailing phrases; those with the same first word share it ("with a beard and red hair")."""
    shared = [
        head + _listed([phrase.removeprefix(head) for phrase in after if phrase.startswith(head)], last)
        for head, last in (("with ", "and"), ("without ", "or"), ("wearing ", "and"))
        if any(phrase.startswith(head) for phrase in after)
    ]
    return " ".join(shared + [phrase for phrase in after if not phrase.startswith(("with ", "without ", "wearing "))])


def _listed(items: list[str], last: str = "and") -> str:
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} {last} {items[-1]}"
