"""Published CLIPs -> open_clip's keys: OpenAI's archives, Hugging Face's `CLIPModel`, open_clip's state dicts.

Sizes follow from the tensors' shapes, or from the open_clip model that `model` names; the CLIP of another domain of
this project has them in its header. The kind of GELU does not follow from shapes: OpenAI's archives use QuickGELU,
Hugging Face's config.json names it, other files need `model`.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipeline.checkpoints import install, reader
from pipeline.checkpoints.safe_pickle import Thing, shown
from pipeline.checkpoints.tensor_table import TensorSpec, listed
from pipeline.models.clip import Clip
from pipeline.runtime.errors import InputError, nearest
from pipeline.storage import domain_template, domains, weights
from pipeline.storage.domains import Domain
from pipeline.storage.weights import Unfilled

VOCABULARY = 49_408  # of open_clip's own tokenizer, which all of these were trained with
HEAD = 64  # numbers per attention head, where nothing says otherwise
LIMITS = {"width": 8192, "stem": 512, "layers": 128, "context": 1024, "grid": 128}  # published models stay far below
MAX_OBJECTS = 20_000
NOT_WEIGHTS = re.compile(r"input_resolution|context_length|vocab_size|(.*\.)?(position_ids|attn_mask)")
OPENAI, HF, OPEN_CLIP = "OpenAI's archive", "Hugging Face's CLIPModel", "a state dict of open_clip's layout"
OURS = "the CLIP of another domain"
HF_NAMES = {  # open_clip's key -> theirs
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "visual.ln_pre": "vision_model.pre_layrnorm",  # their spelling
    "visual.ln_post": "vision_model.post_layernorm",
    "visual.proj": "visual_projection.weight",
    "visual.transformer.resblocks": "vision_model.encoder.layers",
    "transformer.resblocks": "text_model.encoder.layers",
    "token_embedding": "text_model.embeddings.token_embedding",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "ln_final": "text_model.final_layer_norm",
    "text_projection": "text_projection.weight",
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "c_fc": "fc1",
    "c_proj": "fc2",
    "attn": "self_attn",
}


@dataclass(frozen=True)
class Piece:
    """One tensor as a concatenation of tensors of the file (query, key, value); projections are transposed."""

    names: tuple[str, ...]
    transposed: bool = False


@dataclass(frozen=True)
class Imported:
    """A CLIP in a file, whose tensors are read one by one with `tensor`.

    numbers: sizes, for `pipeline.models.clip.Clip`
    like: names, shapes and types of the state that it needs
    header: of a file of this project, without the sizes
    """

    kind: str
    numbers: dict[str, Any]
    like: dict[str, Tensor]
    pieces: dict[str, Piece]
    specs: dict[str, TensorSpec]
    content: reader.Content
    header: dict[str, Any]

    def tensor(self, name: str) -> Tensor:
        """One tensor of `like`, float32; InputError when it is not finite or cannot be read."""
        piece = self.pieces[name]
        if not set(piece.names) <= set(self.specs):  # counters of batch norm, which only training needs
            return torch.zeros_like(self.like[name])
        with reader.importing(self.content.path):
            parts = self.content.take({part: self.specs[part] for part in piece.names})
        joined = torch.cat(list(parts.values())) if len(parts) > 1 else parts[piece.names[0]]
        return joined.T if piece.transposed else joined


def install_clip(file: Path, domain: Domain, root: Path, model: str | None = None) -> tuple[str, list[str]]:
    """Import a domain's CLIP. model: open_clip's name of it, where the file does not say."""
    imported, original = load(file, model), install.provenance(file)
    meta = {"model": imported.numbers, "domain": domain.name, "vocabulary": imported.header.get("vocabulary")}
    meta |= {"original": original | {"kind": imported.kind, "model": model}}
    weights.save_each(root / domain.clip.path, imported.like, imported.tensor, meta)
    size, numbers = imported.numbers["vision"]["image_size"], imported.numbers["embed_dim"]
    normalised = "with" if domain.clip_normalise else "without"
    line = f"wrote {domain.clip.path}: {imported.kind}, images of {size} pixels {normalised} its mean and deviation"
    warnings = install.digest_warnings(domain.clip, original) + _normalise_warnings(imported, domain, root)
    return f"{line}, embeddings of {numbers} numbers", warnings


def _normalise_warnings(imported: Imported, domain: Domain, root: Path) -> list[str]:
    """A warning where another domain's CLIP was trained with another clip_normalise than this domain's."""
    origin = imported.header.get("domain")
    try:
        if origin not in domains.names(root) or domains.load(origin, root).clip_normalise == domain.clip_normalise:
            return []
    except InputError:  # about the other domain's file, which is not imported here
        return []
    expected, file = str(not domain.clip_normalise).lower(), domain_template.domain_file(domain.name)
    return [f"{origin} normalises its pixels otherwise: set clip_normalise: {expected} in {file}"]


def load(path: Path, model: str | None = None) -> Imported:
    """The CLIP in a file. model: the name of an open_clip configuration, such as ViT-B-32.

    Raises InputError, one line, for a file without a CLIP, one that does not fit `model`, and one that needs `model`.
    """
    content = reader.read(path, script=True)
    with reader.importing(path):
        kind, specs = _specs(content)
        shapes = _Shapes(kind, specs)
        if kind == OURS and model:
            raise InputError("its header names the model: leave --model out")
        header = _header(path) if kind == OURS else {}
        numbers = header.pop("model", None) or (
            named(model) if model else _numbers(shapes, _quick_gelu(path, kind, content.tree))
        )
        like = _empty_state(numbers)
        pieces = {name: shapes.piece(name.removeprefix("model.")) for name in like}
        _check_fit(like, pieces, shapes)
    return Imported(kind, numbers, like, pieces, specs, content, header)


def _header(path: Path) -> dict[str, Any]:
    """Header of a file of this project; InputError for sizes that no CLIP has."""
    meta = weights.read_meta(path)
    numbers = meta.get("model")
    if not isinstance(numbers, dict):
        raise InputError("its header has no sizes")
    for size in [numbers["embed_dim"], *numbers["vision"].values(), *numbers["text"].values()]:
        for part in size if isinstance(size, list) else [size]:
            if isinstance(part, int):
                _check_size("width", part)
    return meta


def named(model: str) -> dict[str, Any]:
    """Sizes of one of open_clip's configurations, for `pipeline.models.clip.Clip`."""
    from open_clip import factory

    name = model.replace("/", "-")
    known = factory.list_models()
    if name not in known:
        raise InputError(f"open_clip has no model '{shown(model)}'{nearest(name, known)}: such as ViT-B-32-quickgelu")
    config: dict[str, Any] = factory.get_model_config(name) or {}
    vision, text = dict(config["vision_cfg"]), dict(config["text_cfg"])
    if "hf_model_name" in text or "hf_tokenizer_name" in text or text.pop("vocab_size", VOCABULARY) != VOCABULARY:
        raise InputError(f"{name} needs a Hugging Face tokenizer, which is not supported")
    if "timm_model_name" in vision or "multimodal_cfg" in config or config.get("custom_text"):
        raise InputError(f"{name} has towers that are not open_clip's own (timm, CoCa), which are not supported")
    quick = bool(config.get("quick_gelu", False))
    return {"embed_dim": config["embed_dim"], "vision": vision, "text": text, "quick_gelu": quick}


