"""The commands `fetch` and `import`: published networks, and files of other projects, into a domain's weights."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from deltaspace.cli import errors, options
from deltaspace.cli.options import DebugOption, DomainOption, JsonOption
from pipeline.runtime.errors import InputError, nearest

if TYPE_CHECKING:
    from pipeline.checkpoints.catalogue import Original
    from pipeline.storage.domains import Domain

NETWORKS = {  # what `import` reads -> its options beside --domain and --force
    "generator": ("--neutral", "--licence", "--seed", "--json"),
    "clip": ("--model",),
    "encoder": (),
    "identity": (),
    "inception": (),
    "lpips": (),
    "mapper": (),
    "relevance": (),
    "codes": ("--fakes", "--reals"),
}


def fetch(
    domain: Annotated[str, typer.Argument(metavar="DOMAIN", help="See `domains`.")],
    networks: Annotated[
        list[str] | None,
        typer.Argument(metavar="NETWORK", help="Such as generator; by default all published.", show_default=False),
    ] = None,
    accept_licence: Annotated[
        bool, typer.Option("--accept-licence", help="I have read the licences: do not ask.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace weights that were made of another file.")] = False,
    debug: DebugOption = False,
) -> None:
    """Download the published networks of a domain, verify and convert them. Resumes where it stopped.

    Originals are kept in data/pretrained/DOMAIN/originals, converted weights above it. No code in them is executed.
    """
    from pipeline.checkpoints import catalogue
    from pipeline.storage import domains

    root = options.project()
    of_domain = domains.load(domain, root)
    originals = {
        network: catalogue.of(of_domain, network, root) for network in dict.fromkeys(networks or domains.NETWORKS)
    }
    published = [original for original in originals.values() if original is not None]
    unpublished = [network for network, original in originals.items() if original is None]
    if networks and unpublished:
        commands = " and ".join(f"`deltaspace pretrain {domain} {network}`" for network in unpublished)
        raise InputError(f"nothing is published as {', '.join(unpublished)} of {domain}: run {commands}")
    todo = [original for original in published if force or not _is_converted(original)]
    declined = _ask_licences([original for original in todo if _needs_download(original)], accept_licence)
    failures = sum(not _get(original, of_domain) for original in todo if original not in declined)
    absent = [network for network in unpublished if not (root / of_domain.weights(network).path).is_file()]
    if absent:
        typer.echo(f"not published, trained here: {', '.join(absent)} (`deltaspace doctor` names the commands)")
    elif not published:
        typer.echo(f"nothing is published for {domain}, and nothing is missing")
    if failures or declined:
        raise typer.Exit(2)


def _is_converted(original: Original) -> bool:
    """Whether there are weights already; prints what they were made of."""
    from pipeline.storage import weights

    path = original.root / original.entry.path
    if not path.exists():
        return False
    meta = weights.read_meta(path, hint=f"run {original.command} again")
    source = meta.get("original")
    digest = source.get("sha256") if isinstance(source, dict) else None
    published = original.entry.original_sha256
    if digest is None or published not in (None, digest):
        typer.echo(
            f"{original.network}: {original.entry.path} stays, though made of something else; --force replaces it"
        )
    else:
        typer.echo(f"{original.network}: {original.entry.path} is there, made of {original.name}")
    return True


def _needs_download(original: Original) -> bool:
    from pipeline.checkpoints import catalogue

    return not original.path.is_file() and not catalogue.leads_to_page(original.url)


def _ask_licences(originals: Sequence[Original], accepted: bool) -> list[Original]:
    """Originals whose restrictive licence is not accepted; asks at the terminal, once for each licence."""
    asked: dict[str, list[Original]] = {}
    for original in originals:
        if original.restricted and not accepted:
            asked.setdefault(original.entry.licence, []).append(original)
    if asked and not sys.stdin.isatty():
        terms = "; ".join(f"{_names(group)}: {licence}" for licence, group in asked.items())
        raise InputError(f"read these licences, then give --accept-licence: {terms}")
    declined = []
    for licence, group in asked.items():
        typer.echo(f"{_names(group)}: {licence}", err=True)
        if not typer.confirm("Do you accept this licence?", err=True):
            declined += group
    for original in declined:
        typer.echo(f"{original.network}: not fetched, its licence is not accepted")
    return declined


def _names(originals: Sequence[Original]) -> str:
    return ", ".join(f"{original.network} ({original.name})" for original in originals)


def _get(original: Original, domain: Domain) -> bool:
    """Download, verify and convert; False after a failure, which is printed in one line."""
    from pipeline.checkpoints import catalogue, download, install

    network = original.network
    try:
        if not original.path.exists():
            if catalogue.leads_to_page(original.url):
                raise download.WebPageError(f"{original.name} has no address of its own")
            if copy := original.verified_copy():
                catalogue.link(copy, original.path)
                typer.echo(
                    f"{network}: {original.place} is the same file as {copy.relative_to(original.root)}, verified"
                )
            else:
                _download(original)
        original.check()
        if network not in install.IMPORTERS:
            typer.echo(f"{network}: {original.place} is here; nothing converts it yet")
            return True
        line, warnings = install.importer(network)(original.path, domain, original.root)
        typer.echo(f"{network}: {line}")
        errors.warn(f"{network}: {warning}" for warning in warnings)
        return True
    except download.WebPageError as error:
        print(f"deltaspace: {network}: {error}", file=sys.stderr)
        typer.echo("\n".join([f"{network}, by hand:", *(f"  {step}" for step in original.steps())]))
    except InputError as error:
        print(f"deltaspace: {network}: {' '.join(str(error).split())}", file=sys.stderr)
    return False


def _download(original: Original) -> None:
    from pipeline.checkpoints.download import download

    digest = download(original.published, original.path, original.name)
    size = original.path.stat().st_size
    if original.entry.original_sha256 is not None:
        typer.echo(f"{original.network}: fetched {original.place}, {size:,} bytes, verified")
    else:
        typer.echo(f"{original.network}: fetched {original.place}, {size:,} bytes; no sha256 of it is published")
        where = f"domains/{original.domain}.yaml"
        typer.echo(f"{original.network}: write original_sha256: {digest} into {where} to have it verified from now on")


# ---------------------------------------------------------------- import


def import_network(
    network: Annotated[str, typer.Argument(metavar="NETWORK", help=f"One of {', '.join(NETWORKS)}.")],
    file: Annotated[
        Path | None,
        typer.Argument(metavar="FILE", help="A .pt, .pth, .pkl, .safetensors or .npy file.", show_default=False),
    ] = None,
    *,
    domain: DomainOption,
    force: Annotated[bool, typer.Option("--force", help="Replace what is there.")] = False,
    neutral: Annotated[
        str | None, typer.Option(metavar="WORD", help="generator: word for any image of a new domain, such as cat.")
    ] = None,
    licence: Annotated[
        str | None, typer.Option(metavar="TEXT", help="generator: licence of the weights, for a new domain's file.")
    ] = None,
    seed: Annotated[
        int | None, typer.Option(min=0, metavar="N", help="generator: draws what the file lacks, and example images.")
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="clip: open_clip's name, such as ViT-B-32, where the file does not tell."),
    ] = None,
    fakes: Annotated[
        tuple[Path, Path] | None, typer.Option(metavar="S.npy CLIP.npy", help="codes: of generated images.")
    ] = None,
    reals: Annotated[
        tuple[Path, Path] | None, typer.Option(metavar="S.npy CLIP.npy", help="codes: of inverted photographs.")
    ] = None,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Convert a file of another project into a network of a domain. No code in it is executed.

    generator: rosinality's .pt, NVIDIA's .pkl, an e4e or pSp file; makes new domains
    clip: OpenAI's, Hugging Face's or open_clip's file, or another domain's
    encoder: e4e or pSp, with its generator where the domain has none
    identity: ArcFace on IR-SE50, model_ir_se50.pth
    inception: for FID, pt_inception-2015-12-05
    lpips: torchvision's AlexNet
    mapper, relevance: DeltaEdit's net_face.pth and fs3.npy
    codes: DeltaEdit's sspace_*.npy and cspace_*.npy, in place of stage `cache`
    """
    extra = {"--neutral": neutral, "--licence": licence, "--seed": seed, "--json": as_json or None}
    extra |= {"--model": model, "--fakes": fakes, "--reals": reals}
    _check_import(network, file, [name for name, value in extra.items() if value is not None])
    root = options.project()
    if network == "codes":
        _import_codes(domain, root, {"fake": fakes, "real": reals}, force)
    elif network == "generator":
        _import_generator(file, domain, root, force, neutral or "picture", licence, seed or 0, as_json)  # type: ignore[arg-type]
    else:
        from pipeline.checkpoints import install
        from pipeline.storage import domains

        of_domain = domains.load(domain, root)
        _check_absent(root / of_domain.weights(network).path, force)
        line, warnings = install.importer(network)(file, of_domain, root, **({"model": model} if model else {}))
        typer.echo(line)
        errors.warn(warnings)


