"""Published Inception (FID) and AlexNet (LPIPS) weights -> the networks of pipeline/models/perceptual.py."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from pipeline.checkpoints import install, reader
from pipeline.checkpoints.tensor_table import listed
from pipeline.models.perceptual import Inception, Lpips
from pipeline.runtime.errors import InputError
from pipeline.storage import weights
from pipeline.storage.domains import Domain
from pipeline.storage.weights import Unfilled

CLASSES = 1008  # of the network that FID is defined with; torchvision's own has 1000
SLICES = {"0": "slice1.0", "3": "slice2.3", "6": "slice3.6", "8": "slice4.8", "10": "slice5.10"}  # torchmetrics' names


def install_inception(file: Path, domain: Domain, root: Path) -> tuple[str, list[str]]:
    """Import the Inception network of FID."""
    return _install("inception", file, domain, root)


def install_lpips(file: Path, domain: Domain, root: Path) -> tuple[str, list[str]]:
    """Import the AlexNet of LPIPS."""
    return _install("lpips", file, domain, root)


def _install(name: str, file: Path, domain: Domain, root: Path) -> tuple[str, list[str]]:
    entry, original = domain.weights(name), install.provenance(file)
    meta = {"domain": domain.name, "original": original}
    weights.save(root / entry.path, load(name, file).state_dict(), meta, half=False)
    return f"wrote {entry.path}: `evaluate` measures with it", install.digest_warnings(entry, original)


def load(name: str, path: Path) -> nn.Module:
    """The network `name` ("inception" or "lpips") with the weights of a state dict.

    Raises InputError, one line, for another network and for a file that is not whole.
    """
    content = reader.read(path)
    with reader.importing(path):
        return NETWORKS[name](content)


def _inception(content: reader.Content) -> nn.Module:
    """pt_inception-2015-12-05: torchvision's names; the classifier is left out."""
    specs = content.check(content.tree if isinstance(content.tree, dict) else {})
    head = specs.get("fc.weight")
    if head is None or head.shape != (CLASSES, 2048) or any(name.startswith("AuxLogits.") for name in specs):
        raise InputError("it is not the Inception that FID is defined with: a file with 1008 classes is expected")
    with Unfilled():
        network = Inception()
    return _filled(network, content, {f"net.{name}": name for name in specs if not name.startswith("fc.")})


def _alexnet(content: reader.Content) -> nn.Module:
    """torchvision's AlexNet without its classifier, with LPIPS's heads."""
    if not isinstance(content.tree, dict) or "features.0.weight" not in content.tree:
        raise InputError("it is not torchvision's AlexNet: features.0.weight is not among its keys")
    parts = ("weight", "bias")
    names = {f"net.net.{ours}.{part}": f"features.{theirs}.{part}" for theirs, ours in SLICES.items() for part in parts}
    return _filled(Lpips(heads=True), content, names)


def _filled(network: nn.Module, content: reader.Content, names: dict[str, str]) -> nn.Module:
    """`network` with the file's tensors; names: ours -> theirs. Other tensors of the network (heads) stay."""
    state = network.state_dict()
    counters = {name for name in state if name.endswith("num_batches_tracked")}  # which only training needs
    needed = set(state) - counters if isinstance(network, Inception) else set()  # LPIPS's heads come with the package
    missing = {name.removeprefix("net.") for name in needed - set(names)}
    missing |= {theirs for theirs in names.values() if theirs not in content.tree}
    if missing:
        raise InputError(f"{listed(missing)} missing: it is another network, or not whole")
    if extra := {theirs for ours, theirs in names.items() if ours not in state}:
        raise InputError(f"{listed(extra)} too many: it is another network")
    tensors = content.take({theirs: content.tree[theirs] for theirs in names.values()})
    for ours, theirs in names.items():
        if tensors[theirs].shape != state[ours].shape:
            shapes = f"{list(tensors[theirs].shape)}, {list(state[ours].shape)} is expected"
            raise InputError(f"{theirs} has the shape {shapes}")
    zeros = {name: torch.zeros((), dtype=torch.int64) for name in counters}
    renamed = {ours: tensors[theirs] for ours, theirs in names.items()}
    network.load_state_dict({**state, **zeros, **renamed}, assign=True)
    return network.eval()


NETWORKS: dict[str, Callable[[reader.Content], nn.Module]] = {"inception": _inception, "lpips": _alexnet}