# ---------------------------------------------------------------- content of the file


def _specs(content: reader.Content) -> tuple[str, dict[str, TensorSpec]]:
    """(origin, tensors by the names of the file)."""
    tree, kind = content.tree, OPEN_CLIP
    if isinstance(tree, Thing) and tree.path.startswith("__torch__."):
        tree, kind = _flat(tree), OPENAI
    elif isinstance(tree, dict) and isinstance(tree.get("state_dict"), dict):  # open_clip's training files
        tree = {str(key).removeprefix("module."): value for key, value in tree["state_dict"].items()}
    if not isinstance(tree, dict):
        raise InputError(f"it holds {shown(type(tree).__name__)}, not a CLIP's weights")
    if "model.token_embedding.weight" in tree:
        tree, kind = {str(key).removeprefix("model."): value for key, value in tree.items()}, OURS
    weights = {key: value for key, value in tree.items() if not NOT_WEIGHTS.fullmatch(str(key))}
    if "vision_model.embeddings.class_embedding" in weights:
        kind = HF
    elif "visual.conv1.weight" not in weights or "token_embedding.weight" not in weights:
        raise InputError(f"it holds no CLIP: visual.conv1.weight is not among its keys ({listed(weights)})")
    return kind, content.check(weights)


def _flat(tree: Thing) -> dict[str, TensorSpec]:
    """Tensors of an archive's objects by dotted names; numbers and flags are left out."""
    specs: dict[str, TensorSpec] = {}
    todo, seen = [("", tree)], 0
    while todo:
        prefix, thing = todo.pop()
        if (seen := seen + 1) > MAX_OBJECTS or len(prefix) > 200:
            raise InputError("its objects lie too deep, or are too many")
        for key, value in (thing.state if isinstance(thing.state, dict) else {}).items():
            if isinstance(value, Thing):
                todo.append((f"{prefix}{key}.", value))
            elif isinstance(value, TensorSpec):
                specs[f"{prefix}{key}"] = value
    return specs


