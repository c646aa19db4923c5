"""The commands that take in what others made. Nothing in a foreign file is executed (pipeline/foreign)."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipeline.values import InputError
from stages._arguments import DebugOption, DomainOption, JsonOption

if TYPE_CHECKING:
    from pipeline.domains import Domain, Weights

COMMANDS = ("import-generator", "import-mapper", "import-relevance", "import-codes")
COMMANDS += ("import-clip", "import-inception", "import-lpips")


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
    _warn(imported.notes)


ForceOption = Annotated[bool, typer.Option("--force", help="Replace what is there.")]


def import_mapper(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A state dict, such as the released net_face.pth.")],
    domain: DomainOption,
    force: ForceOption = False,
    debug: DebugOption = False,
) -> None:
    """Take in a Delta Mapper that was trained elsewhere for a domain's generator."""
    found, root = _domain(domain)
    target = _free(root / found.mapper.path, force)

    from pipeline import mapper, weights
    from pipeline.artefacts import Layout
    from pipeline.foreign import released

    layout = released.layout_of(found, root)
    network, clip_dim = released.delta_mapper(file, layout)
    meta = {"model": mapper.numbers(layout, clip_dim), "domain": domain, "original": _original(file)}
    weights.save(target, network.state_dict(), meta, half=False)
    typer.echo(f"wrote {found.mapper.path}: {layout.size} style channels, embeddings of {clip_dim} numbers")
    _warn(_preceded(Layout(found, root).mapper, root))
    if found.clip_normalise:
        _warn([f"DeltaEdit trained on pictures without CLIP's mean and deviation; {domain} has clip_normalise: true"])


def import_relevance(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A .npy matrix, such as the released fs3.npy.")],
    domain: DomainOption,
    force: ForceOption = False,
    debug: DebugOption = False,
) -> None:
    """Take in a relevance matrix: a row per style channel, in CLIP's words."""
    found, root = _domain(domain)
    target = _free(root / found.relevance.path, force)

    from pipeline import weights
    from pipeline.artefacts import Layout
    from pipeline.foreign import released

    matrix, notes = released.relevance(file, released.layout_of(found, root))
    weights.save(target, {"relevance": matrix}, {"domain": domain, "original": _original(file)}, half=False)
    typer.echo(f"wrote {found.relevance.path}: {matrix.shape[0]} style channels, {matrix.shape[1]} numbers each")
    _warn([*notes, *_preceded(Layout(found, root).relevance, root)])


def import_codes(
    domain: DomainOption,
    fakes: Annotated[
        tuple[Path, Path] | None, typer.Option(metavar="S.npy CLIP.npy", help="Of generated pictures.")
    ] = None,
    reals: Annotated[
        tuple[Path, Path] | None, typer.Option(metavar="S.npy CLIP.npy", help="Of inverted photographs.")
    ] = None,
    force: ForceOption = False,
    debug: DebugOption = False,
) -> None:
    """Take in codes cached elsewhere (sspace_*.npy, cspace_*.npy), in place of what `cache` would make."""
    pairs = {source: files for source, files in (("fake", fakes), ("real", reals)) if files is not None}
    if not pairs:
        raise InputError("no codes: give --fakes S.npy CLIP.npy, --reals S.npy CLIP.npy, or both")
    found, root = _domain(domain)

    from pipeline.artefacts import Layout
    from pipeline.foreign import released

    where = Layout(found, root)
    _free(where.codes, force)
    meta = {"domain": domain, "original": {source: [_original(file) for file in pairs[source]] for source in pairs}}
    rows = released.replace_codes(pairs, released.layout_of(found, root), where, meta)
    typer.echo(f"wrote {rows:,} rows to {where.codes.relative_to(root)}, their spread to {where.s_stats.name}")
    typer.echo(f"train on them with: dvc repro --single-item mapper@{domain}")


def import_clip(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Of OpenAI (ViT-B-32.pt), Hugging Face or open_clip.")],
    domain: DomainOption,
    model: Annotated[
        str | None, typer.Option(metavar="NAME", help="Of open_clip, such as ViT-B-32, where the file does not tell.")
    ] = None,
    force: ForceOption = False,
    debug: DebugOption = False,
) -> None:
    """Take in a CLIP for a domain: OpenAI's own archives, Hugging Face's CLIPModel, open_clip's state dicts."""
    found, root = _domain(domain)
    target = _free(root / found.clip.path, force)

    from pipeline import weights
    from pipeline.foreign import clips

    imported, original = clips.load(file, model), _original(file)
    meta = {"model": imported.numbers, "domain": domain, "original": original | {"kind": imported.kind, "model": model}}
    weights.save_each(target, imported.like, imported.tensor, meta)
    size, numbers = imported.numbers["vision"]["image_size"], imported.numbers["embed_dim"]
    typer.echo(f"{file}: {imported.kind}; pictures of {size} pixels, embeddings of {numbers} numbers")
    typer.echo(f"wrote {found.clip.path}; pictures get its mean and deviation: {_yes(found.clip_normalise)}")
    _warn(_other(found.clip, original))


def import_inception(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Such as pt_inception-2015-12-05-6726825d.pth.")],
    domain: DomainOption,
    force: ForceOption = False,
    debug: DebugOption = False,
) -> None:
    """Take in the Inception network that FID is measured with."""
    _judge("inception", file, domain, force)


def import_lpips(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="AlexNet, such as alexnet-owt-7be5be79.pth.")],
    domain: DomainOption,
    force: ForceOption = False,
    debug: DebugOption = False,
) -> None:
    """Take in the AlexNet beneath LPIPS, the perceptual distance; its heads are in this installation."""
    _judge("lpips", file, domain, force)


def _judge(name: str, file: Path, domain: str, force: bool) -> None:
    found, root = _domain(domain)
    entry = found.weights(name)
    target = _free(root / entry.path, force)

    from pipeline import weights
    from pipeline.foreign import judges

    network, original = judges.load(name, file), _original(file)
    weights.save(target, network.state_dict(), {"domain": domain, "original": original}, half=False)
    typer.echo(f"wrote {entry.path}: `evaluate` measures with it")
    _warn(_other(entry, original))


def _yes(value: bool) -> str:
    return "yes" if value else "no"


def _other(entry: Weights, original: dict[str, Any]) -> list[str]:
    """Whether the file is another than the domain names."""
    known = entry.original_sha256
    return [] if known in (None, original["sha256"]) else ["its sha256 is not the one that the domain's file names"]


def _domain(name: str) -> tuple[Domain, Path]:
    from pipeline import domains, params

    root = params.root()
    return domains.load(name, root), root


def _free(path: Path, force: bool) -> Path:
    if path.exists() and not force:
        raise InputError(f"{path} exists already: give --force to replace it")
    return path


def _original(file: Path) -> dict[str, Any]:
    from pipeline.files import digest

    return {"file": file.name, "sha256": digest(file)}


def _preceded(made: Path, root: Path) -> list[str]:
    """What `dvc repro` made is used before what is imported."""
    return [f"{made.relative_to(root)}, made by `dvc repro`, is used before it"] if made.exists() else []


def _warn(notes: list[str]) -> None:
    for note in notes:
        print(f"warning: {note}", file=sys.stderr)
