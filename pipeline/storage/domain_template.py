"""The file of a new domain, to fill in: what is known of it, and sizes for the networks it has to train."""

from __future__ import annotations

import re
from typing import Any

import yaml

from pipeline.runtime.errors import InputError

TAKEN = ("pretrained", "pretraining")  # folders of data/ that are no domain's
MOST_SEEN = 256  # pixels that an encoder looks at
TEXT = """# Made by {origin}. Fill in what is marked TODO.

resolution: {resolution}
renderer: null
aligned: null # ffhq: its pictures are faces, cut out as FFHQ's
neutral: {neutral} # TODO the word for any picture of this domain, such as cat
clip_normalise: true # OpenAI's and open_clip's networks expect their mean and deviation; that of portraits: false
level_split: [{split}] # how many style convolutions are coarse, and coarse or medium; the rest is fine
{networks}
words: null # what CLIP reads for words it was never taught; those of the public ones read the web
templates: imagenet.txt # a text's direction is averaged over these

prompts: # TODO what to edit towards, and what `evaluate` measures; these are examples
{prompts}

defaults: # what null in params.yaml stands for
  prepare: # TODO numbers of pictures: together no more than there are
    source: {source}
    train: {train}
    val: {val}
    test: {test}
  invert:
    batch: {batch}
    detail: 0 # or 64, say: what codes lack of a picture comes back where an edit leaves it alone (pipeline/models/feature_residual.py)
  cache:
    batch: {batch}
  relevance: {{}}
  mapper:
    lr: {lr}
  diffusion: {{}}
  evaluate:
    batch: 64
  sample: {{}}
  pretrain: # sizes of the networks that `deltaspace pretrain {name}` trains, and pictures to train them on in all
{plans}
"""


def domain_file(name: str) -> str:
    """The file of a domain, relative to the project."""
    return f"domains/{name}.yaml"


def check_name(name: str) -> None:
    """InputError unless a domain may be called so."""
    if not re.fullmatch(r"[a-z][a-z0-9_]{0,39}", name) or name in TAKEN:
        raise InputError(f"'{name[:60]}' is no name for a domain: use small letters, digits and _, such as my_cats")


def text(
    name: str,
    origin: str,
    resolution: int,
    neutral: str,
    plans: dict[str, Any],
    split: tuple[int, int] = (3, 7),
    source: str = "null # TODO a folder, .zip or .parquet of photographs like those the generator was trained on",
    counts: tuple[int, int, int] = (20_000, 1000, 2000),
    networks: str = "",
) -> str:
    """The whole file. origin: what made it, in words. plans: `defaults.pretrain`. source, networks: as YAML.

    counts: pictures to train on, those of them for validation, and to test on.
    """
    train, val, test = counts
    written = yaml.safe_dump(plans, sort_keys=False, default_flow_style=None, width=100)
    return TEXT.format(
        name=name,
        origin=origin,
        resolution=resolution,
        neutral=quoted(neutral),
        split=", ".join(map(str, split)),
        networks=networks,
        prompts="\n".join(f"  - text: {quoted(f'{word} {neutral}')}" for word in ("old", "bright", "blue")),
        source=source,
        train=train,
        val=val,
        test=test,
        batch=16 if resolution >= 256 else 64,
        lr=0.5 if resolution > 64 else 2.0,  # of the mapper: narrow ones bear more
        plans="\n".join(f"    {line}" for line in written.splitlines()),
    )


def quoted(text: str) -> str:
    """`text` as YAML reads it back, whatever it holds."""
    return yaml.safe_dump(text, default_style='"', width=10**6, allow_unicode=True).strip()


def counts_of(pictures: int) -> tuple[int, int, int]:
    """How a folder of so many pictures is shared out: to train on, those of them for validation, and to test on."""
    test = min(2000, pictures // 10)
    train = min(58_000, pictures - test)
    return train, min(1000, train // 20), test


# ---------------------------------------------------------------- sizes


def plans_for(generator: dict[str, Any]) -> dict[str, Any]:
    """Plans for the encoder and the denoiser of a generator with these numbers (size, style_dim)."""
    size = generator["size"]
    plans = {"encoder": encoder(size, generator["style_dim"])} if size >= 16 else {}
    return {**plans, "denoiser": denoiser(size)}


def plans_from_nothing(size: int) -> dict[str, Any]:
    """Plans for all three, where there are pictures of `size` pixels and nothing else."""
    first = generator(size)
    return {"generator": first, **plans_for(first["model"])}


def generator(size: int) -> dict[str, Any]:
    """Up to 64 pixels: what a CPU trains. Above: StyleGAN2-ADA's `auto`, for a GPU.

    At 32 pixels all three plans together took 37 minutes of two cores, a torchrun process on each.
    """
    sizes = [2**k for k in range(2, size.bit_length())]
    small = size <= 64
    if small:
        widths = {at: 64 if at < 64 else 32 for at in sizes}
        judge = {at: min(128, 1024 // at) for at in sizes}
    else:
        widths = {at: min(512, (16384 if size < 512 else 32768) // at) for at in sizes}
        judge = widths
    batch, images = 16 if small else 32, {32: 120_000, 64: 2_000_000}.get(size, 200_000 if small else 10_000_000)
    return {
        "model": {
            "size": size,
            "style_dim": 128 if small else 512,
            "n_mlp": 8,
            "widths": widths,
            "discriminator": dict(judge),  # a copy: YAML would write the same one as an alias
        },
        "images": images,
        **({"images_half_size": max(images // 8, 37_500)} if size >= 16 else {}),
        "batch": batch,
        "r1": round(0.0005 * size**2 / batch, 3),  # grows with the pixels, as StyleGAN2-ADA's
    }


def encoder(size: int, style_dim: int) -> dict[str, Any]:
    """The rows of w+ are two per resolution; the encoder looks at 256 pixels at most, as e4e does."""
    seen = min(size, MOST_SEEN)
    widths = [48, 80, 96, 104] if seen <= 64 else [48, 96, 160, 256] if seen == 128 else [64, 128, 256, 512]
    rows = 2 * size.bit_length() - 4
    large = size > 64
    return {
        "model": {"resolution": seen, "widths": widths, "rows": rows, "style_dim": style_dim},
        "images": 800_000 if large else 250_000 if size == 64 else 40_000,
        "batch": 16,
        "progressive": [40_000, 4000] if large else [3000, 300],  # before row 1 gets its own difference, then per row
        "weights": {"latent": 0.02},
    }


def denoiser(size: int) -> dict[str, Any]:
    """Up to 64 pixels what a CPU trains; from 256 on DiffAE's network for 256 pixels, behind a patch.

    A flow, half of whose pictures are the generator's edits of its own: on noise and pictures alone (`eps`), one of 64
    pixels hardly heard the style.
    """
    large = size >= 256
    if large:
        model = {"channels": 128, "mult": [1, 1, 2, 2, 4, 4], "blocks": 2, "patch": size // 256}
        model |= {"time_dim": 512, "style_dim": 512}
    elif size >= 32:
        model = {"channels": 64 if size > 64 else 32, "mult": [2, 2, 3, 3], "patch": 2}
    else:
        model = {"channels": 32, "mult": [2] * (size.bit_length() - 2), "patch": 1}
    images = 2_000_000 if large else 200_000 if size > 32 else 16_000
    model["objective"] = "flow"
    return {"model": model, "images": images, "batch": 32, "lr": 1e-4 if large else 1e-3, "made": 0.5, "led": True}
