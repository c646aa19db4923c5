"""The portraits world: drawn people whose every trait is known, with captions and exact counterfactuals."""

from .captions import HELDOUT_PAIRS, PHRASES, SPLITS, caption, in_a_phrase
from .render import landmarks, render, svg
from .traits import (
    ATTRIBUTES,
    STYLES,
    Identity,
    Look,
    Portrait,
    Trait,
    Traits,
    attributes,
    counterfactual,
    from_dict,
    restyled,
    sample,
    to_dict,
    visible,
    with_nuisance,
)

__all__ = [
    "ATTRIBUTES",
    "HELDOUT_PAIRS",
    "PHRASES",
    "SPLITS",
    "STYLES",
    "Identity",
    "Look",
    "Portrait",
    "Trait",
    "Traits",
    "attributes",
    "caption",
    "counterfactual",
    "from_dict",
    "in_a_phrase",
    "landmarks",
    "render",
    "restyled",
    "sample",
    "svg",
    "to_dict",
    "visible",
    "with_nuisance",
]
