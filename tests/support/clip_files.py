"""CLIPs in the published layouts, at small size, and what they compute restated in plain arithmetic."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

WORDS, CONTEXT, EMBED, PATCH, GRID = 49_408, 77, 20, 8, 3
VISION, TEXT, LAYERS = 128, 64, 2  # widths; OpenAI's heads are 64 wide


def openai(seed: int = 0, embed: int = EMBED, **sizes: int) -> dict[str, Tensor]:
    """A state dict in OpenAI's layout, random numbers of a trained network's size."""
    v, t = sizes.get("vision", VISION), sizes.get("text", TEXT)
    patch, grid = sizes.get("patch", PATCH), sizes.get("grid", GRID)
    draw = torch.Generator().manual_seed(seed)

    def random(*shape: int, scale: float | None = None) -> Tensor:
        return torch.randn(shape, generator=draw) * (shape[-1] ** -0.5 if scale is None else scale)

    state = {
        "visual.class_embedding": random(v),
        "visual.conv1.weight": random(v, 3, patch, patch, scale=(3 * patch * patch) ** -0.5),
        "visual.positional_embedding": random(grid * grid + 1, v, scale=0.3),
        "visual.proj": random(v, embed, scale=v**-0.5),
        "token_embedding.weight": random(WORDS, t, scale=1.0),
        "positional_embedding": random(CONTEXT, t, scale=0.3),
        "text_projection": random(t, embed, scale=t**-0.5),
        "logit_scale": torch.tensor(2.7),
    }
    for norm, width in (("visual.ln_pre", v), ("visual.ln_post", v), ("ln_final", t)):
        state |= {f"{norm}.weight": 1 + random(width, scale=0.1), f"{norm}.bias": random(width, scale=0.1)}
    for tower, width, layers in (
        ("visual.transformer", v, sizes.get("vision_layers", LAYERS)),
        ("transformer", t, sizes.get("text_layers", LAYERS)),
    ):
        for i in range(layers):
            block = f"{tower}.resblocks.{i}"
            for norm in ("ln_1", "ln_2"):
                state[f"{block}.{norm}.weight"] = 1 + random(width, scale=0.1)
                state[f"{block}.{norm}.bias"] = random(width, scale=0.1)
            for name, outputs, inputs in (
                ("attn.out_proj", width, width),
                ("mlp.c_fc", 4 * width, width),
                ("mlp.c_proj", width, 4 * width),
            ):
                state[f"{block}.{name}.weight"] = random(outputs, inputs)
                state[f"{block}.{name}.bias"] = random(outputs, scale=0.1)
            state[f"{block}.attn.in_proj_weight"] = random(3 * width, width)
            state[f"{block}.attn.in_proj_bias"] = random(3 * width, scale=0.1)
    return state


def hugging_face(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same network under the names of `CLIPModel`."""
    found: dict[str, Tensor] = {
        "logit_scale": state["logit_scale"],
        "visual_projection.weight": state["visual.proj"].T.contiguous(),
        "text_projection.weight": state["text_projection"].T.contiguous(),
        "text_model.embeddings.position_ids": torch.arange(CONTEXT)[None],  # older files hold these
        "vision_model.embeddings.position_ids": torch.arange(len(state["visual.positional_embedding"]))[None],
        "vision_model.embeddings.class_embedding": state["visual.class_embedding"],
        "vision_model.embeddings.patch_embedding.weight": state["visual.conv1.weight"],
        "vision_model.embeddings.position_embedding.weight": state["visual.positional_embedding"],
        "text_model.embeddings.token_embedding.weight": state["token_embedding.weight"],
        "text_model.embeddings.position_embedding.weight": state["positional_embedding"],
    }
    for part in ("weight", "bias"):
        found[f"vision_model.pre_layrnorm.{part}"] = state[f"visual.ln_pre.{part}"]
        found[f"vision_model.post_layernorm.{part}"] = state[f"visual.ln_post.{part}"]
        found[f"text_model.final_layer_norm.{part}"] = state[f"ln_final.{part}"]
    for theirs, ours in (("vision_model", "visual.transformer"), ("text_model", "transformer")):
        i = 0
        while f"{ours}.resblocks.{i}.ln_1.weight" in state:
            old, new = f"{ours}.resblocks.{i}", f"{theirs}.encoder.layers.{i}"
            for part in ("weight", "bias"):
                joined = state[f"{old}.attn.in_proj_{part}"].chunk(3)
                for name, value in zip(("q_proj", "k_proj", "v_proj"), joined, strict=True):
                    found[f"{new}.self_attn.{name}.{part}"] = value.clone()
                for a, b in (
                    ("self_attn.out_proj", "attn.out_proj"),
                    ("layer_norm1", "ln_1"),
                    ("layer_norm2", "ln_2"),
                    ("mlp.fc1", "mlp.c_fc"),
                    ("mlp.fc2", "mlp.c_proj"),
                ):
                    found[f"{new}.{a}.{part}"] = state[f"{old}.{b}.{part}"]
            i += 1
    return found


