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
    "clip": "pipeline.checkpoints.clip:place",
    "generator": "pipeline.checkpoints.install:generator",
    "encoder": "pipeline.checkpoints.encoders:place_encoder",
    "identity": "pipeline.checkpoints.encoders:place_identity",
    "inception": "pipeline.checkpoints.metric_networks:place_inception",
    "lpips": "pipeline.checkpoints.metric_networks:place_lpips",
    "mapper": "pipeline.checkpoints.install:mapper",
    "relevance": "pipeline.checkpoints.install:relevance",
}


def of(network: str) -> Importer:
    """The importer of a network of IMPORTERS."""
    module, _, function = IMPORTERS[network].partition(":")
    return getattr(import_module(module), function)
