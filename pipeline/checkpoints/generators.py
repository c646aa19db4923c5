"""Published StyleGAN2 generators -> keys of pipeline/models/stylegan2.py: rosinality, NVIDIA's PyTorch and TensorFlow.

Sizes, widths, mapping depth and style dimension follow from the tensors. Refused by name are StyleGAN3, StyleGAN1,
conditional networks, architectures without skip connections, and filters other than [1,3,3,1].
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kernels.upfirdn2d import binomial_kernel
from pipeline.checkpoints import reader
from pipeline.checkpoints.safe_pickle import Thing
from pipeline.checkpoints.tensor_table import listed, shape_of
from pipeline.models.stylegan2 import Generator, build
from pipeline.runtime.errors import InputError
from pipeline.storage import weights

MAX_SIZE = 2048  # pixels
MEAN_OF = 4096  # codes that a missing mean w is estimated from
KERNELS = re.compile(r"(convs\.\d+\.conv\.blur|to_rgbs\.\d+\.upsample)\.kernel")
NETWORK = "dnnlib.tflib.network.Network"


@dataclass
class Converted:
    """Tensors of a generator. kind: origin of the file. state: under our keys, with w_mean if the file has it."""

    kind: str
    state: dict[str, Tensor]
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Imported:
    """A generator in our form. kind: origin of the file; model: sizes for `stylegan2.build`; notes: warnings."""

    kind: str
    generator: Generator
    model: dict[str, Any]
    notes: list[str]

    def tensors(self) -> dict[str, Tensor]:
        """Tensors of the weights file."""
        return {**self.generator.state_dict(), "w_mean": self.generator.w_mean}


def load(path: Path, split: tuple[int, int] = (3, 7), seed: int = 0) -> Imported:
    """The generator in a file.

    split: numbers of style convolutions that are coarse, and coarse or medium
    seed: draws noise images and the codes of a mean w where the file lacks them
    Raises InputError, one line, for a file without a supported StyleGAN2 generator.
    """
    content = reader.read(path)
    with reader.importing(path):
        return _assembled(_tensors(content), split, seed)


def _tensors(content: reader.Content) -> Converted:
    tree = content.tree
    if isinstance(tree, tuple | list) and tree and all(isinstance(x, Thing) and x.path == NETWORK for x in tree):
        return _tensorflow(content, tree[-1])
    if isinstance(tree, Thing) and tree.path == NETWORK:
        return _tensorflow(content, tree)
    if isinstance(tree, Thing) and tree.path == "module":
        return _nvidia(content, tree)
    if not isinstance(tree, dict):
        raise InputError(f"it holds {type(tree).__name__}, not a generator's weights")
    for key in ("G_ema", "G"):
        if isinstance(tree.get(key), Thing) and tree[key].path == "module":
            return _nvidia(content, tree[key])
    return _rosinality(content, tree)


# ---------------------------------------------------------------- rosinality


def _rosinality(content: reader.Content, tree: dict[str, Any]) -> Converted:
    mean, kind = tree.get("latent_avg", tree.get("w_mean")), "a bare state dict"
    tensors: dict[str, Any] = tree
    if isinstance(tree.get("g_ema"), dict):
        tensors, kind = tree["g_ema"], "the g_ema of a training file"
    elif isinstance(tree.get("state_dict"), dict):
        tensors = {k.removeprefix("decoder."): v for k, v in tree["state_dict"].items() if k.startswith("decoder.")}
        kind = "the decoder of an e4e or pSp file"
    if "conv1.conv.weight" not in tensors:
        raise InputError(
            f"it holds no StyleGAN2 generator: conv1.conv.weight is not among its keys ({listed(tensors)})"
        )
    tensors = {key: value for key, value in tensors.items() if key not in ("latent_avg", "w_mean")}
    state = content.take(tensors if mean is None else {**tensors, "w_mean": mean})
    if "w_mean" in state:
        state["w_mean"] = state["w_mean"].reshape(-1, state["w_mean"].shape[-1]).mean(dim=0)  # e4e: one equal row per w
    return Converted(kind, state)


# ---------------------------------------------------------------- NVIDIA, PyTorch


def _nvidia(content: reader.Content, module: Thing) -> Converted:
    specs: dict[str, Any] = {}
    _collect(module, "", specs)
    name = module.arguments[0]
    if any(key.startswith("synthesis.L") or key.startswith("synthesis.input.") for key in specs):
        raise InputError(f"{name} is a StyleGAN3 (it has no synthesis.b4): only StyleGAN2 has a style space")
    if any(key.startswith("mapping.embed.") for key in specs):
        raise InputError(f"{name} is conditional (it has mapping.embed): only networks without classes can be edited")
    if "synthesis.b4.const" not in specs:
        raise InputError(f"{name} is no StyleGAN2: it has no synthesis.b4.const")
    tensors = content.take(specs)
    state: dict[str, Tensor] = {}
    for key in list(tensors):
        if (ours := _nvidia_key(key, tensors[key])) is not None:
            state |= ours
    clamp = _attribute(module, "synthesis", "b4", "conv1", "conv_clamp")
    notes = [f"it clamps activations at {clamp:g}, here they are not"] if isinstance(clamp, int | float) else []
    gain = _attribute(module, "mapping", "fc0", "bias_gain")
    if isinstance(gain, float) and abs(gain - 0.01) > 1e-6:
        raise InputError(f"its mapping has a learning rate of {gain:g} instead of 0.01")
    return Converted("NVIDIA's PyTorch", state, notes)


def _collect(module: Any, prefix: str, specs: dict[str, Any], depth: int = 0) -> None:
    """All parameters and buffers below a module, by dotted name."""
    if not isinstance(module, Thing) or not isinstance(module.state, dict) or depth > 6 or len(specs) > 20_000:
        raise InputError("its modules are not nested as modules are")
    for group in ("_parameters", "_buffers"):
        for name, value in (module.state.get(group) or {}).items():
            if value is not None:
                specs[f"{prefix}{name}"] = value
    for name, child in (module.state.get("_modules") or {}).items():
        if child is not None:
            _collect(child, f"{prefix}{name}.", specs, depth + 1)


def _attribute(module: Any, *names: str) -> Any:
    """A plain attribute of a module some levels down; None where it is not there."""
    for name in names[:-1]:
        children = module.state.get("_modules") if isinstance(module, Thing) and isinstance(module.state, dict) else {}
        module = (children or {}).get(name)
    return module.state.get(names[-1]) if isinstance(module, Thing) and isinstance(module.state, dict) else None


def _nvidia_key(key: str, tensor: Tensor) -> dict[str, Tensor] | None:
    """One tensor under our key and in our shape; None for filters, which are checked and made anew."""
    if key.endswith("resample_filter"):
        _same_filter(key, tensor)
        return None
    if key == "mapping.w_avg":
        return {"w_mean": tensor}
    if key == "synthesis.b4.const":
        return {"input.input": tensor[None]}
    if match := re.fullmatch(r"mapping\.fc(\d+)\.(weight|bias)", key):
        return {f"style.{int(match[1]) + 1}.{match[2]}": tensor}
    match = re.fullmatch(r"synthesis\.b(\d+)\.(conv0|conv1|torgb)\.([a-z_.]+)", key)
    if not match:
        raise InputError(f"{key} has no place in a StyleGAN2 with skip connections")
    layer, noise = _layer(int(match[1]), match[2], key)
    if match[3] == "noise_const":
        return {noise: tensor[None, None]}
    return {f"{layer}.{name}": value for name, value in _part(match[3], match[2] == "torgb", tensor, key).items()}


def _part(part: str, rgb: bool, tensor: Tensor, key: str) -> dict[str, Tensor]:
    """A tensor of one layer: our name within the layer, our shape."""
    if part == "weight":
        return {"conv.weight": tensor[None]}
    if part in ("affine.weight", "affine.bias"):
        return {f"conv.modulation.{part[7:]}": tensor}
    if part == "bias":
        return {"bias": tensor.reshape(1, -1, 1, 1)} if rgb else {"activate.bias": tensor}
    if part == "noise_strength":
        return {"noise.weight": tensor.reshape(1)}
    raise InputError(f"{key} has no place in a StyleGAN2 with skip connections")


def _layer(resolution: int, name: str, key: str) -> tuple[str, str]:
    """Our name of a layer of the block `resolution`, and of its noise image."""
    if resolution & (resolution - 1) or not 4 <= resolution <= MAX_SIZE or (resolution == 4 and name == "conv0"):
        raise InputError(f"{key} lies in a block of {resolution} pixels, which no StyleGAN2 has")
    if resolution == 4:
        return ("to_rgb1", "") if name == "torgb" else ("conv1", "noises.noise_0")
    j = resolution.bit_length() - 4  # 8 pixels: 0
    if name == "torgb":
        return f"to_rgbs.{j}", ""
    index = 2 * j + (name == "conv1")
    return f"convs.{index}", f"noises.noise_{index + 1}"


def _same_filter(key: str, tensor: Tensor) -> None:
    expected = binomial_kernel(factor=1)
    scale = tensor.sum()
    if tensor.shape != expected.shape or not torch.allclose(tensor / scale, expected / expected.sum(), atol=1e-4):
        raise InputError(f"{key} is another filter than [1,3,3,1]")


# ---------------------------------------------------------------- NVIDIA, TensorFlow


def _tensorflow(content: reader.Content, network: Thing) -> Converted:
    specs: dict[str, Any] = {}
    _variables(network, specs)
    if any("LabelConcat" in key for key in specs):
        raise InputError("it is conditional (it has LabelConcat): only networks without classes can be edited")
    if "4x4/Conv/mod_weight" not in specs:
        raise InputError("it is no StyleGAN2 of TensorFlow: it has no 4x4/Conv/mod_weight")
    wanted = {key: value for key, value in specs.items() if key.rpartition("/")[2] != "lod"}
    state: dict[str, Tensor] = {}
    for key, tensor in content.take(wanted).items():
        state |= _tensorflow_key(key, tensor)
    return Converted("NVIDIA's TensorFlow", state)


def _variables(network: Any, specs: dict[str, Any], depth: int = 0) -> None:
    if not isinstance(network, Thing) or not isinstance(network.state, dict) or depth > 2:
        raise InputError("its networks are not nested as networks are")
    for name, value in network.state.get("variables") or ():
        specs[str(name)] = value
    for part in (network.state.get("components") or {}).values():
        _variables(part, specs, depth + 1)


def _tensorflow_key(key: str, tensor: Tensor) -> dict[str, Tensor]:
    """One variable under our key: kernels from height, width, in, out; dense layers transposed."""
    if key == "dlatent_avg":
        return {"w_mean": tensor}
    if key == "4x4/Const/const":
        return {"input.input": tensor}
    if match := re.fullmatch(r"noise(\d+)", key):
        return {f"noises.noise_{match[1]}": tensor}
    if match := re.fullmatch(r"Dense(\d+)/(weight|bias)", key):
        return {f"style.{int(match[1]) + 1}.{match[2]}": tensor.t() if match[2] == "weight" else tensor}
    match = re.fullmatch(r"(\d+)x\1/(Conv|Conv0_up|Conv1|ToRGB)/([a-z_]+)", key)
    if not match:
        raise InputError(f"{key[:60]} has no place in a StyleGAN2 with skip connections")
    name = {"Conv": "conv1", "Conv0_up": "conv0", "Conv1": "conv1", "ToRGB": "torgb"}[match[2]]
    layer, part = _layer(int(match[1]), name, key)[0], match[3]
    if part == "weight":
        tensor = tensor.permute(3, 2, 0, 1)
        tensor = tensor.flip(2, 3) if match[2] == "Conv0_up" else tensor
    elif part == "mod_weight":
        part, tensor = "affine.weight", tensor.t()
    elif part == "mod_bias":
        part, tensor = "affine.bias", tensor + 1
    return {f"{layer}.{ours}": value for ours, value in _part(part, name == "torgb", tensor, key).items()}


# ---------------------------------------------------------------- in our form


def numbers(state: Mapping[str, Tensor], split: tuple[int, int]) -> dict[str, Any]:
    """Sizes for `pipeline.models.stylegan2.build`: resolution, widths, mapping depth and style dimension."""
    convs = sum(bool(re.fullmatch(r"convs\.\d+\.conv\.weight", key)) for key in state)
    mapping = sum(bool(re.fullmatch(r"style\.\d+\.weight", key)) for key in state)
    size = 4 * 2 ** (convs // 2)
    if convs < 2 or convs % 2 or size > MAX_SIZE:
        raise InputError(f"it has {convs} convolutions behind the first: 2 a resolution up to {MAX_SIZE} are expected")
    widths = {4: shape_of(state, "conv1.conv.weight", 5)[1]}
    for k in range(convs // 2):
        widths[2 ** (k + 3)] = shape_of(state, f"convs.{2 * k + 1}.conv.weight", 5)[1]
    z_dim = shape_of(state, "style.1.weight", 2)[1]
    style_dim = shape_of(state, "conv1.conv.modulation.weight", 2)[1]
    if z_dim != style_dim:
        raise InputError(f"its z has {z_dim} numbers and its w {style_dim}: only equal ones are supported")
    widths_by_size = {str(resolution): width for resolution, width in widths.items()}
    return {"size": size, "style_dim": style_dim, "widths": widths_by_size, "n_mlp": mapping, "split": list(split)}


def _assembled(converted: Converted, split: tuple[int, int], seed: int) -> Imported:
    model, notes, state = numbers(converted.state, split), list(converted.notes), dict(converted.state)
    with weights.Unfilled():
        generator = build(model)
    expected = {key: tensor.shape for key, tensor in generator.state_dict().items()}
    for key in [key for key in state if KERNELS.fullmatch(key)]:
        _same_filter(key, state.pop(key))
    mean = state.pop("w_mean", None)
    if surplus := [key for key in state if key not in expected]:
        raise InputError(f"{listed(surplus)} have no place in a StyleGAN2 of {model['size']} pixels")
    draw = torch.Generator().manual_seed(seed)
    missing = [key for key in expected if key not in state and not KERNELS.fullmatch(key)]
    if absent := [key for key in missing if not re.fullmatch(r"noises\.noise_\d+|.*\.noise\.weight", key)]:
        raise InputError(f"{listed(absent)} missing")
    for key in missing:
        if key.startswith("noises."):
            state[key] = torch.randn(expected[key], generator=draw)
        else:
            state[key] = torch.zeros(expected[key])
    if drawn := sum(key.startswith("noises.") for key in missing):
        notes.append(f"{drawn} noise images were missing and are drawn from the seed {seed}")
    for key, tensor in state.items():
        if not tensor.is_floating_point():
            raise InputError(f"{key} holds whole numbers")
        if tensor.shape != expected[key]:
            raise InputError(f"{key} has the shape {list(tensor.shape)}: {list(expected[key])} is expected")
    state |= {key: binomial_kernel(factor=2) for key in expected if KERNELS.fullmatch(key)}
    generator.load_state_dict({key: tensor.contiguous() for key, tensor in state.items()}, assign=True)
    generator.eval().requires_grad_(False)
    generator.w_mean = _mean(generator, mean, draw, notes)
    return Imported(converted.kind, generator, model, notes)


def _mean(generator: Generator, mean: Tensor | None, draw: torch.Generator, notes: list[str]) -> Tensor:
    """The mean w [D] of the file, or of drawn codes."""
    dim = generator.style_dim
    if mean is None:
        notes.append(f"the mean w was missing and is the mean of {MEAN_OF} drawn codes")
        return generator.mapping(torch.randn(MEAN_OF, dim, generator=draw)).mean(dim=0)
    if mean.shape != (dim,):
        raise InputError(f"its mean w has the shape {list(mean.shape)}: [{dim}] is expected")
    return mean


@torch.no_grad()
def example_images(generator: Generator, seed: int) -> list[list[Tensor]]:
    """Rows of example images [3,R,R]: a few codes truncated to psi 0.7, and the same codes untruncated."""
    count = 4 if generator.size <= 256 else 2
    z = torch.randn(count, generator.style_dim, generator=torch.Generator().manual_seed(seed))
    w = generator.mapping(z)
    return [[generator(generator.repeat(generator.truncate(row[None], psi)))[0] for row in w] for psi in (0.7, 1.0)]
