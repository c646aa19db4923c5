"""Files in the published layouts, written at small size: what other people's programs would have left."""

from __future__ import annotations

import collections
import pickle
import sys
import types
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline.models.stylegan2 import Generator, build

R, D, N_MLP = 32, 12, 3
WIDTHS = {4: 10, 8: 9, 16: 8, 32: 7}
MODEL = {"size": R, "style_dim": D, "widths": {str(k): v for k, v in WIDTHS.items()}, "n_mlp": N_MLP, "split": [3, 7]}


def generator(seed: int = 0) -> Generator:
    """A small generator all of whose parameters matter."""
    torch.manual_seed(seed)
    made = build(MODEL).eval().requires_grad_(False)
    for name, parameter in made.named_parameters():
        if name.endswith(("noise.weight", "bias")):
            parameter.normal_(std=0.3).add_(1.0 if "modulation" in name else 0.0)
    made.w_mean.normal_()
    return made


class EasyDict(dict):
    """As NVIDIA's files name it."""


class Module:
    """A module as NVIDIA's files hold it: rebuilt by a function that gets its class's source text."""

    source = "import os; raise SystemExit('the source text was run')"

    def __init__(self, class_name: str, parameters: dict, buffers: dict, modules: dict, **attributes: Any) -> None:
        self.class_name = class_name
        self.state = {
            "training": False,
            "_parameters": {name: torch.nn.Parameter(value) for name, value in parameters.items()},
            "_buffers": buffers,
            "_non_persistent_buffers_set": set(),
            "_backward_hooks": collections.OrderedDict(),
            "_modules": modules,
            **attributes,
        }

    def __reduce__(self) -> tuple:
        rebuild = sys.modules["torch_utils.persistence"]._reconstruct_persistent_obj  # type: ignore[attr-defined]
        meta = EasyDict(
            type="class", version=6, module_src=self.source, class_name=self.class_name, state=EasyDict(self.state)
        )
        return rebuild, (meta,)


class Network:
    """As TensorFlow's files hold it."""

    def __init__(self, name: str, variables: dict[str, np.ndarray], **components: Network) -> None:
        self.state = {
            "version": 4,
            "name": name,
            "static_kwargs": EasyDict(label_size=0),
            "components": EasyDict(components),
            "build_module_src": Module.source,
            "build_func_name": "G_main",
            "variables": list(variables.items()),
        }

    def __getstate__(self) -> dict:
        return self.state

    def __setstate__(self, state: dict) -> None:
        raise AssertionError("the object was built")


def _rebuild(meta: dict) -> None:
    raise AssertionError("the object was built")


@contextmanager
def nvidia_names() -> Iterator[None]:
    """The names under which NVIDIA's programs pickle, there for as long as a file is written."""
    named = {"dnnlib": {}, "dnnlib.util": {"EasyDict": EasyDict}, "dnnlib.tflib": {}}
    named |= {"dnnlib.tflib.network": {"Network": Network}, "torch_utils": {}}
    named |= {"torch_utils.persistence": {"_reconstruct_persistent_obj": _rebuild}}
    for module, content in named.items():
        sys.modules[module] = types.ModuleType(module)
        for name, value in content.items():
            setattr(sys.modules[module], name, value)
            value.__module__, value.__qualname__, value.__name__ = module, name, name
    try:
        yield
    finally:
        for module in named:
            del sys.modules[module]


def pickled(path: Path, value: Any, protocol: int = 4) -> Path:
    with nvidia_names():
        path.write_bytes(pickle.dumps(value, protocol=protocol))
    return path