def _quick_gelu(path: Path, kind: str, tree: Any) -> dict[str, Any]:
    """quick_gelu, and attention heads by tower where they are known."""
    if kind == OPENAI or (kind == OPEN_CLIP and "input_resolution" in tree):
        return {"quick_gelu": True}
    beside = path.with_name("config.json")
    if kind == HF and beside.is_file():
        return _config(beside)
    raise InputError(
        "its tensors do not say which GELU its layers use: give --model, such as ViT-B-32-quickgelu for OpenAI's "
        "weights, ViT-B-32 for others"
    )


def _config(path: Path) -> dict[str, Any]:
    """Kind of GELU and attention heads in Hugging Face's config.json."""
    try:
        config = json.loads(path.read_bytes()[:1_000_000])
        towers = {"vision": config["vision_config"], "text": config["text_config"]}
        kinds = {tower.get("hidden_act", "quick_gelu") for tower in towers.values()}
        norms = {float(tower.get("layer_norm_eps", 1e-5)) for tower in towers.values()}
        heads = {name: int(t["num_attention_heads"]) for name, t in towers.items() if "num_attention_heads" in t}
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError, OSError) as error:
        raise InputError(f"{path.name} beside it does not describe a CLIPModel: give --model, or remove it") from error
    if len(kinds) > 1 or not kinds <= {"quick_gelu", "gelu"} or norms != {1e-5}:
        raise InputError(f"{path.name} beside it asks for layers that no CLIP of open_clip's has")
    return {"quick_gelu": kinds == {"quick_gelu"}, "heads": heads}


# ---------------------------------------------------------------- sizes


@dataclass(frozen=True)
class _Shapes:
    """The file's tensors under open_clip's keys."""

    kind: str
    specs: dict[str, TensorSpec]

    def piece(self, key: str) -> Piece:
        """The file's tensors that open_clip's `key` is made of."""
        if self.kind != HF:
            return Piece((key,))
        if key in HF_NAMES:
            return Piece((HF_NAMES[key],), transposed=key in ("visual.proj", "text_projection"))
        if key == "logit_scale":
            return Piece((key,))
        block = re.fullmatch(r"((?:visual\.)?transformer\.resblocks)\.(\d+)\.(.+)", key)
        if block is None:
            stem, _, part = key.rpartition(".")
            return Piece((f"{HF_NAMES.get(stem, stem)}.{part}",))
        layer = f"{HF_NAMES[block[1]]}.{block[2]}"
        if joined := re.fullmatch(r"attn\.in_proj_(weight|bias)", block[3]):
            return Piece(tuple(f"{layer}.self_attn.{which}_proj.{joined[1]}" for which in "qkv"))
        return Piece((".".join([layer, *(HF_NAMES.get(part, part) for part in block[3].split("."))]),))

    def __contains__(self, key: str) -> bool:
        return all(name in self.specs for name in self.piece(key).names)

    def __getitem__(self, key: str) -> tuple[int, ...]:
        """The shape of open_clip's `key`; () where a part of it is missing or does not fit."""
        piece = self.piece(key)
        shapes = [self.specs[name].shape for name in piece.names if name in self.specs]
        if len(shapes) != len(piece.names) or len(set(shapes)) > 1:
            return ()
        shape = shapes[0]
        if len(shapes) > 1:
            shape = (sum(part[0] for part in shapes), *shape[1:]) if shape else ()
        return shape[::-1] if piece.transposed else shape

    def count(self, stem: str) -> int:
        """Number of consecutive blocks, from 0 on, whose tensor `stem` is in the file."""
        return next(n for n in range(len(self.specs) + 1) if stem.format(n) not in self)


