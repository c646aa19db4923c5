"""The commands that take in what others made. Nothing in a foreign file is executed (pipeline/foreign)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from deltaspace.cli import errors
from deltaspace.cli.options import DebugOption, DomainOption, JsonOption
from pipeline.runtime.errors import InputError

if TYPE_CHECKING:
    from pipeline.storage.domains import Domain

NETWORKS = ("clip", "encoder", "generator", "identity", "inception", "lpips", "mapper", "relevance")
COMMANDS = (*(f"import-{network}" for network in NETWORKS), "import-codes")


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
    from pipeline.checkpoints import generators, install
    from pipeline.storage import domains, params

    root = params.root()
    install.check(name, root, force)
    split = domains.load(name, root).level_split if (root / install.domain_file(name)).exists() else (3, 7)
    imported = generators.load(file, split, seed)
    where = install.place(imported, file, name, root, neutral, licence or install.LICENCE, seed, force)
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
        typer.echo(f"look at {where.grid}, and fill in {install.domain_file(name)}")
        typer.echo(f"next: deltaspace import-clip FILE --domain {name}, then: deltaspace pretrain {name}")
    errors.warn(imported.notes)


ForceOption = Annotated[bool, typer.Option("--force", help="Replace what is there.")]


def import_encoder(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A checkpoint, such as e4e_ffhq_encode.pt.")],
    domain: DomainOption,
    force: ForceOption = False,
    debug: DebugOption = False,
) -> None:
    """Take in an e4e or pSp encoder; and the generator that lies beside it, where the domain has none."""
    _take_in("encoder", file, domain, force)


def import_identity(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A state dict, such as the released model_ir_se50.pth.")],
    domain: DomainOption,
    force: ForceOption = False,
    debug: DebugOption = False,
) -> None:
    """Take in the network that tells faces apart (ArcFace, IR-SE50), by which `identity` is measured."""
    _take_in("identity", file, domain, force)


def import_mapper(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A state dict, such as the released net_face.pth.")],
    domain: DomainOption,
    force: ForceOption = False,
    debug: DebugOption = False,
) -> None:
    """Take in a Delta Mapper that was trained elsewhere for a domain's generator."""
    _take_in("mapper", file, domain, force)


def import_relevance(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A .npy matrix, such as the released fs3.npy.")],
    domain: DomainOption,
    force: ForceOption = False,
    debug: DebugOption = False,
) -> None:
    """Take in a relevance matrix: a row per style channel, in CLIP's words."""
    _take_in("relevance", file, domain, force)


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

    from pipeline.checkpoints import deltaedit, install
    from pipeline.storage.artefacts import Layout

    where = Layout(found, root)
    _free(where.codes, force)
    meta = {"domain": domain, "original": {source: [install.of(file) for file in pairs[source]] for source in pairs}}
    rows = deltaedit.replace_codes(pairs, deltaedit.layout_of(found, root), where, meta)
    typer.echo(f"wrote {rows:,} rows to {where.codes.relative_to(root)}, their spread to {where.s_stats.name}")
    typer.echo(f"train on them with: dvc repro --single-item mapper@{domain}")


def import_clip(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="Such as ViT-B-32.pt, or another domain's clip.safetensors.")
    ],
    domain: DomainOption,
    model: Annotated[
        str | None, typer.Option(metavar="NAME", help="Of open_clip, such as ViT-B-32, where the file does not tell.")
    ] = None,
    force: ForceOption = False,
    debug: DebugOption = False,
) -> None:
    """Take in a CLIP: OpenAI's own archives, Hugging Face's CLIPModel, open_clip's state dicts, another domain's."""
    _take_in("clip", file, domain, force, **({} if model is None else {"model": model}))


def import_inception(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Such as pt_inception-2015-12-05-6726825d.pth.")],
    domain: DomainOption,
    force: ForceOption = False,
    debug: DebugOption = False,
) -> None:
    """Take in the Inception network that FID is measured with."""
    _take_in("inception", file, domain, force)


def import_lpips(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="AlexNet, such as alexnet-owt-7be5be79.pth.")],
    domain: DomainOption,
    force: ForceOption = False,
    debug: DebugOption = False,
) -> None:
    """Take in the AlexNet beneath LPIPS, the perceptual distance; its heads are in this installation."""
    _take_in("lpips", file, domain, force)


def _take_in(network: str, file: Path, domain: str, force: bool, **told: str) -> None:
    """Import a file as one of a domain's networks. told: what else its importer takes."""
    found, root = _domain(domain)
    _free(root / found.weights(network).path, force)

    from pipeline.checkpoints import importers

    line, notes = importers.of(network)(file, found, root, **told)
    typer.echo(line)
    errors.warn(notes)


def _domain(name: str) -> tuple[Domain, Path]:
    from pipeline.storage import domains, params

    root = params.root()
    return domains.load(name, root), root


def _free(path: Path, force: bool) -> Path:
    if path.exists() and not force:
        raise InputError(f"{path} exists already: give --force to replace it")
    return path
