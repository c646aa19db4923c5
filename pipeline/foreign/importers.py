"""Network -> what makes its weights of a published original. A new importer is one more line here."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module

Importer = Callable[..., tuple[str, list[str]]]
"""(original, domain, project, what else its command takes by name) -> (what was written, what a person must know).

It writes the safetensors file that the domain names, whole or not at all, with `placed.of(original)` under "original"
in its heading: that is how a later `fetch` knows that there is nothing to do. Nothing in the original is executed.
"""

IMPORTERS = {  # "module:function", imported when it is called for
    "clip": "pipeline.foreign.clips:place",
    "generator": "pipeline.foreign.placed:generator",
    "encoder": "pipeline.foreign.encoders:place_encoder",
    "identity": "pipeline.foreign.encoders:place_identity",
    "inception": "pipeline.foreign.judges:place_inception",
    "lpips": "pipeline.foreign.judges:place_lpips",
    "mapper": "pipeline.foreign.placed:mapper",
    "relevance": "pipeline.foreign.placed:relevance",
}


def of(network: str) -> Importer:
    """The importer of a network of IMPORTERS."""
    module, _, function = IMPORTERS[network].partition(":")
    return getattr(import_module(module), function)
