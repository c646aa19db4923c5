"""The commands that take in what others made. Nothing in a foreign file is executed (pipeline/foreign)."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from stages._arguments import DebugOption, JsonOption

COMMANDS = ("import-generator",)


def import_generator(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A .pt, .pth, .pkl or .safetensors file.")],
    name: Annotated[str, typer.Option(metavar="NAME", help="Of the new domain, such as my_cats.")],
    neutral: Annotated[str, typer.Option(metavar="WORD", help="For any of its pictures, such as cat.")] = "picture",
    licence: Annotated[
        str | None, typer.Option(metavar="TEXT", help="Under which the weights may be used; goes into the domain.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, metavar="N", help="Draws what the file lacks, and the pictures.")] = 0,
    force: Annotated[bool, typer.Option("--force", help="Replace the generator of a domain that exists.")] = False,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Make a domain of your own StyleGAN2: rosinality's .pt, NVIDIA's .pkl (PyTorch or TensorFlow), e4e's decoder.

    Writes data/pretrained/NAME/generator.safetensors, a grid of pictures beside it, and domains/NAME.yaml to fill in.
    """
    from pipeline import domains, params
    from pipeline.foreign import generators, placed

    root = params.root()
    placed.check(name, root, force)
    split = domains.load(name, root).level_split if (root / placed.domain_file(name)).exists() else (3, 7)
    imported = generators.load(file, split, seed)
    where = placed.place(imported, file, name, root, neutral, licence or placed.LICENCE, seed, force)
    if as_json:
        facts = {"kind": imported.kind, "model": imported.model, "warnings": imported.notes}
        files = {key: None if path is None else path.as_posix() for key, path in vars(where).items()}
        typer.echo(json.dumps({"name": name, **facts, **files}, indent=2, ensure_ascii=False))
    else:
        model = imported.model
        widths = ", ".join(f"{width} at {size}" for size, width in model["widths"].items())
        typer.echo(f"{file}: {imported.kind}, {model['size']} pixels, style dimension {model['style_dim']}")
        typer.echo(f"{model['n_mlp']} mapping layers, {len(imported.generator.layout.dims)} style layers ({widths})")
        for path in filter(None, (where.weights, where.grid, where.domain)):
            typer.echo(f"wrote {path}")
        typer.echo(f"look at {where.grid}, fill in {placed.domain_file(name)}, then: dvc exp run -S 'domains=[{name}]'")
    for note in imported.notes:
        print(f"warning: {note}", file=sys.stderr)