def _check_import(network: str, file: Path | None, given: Sequence[str]) -> None:
    """Raises InputError for an unknown network, an option that it does not have, and a missing or surplus file."""
    if network not in NETWORKS:
        raise InputError(f"unknown network '{network}'{nearest(network, NETWORKS)}: there are {', '.join(NETWORKS)}")
    for option in given:
        if option not in NETWORKS[network]:
            of = " and ".join(name for name, names in NETWORKS.items() if option in names)
            raise InputError(f"{option} is an option of {of}: leave it out for {network}")
    if network == "codes" and (file is not None or not given):
        raise InputError("no codes: give --fakes S.npy CLIP.npy, --reals S.npy CLIP.npy, or both")
    if network != "codes" and file is None:
        raise InputError(f"no file: write deltaspace import {network} FILE --domain NAME")


def _import_generator(
    file: Path, name: str, root: Path, force: bool, neutral: str, licence: str | None, seed: int, as_json: bool
) -> None:
    """Weights, example images and, where it is new, the domain itself."""
    from pipeline.checkpoints import generators, install
    from pipeline.storage import domain_template, domains

    domain_template.check_name(name)
    domain = domains.load(name, root) if (root / install.domain_file(name)).exists() else None
    _check_absent(root / (domain.generator.path if domain else domains.default_path(name, "generator")), force)
    imported = generators.load(file, domain.level_split if domain else (3, 7), seed)
    written = install.write_generator(imported, file, name, root, neutral, licence or install.LICENCE, seed)
    model = imported.model
    if as_json:
        paths = {key: None if path is None else path.as_posix() for key, path in vars(written).items()}
        facts = {"kind": imported.kind, "model": model, "warnings": imported.notes}
        errors.print_json({"name": name, **facts, **paths})
    else:
        widths = ", ".join(f"{width} at {size}" for size, width in model["widths"].items())
        typer.echo(f"{file}: {imported.kind}, {model['size']} pixels, style dimension {model['style_dim']}")
        typer.echo(f"{model['n_mlp']} mapping layers, {len(imported.generator.layout.dims)} style layers ({widths})")
        for path in filter(None, (written.weights, written.grid, written.domain)):
            typer.echo(f"wrote {path}")
        typer.echo(f"look at {written.grid}, and fill in {install.domain_file(name)}")
        typer.echo(f"next: deltaspace import clip FILE --domain {name}, then: deltaspace pretrain {name}")
    errors.warn(imported.notes)


def _import_codes(name: str, root: Path, given: dict[str, tuple[Path, Path] | None], force: bool) -> None:
    """Codes cached by another project, in place of those that the stage `cache` would write."""
    from pipeline.checkpoints import deltaedit, install
    from pipeline.storage import domains
    from pipeline.storage.artefacts import DomainPaths

    pairs = {source: files for source, files in given.items() if files is not None}
    domain = domains.load(name, root)
    paths = DomainPaths(domain, root)
    _check_absent(paths.codes, force)
    originals = {source: [install.provenance(file) for file in files] for source, files in pairs.items()}
    meta = {"domain": name, "original": originals}
    rows = deltaedit.replace_codes(pairs, deltaedit.layout_of(domain, root), paths, meta)
    typer.echo(f"wrote {rows:,} rows to {paths.codes.relative_to(root)}, their spread to {paths.s_stats.name}")
    typer.echo(f"train on them with: dvc repro --single-item mapper@{name}")


def _check_absent(path: Path, force: bool) -> None:
    if path.exists() and not force:
        raise InputError(f"{path} exists already: give --force to replace it")
