"""Synthetic benchmark: drawn portraits with known attributes, captions and exact counterfactuals."""

from .captions import HELDOUT_PAIRS, PHRASES, caption, noun_phrase
from .render import render, svg
from .traits import (
    ATTRIBUTES,
    STYLES,
    Portrait,
    Traits,
    attributes,
    counterfactual,
    from_dict,
    sample,
    to_dict,
    visible,
    with_nuisance,
    with_style,
)

__all__ = [
    "ATTRIBUTES",
    "HELDOUT_PAIRS",
    "PHRASES",
    "STYLES",
    "Portrait",
    "Traits",
    "attributes",
    "caption",
    "counterfactual",
    "from_dict",
    "noun_phrase",
    "render",
    "sample",
    "svg",
    "to_dict",
    "visible",
    "with_nuisance",
    "with_style",
]
