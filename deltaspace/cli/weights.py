"""The command that gets what others published for a domain, and makes weights of it."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from deltaspace.cli.options import DebugOption
from pipeline.runtime.errors import InputError

if TYPE_CHECKING:
    from pipeline.checkpoints.catalogue import Original
    from pipeline.storage.domains import Domain


def fetch(
    domain: Annotated[str, typer.Argument(metavar="DOMAIN", help="See `domains`.")],
    networks: Annotated[
        list[str] | None,
        typer.Argument(metavar="NETWORK", help="Such as generator; absent, all published.", show_default=False),
    ] = None,
    accept_licence: Annotated[
        bool, typer.Option("--accept-licence", help="I have read the licences: do not ask.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace weights that were made of something else.")] = False,
    debug: DebugOption = False,
) -> None:
    """Get the published networks of a domain: download, verify, convert. Goes on where it stopped.

    Originals lie in data/pretrained/DOMAIN/originals, the weights made of them above it. Nothing in them is executed.
    """
    from pipeline.checkpoints import catalogue
    from pipeline.storage import domains, params

    root = params.root()
    found = domains.load(domain, root)
    asked = [(network, catalogue.of(found, network, root)) for network in dict.fromkeys(networks or domains.NETWORKS)]
    jobs = [original for _, original in asked if original is not None]
    unpublished = [network for network, original in asked if original is None]
    if networks and unpublished:
        made = " and ".join(f"`deltaspace pretrain {domain} {network}`" for network in unpublished)
        raise InputError(f"nothing is published as {', '.join(unpublished)} of {domain}: run {made}")
    todo = [original for original in jobs if force or not _made(original)]
    declined = _declined([original for original in todo if not _here(original)], accept_licence)
    left = sum(not _get(original, found) for original in todo if original not in declined)
    absent = [network for network in unpublished if not (root / found.weights(network).path).is_file()]
    if absent:
        typer.echo(f"not published, made here: {', '.join(absent)} (`deltaspace doctor` says how)")
    elif not jobs:
        typer.echo(f"nothing is published for {domain}, and nothing is missing")
    if left or declined:
        raise typer.Exit(2)


def _made(original: Original) -> bool:
    """Whether there are weights already; says which."""
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


def _here(original: Original) -> bool:
    """Whether nothing is to be downloaded by us."""
    from pipeline.checkpoints import addresses

    return original.path.is_file() or addresses.leads_to_page(original.url)


def _declined(originals: Sequence[Original], accepted: bool) -> list[Original]:
    """Those whose licence restricts use and is not accepted; asks a person, once for each licence."""
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
    """Fetch, verify and convert; whether it worked. What went wrong is told in one line, and the next one is tried."""
    from pipeline.checkpoints import addresses, catalogue, importers
    from pipeline.checkpoints.download import Page

    network = original.network
    try:
        if not original.path.exists():
            if addresses.leads_to_page(original.url):
                raise Page(f"{original.name} has no address of its own")
            if twin := original.twin():
                catalogue.copy(twin, original.path)
                typer.echo(
                    f"{network}: {original.place} is the same file as {twin.relative_to(original.root)}, verified"
                )
            else:
                _download(original)
        original.check()
        if network not in importers.IMPORTERS:
            typer.echo(f"{network}: {original.place} is here; nothing converts it yet")
            return True
        line, notes = importers.of(network)(original.path, domain, original.root)
        typer.echo(f"{network}: {line}")
        for note in notes:
            print(f"warning: {network}: {note}", file=sys.stderr)
        return True
    except Page as page:
        print(f"deltaspace: {network}: {page}", file=sys.stderr)
        typer.echo("\n".join([f"{network}, by hand:", *(f"  {step}" for step in original.steps())]))
    except InputError as error:
        print(f"deltaspace: {network}: {' '.join(str(error).split())}", file=sys.stderr)
    return False


def _download(original: Original) -> None:
    from pipeline.checkpoints.download import download

    digest = download(original.wanted, original.path, original.name)
    size = original.path.stat().st_size
    if original.entry.original_sha256 is not None:
        typer.echo(f"{original.network}: fetched {original.place}, {size:,} bytes, verified")
    else:
        typer.echo(f"{original.network}: fetched {original.place}, {size:,} bytes; nobody published a sha256 of it")
        where = f"domains/{original.domain}.yaml"
        typer.echo(f"{original.network}: write original_sha256: {digest} into {where} to have it verified from now on")