def config(path: Path, act: str = "quick_gelu", **changes: Any) -> Path:
    """The config.json that lies beside Hugging Face's weights."""
    towers = {"hidden_act": act, "layer_norm_eps": 1e-5, **changes}
    vision = {**towers, "num_attention_heads": VISION // 64, "hidden_size": VISION}
    text = {**towers, "num_attention_heads": TEXT // 64, "hidden_size": TEXT, "eos_token_id": 2}
    path.write_text(json.dumps({"model_type": "clip", "vision_config": vision, "text_config": text}))
    return path


class Node(nn.Module):
    """A tree of modules that holds a state dict."""

    def __init__(self, state: dict[str, Tensor]) -> None:
        super().__init__()
        inner: dict[str, dict[str, Tensor]] = {}
        for name, value in state.items():
            head, _, rest = name.partition(".")
            if rest:
                inner.setdefault(head, {})[rest] = value
            elif value.is_floating_point():
                self.register_parameter(head, nn.Parameter(value, requires_grad=False))
            else:
                self.register_buffer(head, value)
        for head, part in inner.items():
            self.add_module(head, Node(part))

    def forward(self, x: Tensor) -> Tensor:
        return x


def archive(path: Path, state: dict[str, Tensor]) -> Path:
    """OpenAI's own form: a TorchScript archive, most of its numbers float16, and three numbers beside the weights."""
    extra = {"input_resolution": 224, "context_length": CONTEXT, "vocab_size": WORDS}
    whole = {**half(state), **{name: torch.tensor(value) for name, value in extra.items()}}
    torch.jit.trace(Node(whole).eval(), torch.ones(1)).save(str(path))
    return path


def half(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """As OpenAI rounds: all but layer norms, embeddings and positions."""
    kept = ("ln_", "embedding", "logit_scale")
    return {name: value if any(part in name for part in kept) else value.half() for name, value in state.items()}


# ---------------------------------------------------------------- the same, in plain arithmetic


def quick(x: Tensor) -> Tensor:
    return x / (1 + torch.exp(-1.702 * x))


def norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt() * weight + bias


def plain_images(state: dict[str, Tensor], pixels: Tensor, gelu: Any = quick) -> Tensor:
    """Hugging Face's layout, pixels [B,3,r,r] as the tower sees them -> [B,E]."""
    v = "vision_model"
    weight = state[f"{v}.embeddings.patch_embedding.weight"]
    patch = weight.shape[-1]
    tiles = F.unfold(pixels, patch, stride=patch).transpose(1, 2) @ weight.flatten(1).T  # [B,tiles,width]
    first = state[f"{v}.embeddings.class_embedding"].expand(len(pixels), 1, -1)
    x = torch.cat([first, tiles], dim=1) + state[f"{v}.embeddings.position_embedding.weight"]
    x = norm(x, state[f"{v}.pre_layrnorm.weight"], state[f"{v}.pre_layrnorm.bias"])
    x = tower(state, v, x, None, gelu)[:, 0]
    x = norm(x, state[f"{v}.post_layernorm.weight"], state[f"{v}.post_layernorm.bias"])
    return x @ state["visual_projection.weight"].T


def plain_texts(state: dict[str, Tensor], tokens: Tensor, gelu: Any = quick) -> Tensor:
    """Hugging Face's layout, tokens [B,77] padded as theirs are (with the end mark) -> unit [B,E]."""
    ends = [int((row == WORDS - 1).nonzero()[0]) for row in tokens]
    padded = tokens.clone()
    for row, end in zip(padded, ends, strict=True):
        row[end:] = WORDS - 1
    x = state["text_model.embeddings.token_embedding.weight"][padded]
    x = x + state["text_model.embeddings.position_embedding.weight"]
    later = torch.ones(tokens.shape[1], tokens.shape[1]).triu(1).bool()
    x = tower(state, "text_model", x, later, gelu)
    x = norm(x, state["text_model.final_layer_norm.weight"], state["text_model.final_layer_norm.bias"])
    x = x[torch.arange(len(x)), ends] @ state["text_projection.weight"].T
    return x / x.norm(dim=1, keepdim=True)


def tower(state: dict[str, Tensor], name: str, x: Tensor, hidden: Tensor | None, gelu: Any) -> Tensor:
    i = 0
    while f"{name}.encoder.layers.{i}.layer_norm1.weight" in state:
        layer = {
            key.removeprefix(f"{name}.encoder.layers.{i}."): value
            for key, value in state.items()
            if key.startswith(f"{name}.encoder.layers.{i}.")
        }

        def linear(what: str, y: Tensor, layer: dict[str, Tensor] = layer) -> Tensor:
            return y @ layer[f"{what}.weight"].T + layer[f"{what}.bias"]

        y = norm(x, layer["layer_norm1.weight"], layer["layer_norm1.bias"])
        q, k, v = (linear(f"self_attn.{part}_proj", y).unflatten(-1, (-1, 64)).transpose(1, 2) for part in "qkv")
        scores = q @ k.transpose(2, 3) / 8
        if hidden is not None:
            scores = scores.masked_fill(hidden, -torch.inf)
        x = x + linear("self_attn.out_proj", (scores.softmax(-1) @ v).transpose(1, 2).flatten(2))
        y = norm(x, layer["layer_norm2.weight"], layer["layer_norm2.bias"])
        x = x + linear("mlp.fc2", gelu(linear("mlp.fc1", y)))
        i += 1
    return x