def ada_module(g: Generator, filters: Tensor | None = None) -> Module:
    """A generator as stylegan2-ada-pytorch holds it."""
    s = g.state_dict()
    taps = torch.tensor([1.0, 3, 3, 1]) if filters is None else filters
    kernel = torch.outer(taps, taps) / taps.sum() ** 2

    def affine(name: str) -> Module:
        pair = {part: s[f"{name}.conv.modulation.{part}"] for part in ("weight", "bias")}
        return Module("FullyConnectedLayer", pair, {}, {}, bias_gain=1.0)

    def conv(name: str, noise: int, resolution: int) -> Module:
        parameters = {
            "weight": s[f"{name}.conv.weight"][0],
            "bias": s[f"{name}.activate.bias"],
            "noise_strength": s[f"{name}.noise.weight"][0],
        }
        buffers = {"resample_filter": kernel, "noise_const": s[f"noises.noise_{noise}"][0, 0]}
        return Module("SynthesisLayer", parameters, buffers, {"affine": affine(name)}, conv_clamp=None)

    def rgb(name: str) -> Module:
        parameters = {"weight": s[f"{name}.conv.weight"][0], "bias": s[f"{name}.bias"].flatten()}
        return Module("ToRGBLayer", parameters, {}, {"affine": affine(name)}, conv_clamp=None)

    first = {"conv1": conv("conv1", 0, 4), "torgb": rgb("to_rgb1")}
    blocks = {"b4": Module("SynthesisBlock", {"const": s["input.input"][0]}, {"resample_filter": kernel}, first)}
    for j in range(len(g.to_rgbs)):
        r = 2 ** (j + 3)
        layers = {
            "conv0": conv(f"convs.{2 * j}", 2 * j + 1, r),
            "conv1": conv(f"convs.{2 * j + 1}", 2 * j + 2, r),
            "torgb": rgb(f"to_rgbs.{j}"),
        }
        blocks[f"b{r}"] = Module("SynthesisBlock", {}, {"resample_filter": kernel}, layers)
    layers = {
        f"fc{i}": Module(
            "FullyConnectedLayer",
            {part: s[f"style.{i + 1}.{part}"] for part in ("weight", "bias")},
            {},
            {},
            bias_gain=0.01,
        )
        for i in range(N_MLP)
    }
    parts = {
        "synthesis": Module("SynthesisNetwork", {}, {}, blocks, img_resolution=R),
        "mapping": Module("MappingNetwork", {}, {"w_avg": g.w_mean.clone()}, layers),
    }
    return Module("Generator", {}, {}, parts, z_dim=D, c_dim=0, w_dim=D, img_resolution=R)


def ada(path: Path, g: Generator, nested: bool = True, protocol: int = 4) -> Path:
    """A stylegan2-ada-pytorch file; not `nested`: the flat arguments of the stylegan3 repository."""
    module = ada_module(g)
    block = {"channel_base": 32768, "channel_max": 512}
    module.state["_init_kwargs"] = EasyDict(synthesis_kwargs=EasyDict(block)) if nested else EasyDict(block)
    other = Module("Discriminator", {"weight": torch.ones(2)}, {}, {})
    content = {"G": None, "D": other, "G_ema": module, "training_set_kwargs": EasyDict(path="x"), "augment_pipe": None}
    return pickled(path, content, protocol)


def tensorflow(path: Path, g: Generator) -> Path:
    """One of the original files: three networks, of which the last is the averaged generator."""
    s = {name: value.numpy() for name, value in g.state_dict().items()}

    def layer(ours: str, theirs: str, flip: bool = False) -> dict[str, np.ndarray]:
        kernel = s[f"{ours}.conv.weight"][0]
        kernel = (kernel[:, :, ::-1, ::-1] if flip else kernel).transpose(2, 3, 1, 0)
        found = {
            f"{theirs}/weight": kernel,
            f"{theirs}/mod_weight": s[f"{ours}.conv.modulation.weight"].T,
            f"{theirs}/mod_bias": s[f"{ours}.conv.modulation.bias"] - 1,
        }
        if "rgb" in ours:
            return {**found, f"{theirs}/bias": s[f"{ours}.bias"].reshape(3)}
        strength = s[f"{ours}.noise.weight"].reshape(())
        return {**found, f"{theirs}/bias": s[f"{ours}.activate.bias"], f"{theirs}/noise_strength": strength}

    variables = {"4x4/Const/const": s["input.input"], **layer("conv1", "4x4/Conv"), **layer("to_rgb1", "4x4/ToRGB")}
    for j in range(len(g.to_rgbs)):
        r = 2 ** (j + 3)
        variables |= layer(f"convs.{2 * j}", f"{r}x{r}/Conv0_up", flip=True)
        variables |= layer(f"convs.{2 * j + 1}", f"{r}x{r}/Conv1") | layer(f"to_rgbs.{j}", f"{r}x{r}/ToRGB")
    variables |= {f"noise{i}": s[f"noises.noise_{i}"] for i in range(2 * len(g.to_rgbs) + 1)}
    dense: dict[str, np.ndarray] = {}
    for i in range(N_MLP):
        dense |= {f"Dense{i}/weight": s[f"style.{i + 1}.weight"].T, f"Dense{i}/bias": s[f"style.{i + 1}.bias"]}
    variables["lod"] = np.float32(0)
    parts = {"synthesis": Network("G_synthesis", variables), "mapping": Network("G_mapping", dense)}
    average = Network("Gs", {"dlatent_avg": g.w_mean.numpy(), "lod": np.float32(0)}, **parts)
    return pickled(path, (Network("G", {}), Network("D", {}), average))
