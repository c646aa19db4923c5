"""IR-SE50 as e4e, pSp and ArcFace publish it: the tables of keys and shapes, files of it, and its arithmetic once more.

Written from the papers' facts, without our modules, in double precision and one operation at a time.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

PUBLISHED = (64, 128, 256, 512)
NARROW = (16, 32, 48, 64)
DEPTHS = (3, 4, 14, 3)
Shapes = dict[str, tuple[int, ...]]

# ---------------------------------------------------------------- keys and shapes


def _norm(prefix: str, width: int) -> Shapes:
    named = ("weight", "bias", "running_mean", "running_var")
    return {f"{prefix}.{name}": (width,) for name in named} | {f"{prefix}.num_batches_tracked": ()}


def body_shapes(widths: tuple[int, ...] = PUBLISHED) -> Shapes:
    first = widths[0]
    shapes: Shapes = {"input_layer.0.weight": (first, 3, 3, 3), "input_layer.2.weight": (first,)}
    shapes |= _norm("input_layer.1", first)
    index, inputs = 0, first
    for width, depth in zip(widths, DEPTHS, strict=True):
        for _ in range(depth):
            block = f"body.{index}"
            if inputs != width:
                shapes |= {f"{block}.shortcut_layer.0.weight": (width, inputs, 1, 1)}
                shapes |= _norm(f"{block}.shortcut_layer.1", width)
            shapes |= _norm(f"{block}.res_layer.0", inputs) | _norm(f"{block}.res_layer.4", width)
            shapes |= {
                f"{block}.res_layer.1.weight": (width, inputs, 3, 3),
                f"{block}.res_layer.2.weight": (width,),
                f"{block}.res_layer.3.weight": (width, width, 3, 3),
                f"{block}.res_layer.5.fc1.weight": (width // 16, width, 1, 1),
                f"{block}.res_layer.5.fc2.weight": (width, width // 16, 1, 1),
            }
            index, inputs = index + 1, width
    return shapes


def encoder_shapes(rows: int, widths: tuple[int, ...] = PUBLISHED, dim: int = 512, size: int = 256) -> Shapes:
    shapes = body_shapes(widths)
    top = widths[3]
    for name, width in (("latlayer1", widths[2]), ("latlayer2", widths[1])):
        shapes |= {f"{name}.weight": (top, width, 1, 1), f"{name}.bias": (top,)}
    for row in range(rows):
        spatial = size // 16 if row < 3 else size // 8 if row < 7 else size // 4
        for step in range(int(math.log2(spatial))):
            shapes |= {f"styles.{row}.convs.{2 * step}.weight": (top, top, 3, 3)}
            shapes |= {f"styles.{row}.convs.{2 * step}.bias": (top,)}
        shapes |= {f"styles.{row}.linear.weight": (dim, top), f"styles.{row}.linear.bias": (dim,)}
    return shapes


def face_shapes(widths: tuple[int, ...] = PUBLISHED, dim: int = 512) -> Shapes:
    shapes = body_shapes(widths) | _norm("output_layer.0", widths[3]) | _norm("output_layer.4", dim)
    return shapes | {"output_layer.3.weight": (dim, widths[3] * 49), "output_layer.3.bias": (dim,)}


# ---------------------------------------------------------------- files


def drawn(shapes: Shapes, seed: int = 0) -> dict[str, Tensor]:
    """Weights under which every tensor matters and nothing explodes."""
    draw, state = torch.Generator().manual_seed(seed), {}
    for key, shape in shapes.items():
        if key.endswith("num_batches_tracked"):
            state[key] = torch.tensor(1000)
        elif key.endswith("running_var"):
            state[key] = torch.rand(shape, generator=draw) + 0.5
        elif len(shape) > 1:
            fan = 1.0 if "linear" in key else 1 / math.sqrt(math.prod(shape[1:]))
            state[key] = torch.randn(shape, generator=draw) * fan
        else:
            centre = 0.25 if key.endswith(".2.weight") else 1.0 if key.endswith(".weight") else 0.0
            state[key] = centre + 0.2 * torch.randn(shape, generator=draw)
    return state


def checkpoint(encoder: dict[str, Tensor], decoder: dict[str, Tensor], mean: Tensor | None, **opts: Any) -> dict:
    """What e4e's and pSp's training leaves: one state dict of both, the mean code, the options."""
    state = {f"encoder.{k}": v for k, v in encoder.items()} | {f"decoder.{k}": v for k, v in decoder.items()}
    content: dict[str, Any] = {"state_dict": state, "opts": {"encoder_type": "Encoder4Editing"} | opts}
    return content if mean is None else content | {"latent_avg": mean}


def saved(path: Path, content: object, legacy: bool = False) -> Path:
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    return path


# ---------------------------------------------------------------- arithmetic


class Plain:
    """The published arithmetic on a state dict."""

    def __init__(self, state: dict[str, Tensor]) -> None:
        self.t = {key: value.double() for key, value in state.items()}

    def norm(self, x: Tensor, name: str) -> Tensor:
        mean, var, weight, bias = (
            self.t[f"{name}.{part}"].reshape(-1, *[1] * (x.dim() - 2))
            for part in ("running_mean", "running_var", "weight", "bias")
        )
        return (x - mean) / (var + 1e-5).sqrt() * weight + bias

    def prelu(self, x: Tensor, name: str) -> Tensor:
        return torch.where(x > 0, x, x * self.t[f"{name}.weight"][:, None, None])

    def conv(self, x: Tensor, name: str, stride: int = 1, padding: int = 0) -> Tensor:
        return F.conv2d(x, self.t[f"{name}.weight"], self.t.get(f"{name}.bias"), stride, padding)

    def bottleneck(self, x: Tensor, name: str, stride: int) -> Tensor:
        if f"{name}.shortcut_layer.0.weight" in self.t:
            short = self.norm(self.conv(x, f"{name}.shortcut_layer.0", stride), f"{name}.shortcut_layer.1")
        else:
            short = x[:, :, ::stride, ::stride]
        y = self.conv(self.norm(x, f"{name}.res_layer.0"), f"{name}.res_layer.1", 1, 1)
        y = self.conv(self.prelu(y, f"{name}.res_layer.2"), f"{name}.res_layer.3", stride, 1)
        y = self.norm(y, f"{name}.res_layer.4")
        said = self.conv(y.mean(dim=(2, 3), keepdim=True), f"{name}.res_layer.5.fc1").clamp(min=0)
        return y * (1 / (1 + torch.exp(-self.conv(said, f"{name}.res_layer.5.fc2")))) + short

    def after(self, images: Tensor) -> list[Tensor]:
        """What every bottleneck gives."""
        x = self.norm(self.conv(images.double(), "input_layer.0", 1, 1), "input_layer.1")
        x, found = self.prelu(x, "input_layer.2"), []
        for index in range(24):
            x = self.bottleneck(x, f"body.{index}", 2 if index in (0, 3, 7, 21) else 1)
            found.append(x)
        return found

    def style(self, x: Tensor, row: int) -> Tensor:
        for step in range(int(math.log2(x.shape[-1]))):
            x = self.conv(x, f"styles.{row}.convs.{2 * step}", 2, 1)
            x = torch.where(x > 0, x, 0.01 * x)
        weight, x = self.t[f"styles.{row}.linear.weight"], x.reshape(len(x), -1)
        return x @ (weight / math.sqrt(x.shape[1])).T + self.t[f"styles.{row}.linear.bias"]

    def codes(self, images: Tensor, rows: int, mean: Tensor, psp: bool = False) -> Tensor:
        """images [B,3,size,size] -> w_plus [B,L,D]."""
        found = self.after(images)
        c1, c2, c3 = found[6], found[20], found[23]
        p2 = enlarged(c3) + self.conv(c2, "latlayer1")
        p1 = enlarged(p2) + self.conv(c1, "latlayer2")
        own = [self.style(c3 if row < 3 else p2 if row < 7 else p1, row) for row in range(rows)]
        if not psp:
            own = [own[0], *(own[0] + difference for difference in own[1:])]
        return torch.stack(own, dim=1) + mean.double()

    def face(self, images: Tensor) -> Tensor:
        """images [B,3,256,256] -> unit embeddings [B,dim]."""
        x = self.after(averaged(images.double()[:, :, 35:223, 32:220], 112))[-1]
        x = self.norm(x, "output_layer.0").reshape(len(x), -1)
        x = x @ self.t["output_layer.3.weight"].T + self.t["output_layer.3.bias"]
        x = self.norm(x, "output_layer.4")
        return x / x.square().sum(dim=1, keepdim=True).sqrt()


def enlarged(x: Tensor) -> Tensor:
    """Twice the size, linear between pixels whose corners coincide."""
    small = x.shape[-1]
    places = torch.arange(2 * small).double() * (small - 1) / (2 * small - 1)
    weights = (1 - (places[:, None] - torch.arange(small)[None]).abs()).clamp(min=0)
    return weights @ x @ weights.T


def averaged(x: Tensor, size: int) -> Tensor:
    """Every pixel the mean of the pixels that it touches, whole."""
    n = x.shape[-1]
    spans = [slice(i * n // size, -(-(i + 1) * n // size)) for i in range(size)]
    rows = torch.stack([x[:, :, span].mean(dim=2) for span in spans], dim=2)
    return torch.stack([rows[:, :, :, span].mean(dim=3) for span in spans], dim=3)