def _numbers(shapes: _Shapes, known: dict[str, Any]) -> dict[str, Any]:
    """Sizes for `pipeline.models.clip.Clip` from the tensors' shapes, as OpenAI's own loader reads them.

    known: of `_quick_gelu`
    """
    vocabulary, width = _sizes(shapes, "token_embedding.weight", 2)
    context, _ = _sizes(shapes, "positional_embedding", 2)
    _, embed_dim = _sizes(shapes, "text_projection", 2)
    if vocabulary != VOCABULARY:
        raise InputError(f"its vocabulary has {vocabulary} words: open_clip's tokenizer has {VOCABULARY}")
    heads = known.get("heads", {})
    text_heads = heads.get("text", max(1, width // HEAD))
    for what, size in (("width", width), ("context", context), ("width", embed_dim)):
        _check_size(what, size)
    layers = _blocks(shapes, "transformer", width)
    if not 0 < text_heads <= width or width % text_heads:
        raise InputError(f"its text tower is {width} wide, which {text_heads} attention heads do not divide")
    text = {"context_length": context, "width": width, "layers": layers, "heads": text_heads}
    text |= _mlp(shapes, "transformer", width)
    vision = _vit(shapes, heads.get("vision")) if "visual.proj" in shapes else _resnet(shapes)
    return {"embed_dim": embed_dim, "vision": vision, "text": text, "quick_gelu": known["quick_gelu"]}


def _vit(shapes: _Shapes, heads: int | None) -> dict[str, Any]:
    width, _, patch, _ = _sizes(shapes, "visual.conv1.weight", 4)
    grid = round((_sizes(shapes, "visual.positional_embedding", 2)[0] - 1) ** 0.5)
    for what, size in (("width", width), ("grid", grid), ("width", patch)):
        _check_size(what, size)
    layers = _blocks(shapes, "visual.transformer", width)
    head_width = min(HEAD, width) if heads is None else width // max(1, heads)
    if not head_width or width % head_width:
        raise InputError(f"its image tower is {width} wide, which its attention heads do not divide")
    sizes = {"image_size": patch * grid, "patch_size": patch, "layers": layers, "width": width}
    return sizes | {"head_width": head_width} | _mlp(shapes, "visual.transformer", width)


def _blocks(shapes: _Shapes, tower: str, width: int) -> int:
    """Number of layers of a tower; each must be as wide as the tower, so that no file claims more than it has."""
    layers = shapes.count(f"{tower}.resblocks.{{}}.ln_1.weight")
    _check_size("layers", layers)
    for i in range(layers):
        key = f"{tower}.resblocks.{i}.attn.in_proj_weight"
        if shapes[key] != (3 * width, width):
            raise InputError(f"{key} has the shape {list(shapes[key])}, {[3 * width, width]} is expected")
    return layers


def _mlp(shapes: _Shapes, tower: str, width: int) -> dict[str, float]:
    """mlp_ratio, where it is not open_clip's default of 4."""
    inner = _sizes(shapes, f"{tower}.resblocks.0.mlp.c_fc.weight", 2)[0]
    return {} if inner == 4 * width else {"mlp_ratio": (inner + 0.5) / width}  # open_clip rounds the product down


def _resnet(shapes: _Shapes) -> dict[str, Any]:
    width = _sizes(shapes, "visual.layer1.0.conv1.weight", 4)[0]
    grid = round((_sizes(shapes, "visual.attnpool.positional_embedding", 2)[0] - 1) ** 0.5)
    layers = [shapes.count(f"visual.layer{stage}.{{}}.conv1.weight") for stage in (1, 2, 3, 4)]
    for what, size in (("stem", width), ("layers", sum(layers)), ("grid", grid)):
        _check_size(what, size)
    return {"image_size": 32 * grid, "patch_size": None, "layers": layers, "width": width}


def _sizes(shapes: _Shapes, key: str, dims: int) -> tuple[int, ...]:
    shape = shapes[key]
    if len(shape) != dims:
        raise InputError(f"{' and '.join(shapes.piece(key).names)} is missing or has another shape than a CLIP's")
    return shape


def _check_size(what: str, size: int) -> None:
    if not 0 < size <= LIMITS[what]:
        raise InputError(f"it claims {what} {size}, which no CLIP has")


def _empty_state(numbers: dict[str, Any]) -> dict[str, Tensor]:
    with Unfilled():
        return Clip(numbers).state_dict()


def _check_fit(like: dict[str, Tensor], pieces: dict[str, Piece], shapes: _Shapes) -> None:
    """Raises InputError unless the file has exactly the tensors that the network needs."""
    needed, present = {name for piece in pieces.values() for name in piece.names}, set(shapes.specs)
    counters = {name for name in needed if name.endswith("num_batches_tracked")}
    if needed - counters - present:
        raise InputError(f"{listed(needed - present)} missing: it is another model (give --model), or not whole")
    if present - needed:
        raise InputError(f"{listed(present - needed)} too many: it is another model: give --model")
    for name, tensor in like.items():
        key = name.removeprefix("model.")
        if key in shapes and shapes[key] != tuple(tensor.shape):
            shape, expected = list(shapes[key]), list(tensor.shape)
            raise InputError(f"{key} has the shape {shape}, {expected} is expected: it is another model, see --model")
