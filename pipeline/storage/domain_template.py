"""Domain file of a new domain, to be completed by hand, with sizes of the networks that it has to train."""

from __future__ import annotations

import re
from typing import Any

import yaml

from pipeline.runtime.errors import InputError

RESERVED = ("pretrained", "pretraining")  # folders of data/ that belong to no domain
MAX_ENCODER_SIZE = 256  # pixels
TEXT = """# Made by {origin}. Fill in what is marked TODO.

resolution: {resolution}
renderer: null
aligned: null # ffhq: photographs are cut out around their face as FFHQ's are
neutral: {neutral} # TODO word for any image of this domain, such as cat
clip_normalise: true # OpenAI's and open_clip's networks expect their mean and deviation; that of portraits: false
level_split: [{split}] # number of style convolutions that are coarse, and that are coarse or medium; the rest is fine
{networks}
words: null # synonyms for words outside CLIP's training captions; public CLIPs need none
templates: imagenet.txt # a prompt's embedding is averaged over these

prompts: # TODO target texts of edits, which `evaluate` measures; these are examples
{prompts}

defaults: # values of null in params.yaml
  prepare: # TODO numbers of images: train and test together at most as many as there are
    source: {source}
    train: {train}
    val: {val}
    test: {test}
  invert:
    batch: {batch}
    detail: 0 # or 64: pixels of the feature residual, which restores details that codes lack
  cache:
    batch: {batch}
  relevance: {{}}
  mapper:
    lr: {lr}
  diffusion: {{}}
  evaluate:
    batch: 64
  sample: {{}}
  pretrain: # sizes of the networks that `deltaspace pretrain {name}` trains, and number of training images
{plans}
"""


def domain_file(name: str) -> str:
    """Path of a domain's file, relative to the project."""
    return f"domains/{name}.yaml"


def check_name(name: str) -> None:
    """Raise InputError unless `name` can be a domain's."""
    if not re.fullmatch(r"[a-z][a-z0-9_]{0,39}", name) or name in RESERVED:
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
    """Whole text of a domain file.

    name: of the domain.
    origin: command that writes it.
    resolution: side of the images in pixels.
    neutral: word for any of the images, such as cat.
    plans: `defaults.pretrain`.
    split: `level_split` of the style convolutions.
    source, networks: as YAML.
    counts: numbers of training images, of those of them for validation, and of test images.
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
        lr=0.5 if resolution > 64 else 2.0,  # of the mapper: narrow ones learn at a higher rate
        plans="\n".join(f"    {line}" for line in written.splitlines()),
    )


def quoted(text: str) -> str:
    """`text` as a YAML scalar."""
    return yaml.safe_dump(text, default_style='"', width=10**6, allow_unicode=True).strip()


def split_counts(images: int) -> tuple[int, int, int]:
    """Split of a folder of that many images: `counts` of `text`."""
    test = min(2000, images // 10)
    train = min(58_000, images - test)
    return train, min(1000, train // 20), test


# ---------------------------------------------------------------- sizes


def plans_for(generator: dict[str, Any]) -> dict[str, Any]:
    """Plans for the encoder and the denoiser of a generator with these numbers (size, style_dim)."""
    size = generator["size"]
    plans = {"encoder": encoder(size, generator["style_dim"])} if size >= 16 else {}
    return {**plans, "denoiser": denoiser(size)}


def plans_from_scratch(size: int) -> dict[str, Any]:
    """Plans for generator, encoder and denoiser of images of `size` pixels."""
    first = generator(size)
    return {"generator": first, **plans_for(first["model"])}


def generator(size: int) -> dict[str, Any]:
    """Plan for a generator: for a CPU up to 64 pixels, above StyleGAN2-ADA's `auto`, for a GPU.

    At 32 pixels all three plans together took 37 minutes on two cores, with a torchrun process on each.
    """
    sizes = [2**k for k in range(2, size.bit_length())]
    small = size <= 64
    if small:
        widths = {at: 64 if at < 64 else 32 for at in sizes}
        discriminator = {at: min(128, 1024 // at) for at in sizes}
    else:
        widths = {at: min(512, (16384 if size < 512 else 32768) // at) for at in sizes}
        discriminator = widths
    batch, images = 16 if small else 32, {32: 120_000, 64: 2_000_000}.get(size, 200_000 if small else 10_000_000)
    return {
        "model": {
            "size": size,
            "style_dim": 128 if small else 512,
            "n_mlp": 8,
            "widths": widths,
            "discriminator": dict(discriminator),  # a copy, or YAML would write an alias
        },
        "images": images,
        **({"images_half_size": max(images // 8, 37_500)} if size >= 16 else {}),
        "batch": batch,
        "r1": round(0.0005 * size**2 / batch, 3),  # grows with the pixels, as StyleGAN2-ADA's
    }


def encoder(size: int, style_dim: int) -> dict[str, Any]:
    """Plan for an encoder, which sees 256 pixels at most, as e4e does; w+ has two rows per resolution."""
    seen = min(size, MAX_ENCODER_SIZE)
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
    """Plan for a denoiser: for a CPU up to 64 pixels; from 256 on DiffAE's network for 256 pixels, on patches.

    A rectified flow, half of whose training images are the generator's edits of its own samples: trained on images
    alone (`eps`), a denoiser of 64 pixels hardly followed the style.
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
    return {
        "model": model,
        "images": images,
        "batch": 32,
        "lr": 1e-4 if large else 1e-3,
        "generated_share": 0.5,
        "show_original": True,
    }
