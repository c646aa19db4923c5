"""Published networks on an IR-SE50: the encoders of e4e and pSp, and the face network (ArcFace) of both.

Widths, rows and sizes follow from the tensors. Refused by name are ReStyle and other encoders, inputs that are not
square or not RGB, and another number of rows than the domain's generator has.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipeline.checkpoints import generators, install, reader
from pipeline.checkpoints.safe_pickle import Thing, shown
from pipeline.checkpoints.tensor_table import listed, shape_of
from pipeline.models import arcface, classifiers, e4e
from pipeline.runtime.errors import InputError
from pipeline.storage import weights
from pipeline.storage.domains import Domain

TYPES = {"Encoder4Editing": "e4e", "GradualStyleEncoder": "pSp"}  # opts.encoder_type -> method
COUNTER = "num_batches_tracked"  # of batch norm: absent from the oldest files, and unused in evaluation
FAR = 0.25  # distance of an encoder's mean code from the generator's mean w, relative to its length
MAX_OPTS, MAX_TEXT = 300, 300  # entries and characters that are kept of a file's opts


@dataclass(frozen=True)
class Imported:
    """A network in our form.

    kind: method or network that the file is of; model: sizes that it is built from; opts: of its training
    notes: warnings; decoder: whether the file holds a generator as well
    """

    kind: str
    tensors: dict[str, Tensor]
    model: dict[str, Any]
    opts: dict[str, Any]
    notes: list[str]
    decoder: bool = False


def install_encoder(file: Path, domain: Domain, root: Path) -> tuple[str, list[str]]:
    """Import an encoder, and the generator of the same file where the domain has none."""
    imported = style_encoder(file, domain.resolution)
    model, notes, generator = imported.model, list(imported.notes), None
    if (root / domain.generator.path).exists():
        tensors, header = weights.load(root / domain.generator.path, hint="import the generator again")
        notes += mismatch_warnings(imported, file, header.get("model", {}).get("style_dim"), tensors.get("w_mean"))
    elif imported.decoder:
        generator = generators.load(file, domain.level_split)
        install.check_resolution(generator, file, domain)
        notes += generator.notes
        notes += mismatch_warnings(imported, file, generator.model["style_dim"], generator.generator.w_mean)
    else:
        notes.append(f"it holds no generator, and {domain.name} has none: import the one that it was trained for")
    original = {**install.provenance(file), "kind": imported.kind, "notes": imported.notes, "opts": imported.opts}
    meta = {"model": model, "domain": domain.name, "original": original, "licence": domain.encoder.licence}
    weights.save(root / domain.encoder.path, imported.tensors, meta, half=False)
    line = f"wrote {domain.encoder.path}: {imported.kind}, {model['rows']} rows of {model['style_dim']} numbers"
    del imported  # a gigabyte, not needed for the generator's example images
    if generator is not None:
        licence = domain.generator.licence
        written = install.write_generator(generator, file, domain.name, root, domain.neutral, licence, seed=0)
        line += f"; {written.weights} ({generator.kind}) and images of it, {written.grid.name}"
    return line, notes


def install_identity(file: Path, domain: Domain, root: Path) -> tuple[str, list[str]]:
    """Import the face network of the identity metric."""
    imported = face_network(file)
    meta = {"model": imported.model, "domain": domain.name, "original": install.provenance(file)}
    weights.save(root / domain.identity.path, imported.tensors, meta, half=False)
    return f"wrote {domain.identity.path}: {imported.kind}, embeddings of {imported.model['dim']} numbers", []


def style_encoder(path: Path, resolution: int) -> Imported:
    """The encoder of an e4e or pSp file, for a generator of `resolution` pixels. InputError for any other file."""
    return _read(path, lambda content, tree: _style_encoder(content, tree, resolution))


def face_network(path: Path) -> Imported:
    """The IR-SE50 with its output layer (model_ir_se50.pth), a bare state dict. InputError for any other file."""
    return _read(path, _face_network)


def _read(path: Path, convert: Callable[[reader.Content, dict[str, Any]], Imported]) -> Imported:
    content = reader.read(path)
    with reader.importing(path):
        if not isinstance(content.tree, dict):
            raise InputError(f"it holds {type(content.tree).__name__}, not the weights of a network")
        return convert(content, content.tree)


def _style_encoder(content: reader.Content, tree: dict[str, Any], resolution: int) -> Imported:
    state = tree["state_dict"] if isinstance(tree.get("state_dict"), dict) else tree
    prefix = "encoder."
    encoder_state = {key.removeprefix(prefix): value for key, value in state.items() if str(key).startswith(prefix)}
    if not encoder_state:
        raise InputError(f"it holds no encoder: none of its keys starts with encoder. ({listed(state)})")
    opts, notes = _opts(tree.get("opts")), []
    kind = TYPES.get(opts.get("encoder_type", "Encoder4Editing"))
    if kind is None:
        raise InputError(
            f"its encoder is {shown(opts['encoder_type'])}: only Encoder4Editing (e4e) and GradualStyleEncoder (pSp) "
            "are read"
        )
    if "encoder_type" not in opts:
        notes.append("its opts name no encoder_type: read as e4e's")
    if "cars" in str(opts.get("dataset_type")):
        raise InputError("it was trained on cars of 192 x 256 pixels: only encoders of square images are read")
    rows = sum(bool(re.fullmatch(r"styles\.\d+\.linear\.weight", key)) for key in encoder_state)
    if rows != (wanted := 2 * int(math.log2(resolution)) - 2):
        raise InputError(
            f"its encoder has {rows} rows (styles.N.linear.weight), the domain's images of {resolution} pixels have "
            f"{wanted}"
        )
    mean = tree.get("latent_avg")
    tensors = content.take(encoder_state if mean is None else {**encoder_state, "latent_avg": mean})
    average = tensors.pop("latent_avg", None)
    if (channels := shape_of(tensors, "input_layer.0.weight", 4)[1]) != 3:
        kind_of = "as ReStyle's encoders do" if channels == 6 else "such as sketches or label maps"
        raise InputError(f"its encoder takes {channels} channels, {kind_of}: only encoders of RGB images are read")
    model = {
        "backbone": arcface.NAME,
        "widths": _widths(tensors),
        "rows": rows,
        "style_dim": shape_of(tensors, "styles.0.linear.weight", 2)[0],
        "size": 16 * 2 ** sum(bool(re.fullmatch(r"styles\.0\.convs\.\d+\.weight", key)) for key in encoder_state),
        "common": kind == "e4e",
    }
    with weights.Unfilled():
        expected = e4e.build(model).state_dict()
    average = _average(average, opts, expected.pop("latent_avg").shape, notes)
    tensors = {**_fitted(tensors, expected, f"{kind}'s encoder on an IR-SE50"), "latent_avg": average}
    return Imported(kind, tensors, model, opts, notes, any(str(key).startswith("decoder.") for key in state))


def _average(latent_avg: Tensor | None, opts: Mapping[str, Any], shape: torch.Size, notes: list[str]) -> Tensor:
    """The mean code [L,D] that the encoder's output is added to; zeros when it was trained without one."""
    if opts.get("start_from_latent_avg", latent_avg is not None) is False:
        notes.append("it does not start from a mean code")
        return torch.zeros(shape)
    if latent_avg is None:
        raise InputError("latent_avg is missing, which its opts say the encoder starts from")
    if not latent_avg.is_floating_point() or latent_avg.shape not in (shape, shape[1:], (1, shape[1])):
        raise InputError(f"latent_avg has the shape {list(latent_avg.shape)}: {list(shape)} is expected")
    return latent_avg.expand(shape).clone()


