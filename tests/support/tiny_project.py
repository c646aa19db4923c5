"""A whole project in a folder whose networks are small and random: params.yaml, one domain, its weights."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
import yaml

ROOT = Path(__file__).resolve().parents[2]
R, D, E = 16, 12, 20
WIDTHS = {4: 16, 8: 12, 16: 10}
ENCODER = {"resolution": R, "widths": [6, 8, 12, 16], "rows": 6, "style_dim": D, "split": [2, 4]}
CLIP = {
    "embed_dim": E,
    "vision": {"image_size": 32, "layers": [1, 1, 1, 1], "width": 8, "head_width": 16, "patch_size": None},
    "text": {"context_length": 40, "width": 24, "heads": 2, "layers": 1},
    "merges": 300,
}
VOCABULARY = ["a", "face", "with", "red", "hair", "portrait", "of", "happy", "eyeglasses"]
PARAMS = {
    "editors": {"latent": ["deltaedit_g"], "baseline": ["identity_editor", "counterfactual"], "diffusion": []},
    "sample": {"count": 32, "seed": 0, "truncation": 1.0, "redrawn": 0.5, "shard": 16},
    "invert": {"batch": 8, "refine": 2, "detail": 8},
    "channel_mask": {
        **{"threshold": 0.01, "same_sign": False, "top_share": None, "max_sigma": None, "delta_ridge": None},
    },
    "edit_latent": {
        "deltaedit_g": {
            "strength": 1.0,
        },
        "deltaedit_gp": {
            **{"strength": 1.0, "candidate_strengths": [0.5, 1.0], "clip_progress": 0.95, "detail_decay": 0.5},
            "region_share": 0.98,
        },
    },
    "edit_baseline": {"identity_editor": {"strength": 1.0}, "counterfactual": {"strength": 1.0}},
}
DOMAIN = {
    "resolution": R,
    "neutral": "face",
    "renderer": "portraits",
    "aligned": None,
    "templates": ["a portrait of {}"],
    "prompts": [{"text": "face with red hair", "attribute": "hair_color", "value": "red"}],
    "level_split": [2, 4],
}


def make(root: Path) -> Path:
    """Write the project into `root`; the same bytes every time."""
    from pipeline.delta_mapper import DeltaMapper
    from pipeline.models import stylegan2
    from pipeline.models.clip import Clip
    from pipeline.models.e4e import Encoder
    from pipeline.storage import weights

    torch.manual_seed(7)
    model = {"size": R, "style_dim": D, "widths": {str(k): v for k, v in WIDTHS.items()}, "n_mlp": 2, "split": [2, 4]}
    made = stylegan2.build(model)
    networks = {
        "generator": (dict(made.state_dict()) | {"w_mean": torch.zeros(D)}, model),
        "encoder": (Encoder(**ENCODER).state_dict(), ENCODER),
        "clip": (Clip(CLIP).state_dict(), CLIP),
    }
    layout = made.layout
    mapper = DeltaMapper(layout, E)
    networks["mapper"] = mapper.state_dict(), {"dims": list(layout.dims), "split": list(layout.split), "clip_dim": E}
    relevance = torch.nn.functional.normalize(torch.randn(layout.size, E), dim=1)
    networks["relevance"] = {"relevance": relevance}, {}
    for name, (tensors, numbers) in networks.items():
        meta = {"model": numbers, "vocabulary": VOCABULARY} if name == "clip" else {"model": numbers}
        weights.save(root / f"data/pretrained/tiny/{name}.safetensors", tensors, meta)
    (root / "domains").mkdir()
    (root / "domains/tiny.yaml").write_text(yaml.safe_dump(DOMAIN), encoding="utf-8")
    (root / "params.yaml").write_text(yaml.safe_dump(PARAMS), encoding="utf-8")
    return root


def copy(project: Path, to: Path) -> Path:
    """A copy that a test may change."""
    return Path(shutil.copytree(project, to))