def mismatch_warnings(imported: Imported, source: Path, style_dim: int | None, w_mean: Tensor | None) -> list[str]:
    """A warning where an encoder's mean code is far from w_mean [D] of the generator, as of another generator.

    Raises InputError where the generator's codes do not have the encoder's style_dim.
    """
    if (dim := imported.model["style_dim"]) != style_dim:
        raise InputError(f"{source} is another generator's: its codes have {dim} numbers, the generator's {style_dim}")
    average = imported.tensors["latent_avg"].mean(dim=0)
    far = w_mean is not None and bool(average.any()) and bool((average - w_mean).norm() > FAR * average.norm())
    return ["its mean code is far from the generator's: was it trained for another generator?"] if far else []


def _face_network(content: reader.Content, tree: dict[str, Any]) -> Imported:
    state = tree["state_dict"] if isinstance(tree.get("state_dict"), dict) else tree
    if "output_layer.3.weight" not in state or "input_layer.0.weight" not in state:
        raise InputError(
            "it holds no IR-SE50 of faces: input_layer.0.weight or output_layer.3.weight is not among its keys "
            f"({listed(state)})"
        )
    tensors = content.take(state)
    dim = shape_of(tensors, "output_layer.3.weight", 2)[0]
    model = {"backbone": arcface.NAME, "widths": _widths(tensors), "dim": dim}
    with weights.Unfilled():
        expected = classifiers.build_identity(model).state_dict()
    return Imported("an IR-SE50 of faces", _fitted(tensors, expected, "an IR-SE50"), model, {}, [])


def _widths(tensors: Mapping[str, Tensor]) -> list[int]:
    """Channels of the four groups of a body, from the first bottleneck of each."""
    firsts = [sum(arcface.DEPTHS[:group]) for group in range(len(arcface.DEPTHS))]
    return [shape_of(tensors, f"body.{index}.res_layer.1.weight", 4)[0] for index in firsts]


def _fitted(tensors: dict[str, Tensor], expected: Mapping[str, Tensor], what: str) -> dict[str, Tensor]:
    """Check `tensors` against the state `expected` of a network; counters that are absent are added."""
    if surplus := [key for key in tensors if key not in expected]:
        raise InputError(f"{listed(surplus)} have no place in {what}")
    counters = {key: torch.zeros((), dtype=torch.int64) for key in expected if key.endswith(COUNTER)}
    tensors = {**counters, **tensors}
    if absent := [key for key in expected if key not in tensors]:
        raise InputError(f"{listed(absent)} missing: {what} has {len(expected)} tensors")
    for key, tensor in tensors.items():
        if tensor.shape != expected[key].shape:
            raise InputError(f"{key} has the shape {list(tensor.shape)}: {list(expected[key].shape)} is expected")
        if tensor.is_floating_point() == key.endswith(COUNTER):
            raise InputError(f"{key} holds numbers of type {str(tensor.dtype).removeprefix('torch.')}")
    return tensors


def _opts(opts: Any) -> dict[str, Any]:
    """Options of a file's training as plain data: of a mapping, or of an argparse.Namespace."""
    if isinstance(opts, Thing) and opts.path == "argparse.Namespace":
        opts = opts.state
    if opts is None:
        return {}
    if not isinstance(opts, dict):
        raise InputError(f"its opts are no mapping but {type(opts).__name__}")
    return _plain(opts)


def _plain(value: Any, depth: int = 0) -> Any:
    """`value` as JSON can hold it; other values become the name of their type."""
    if value is None or isinstance(value, bool) or (isinstance(value, int) and abs(value) < 2**53):
        return value
    if isinstance(value, float) and math.isfinite(value):
        return value
    if isinstance(value, str):
        return value[:MAX_TEXT].encode("utf-8", "replace").decode()
    if isinstance(value, dict) and depth < 4:
        return {str(_plain(k, 9)): _plain(v, depth + 1) for k, v in list(value.items())[:MAX_OPTS]}
    if isinstance(value, list | tuple) and depth < 4:
        return [_plain(item, depth + 1) for item in value[:MAX_OPTS]]
    if isinstance(value, Thing) and value.path == "argparse.Namespace" and depth < 4:
        return _plain(value.state, depth + 1)
    return f"({type(value).__name__})"
