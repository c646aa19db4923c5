"""The command line `deltaspace`: its commands, and those that only list facts."""

from __future__ import annotations

import ast
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from deltaspace.cli import edit, errors, interpolate, options, train, tune, weights
from deltaspace.cli.options import DebugOption, JsonOption

app = typer.Typer(
    name="deltaspace",
    help=f"Edit images with words, and train the networks for it. Try: [bold]{options.EXAMPLE}[/bold]",
    epilog="The whole workflow runs with `make repro`.",
    rich_markup_mode="rich",
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def main() -> None:
    """The entry point `deltaspace`."""
    sys.exit(run(sys.argv[1:]))


def run(words: Sequence[str]) -> int:
    """Run a command line; exit code 0, 2 for bad input (one line on stderr), 1 for a fault of the program."""
    return errors.run(app, words)


def _show_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"deltaspace {version('deltaspace')}")
        raise typer.Exit


@app.callback()
def _common(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
    debug: DebugOption = False,
) -> None:
    pass


app.command()(edit.edit)
app.command()(edit.invert)
app.command()(interpolate.interpolate)
app.command()(interpolate.mix)
app.command()(train.draw)
app.command()(train.new_domain)
app.command()(train.pretrain)
app.command()(tune.tune)
app.command()(train.words)
app.command()(weights.fetch)
app.command("import")(weights.import_network)


@app.command("domains")
def list_domains(as_json: JsonOption = False, debug: DebugOption = False) -> None:
    """List the domains (kinds of images), and which of their networks are here."""
    from pipeline.storage import domains, params

    root, rows = params.root(), []
    for domain in (domains.load(name, root) for name in domains.names(root)):
        there = [network for network in domain.networks if (root / domain.weights(network).path).is_file()]
        missing = [network for network in domain.networks if network not in there]
        facts = {"name": domain.name, "resolution": domain.resolution, "neutral": domain.neutral}
        rows.append({**facts, "prompts": len(domain.prompts), "networks": there, "missing": missing})
    if as_json:
        return errors.print_json({"domains": rows})
    for row in rows:
        networks = f"missing {', '.join(row['missing'])}" if row["missing"] else "all networks here"
        typer.echo(f"{row['name']:12} {row['resolution']:>4} px  {row['prompts']:>3} prompts  {networks}")


@app.command("editors")
def list_editors(as_json: JsonOption = False, debug: DebugOption = False) -> None:
    """List the editing methods."""
    from pipeline import editors

    folder = Path(editors.__path__[0])
    rows = [{"name": name, **_kind_and_title(folder / f"{name}.py")} for name in editors.names()]
    if as_json:
        return errors.print_json({"editors": rows})
    for row in rows:
        typer.echo(f"{row['name']:20} {row['kind']:10} {row['about']}")


def _kind_and_title(file: Path) -> dict[str, str]:
    """KIND and the first line of the docstring of an editor's module, read without importing torch."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    values = (node for node in tree.body if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant))
    constants = {ast.unparse(node.targets[0]): str(node.value.value) for node in values}  # type: ignore[attr-defined]
    return {"kind": constants.get("KIND", ""), "about": (ast.get_docstring(tree) or "").partition("\n")[0]}


@app.command()
def alignment(
    images: Annotated[Path, typer.Argument(metavar="IMAGES.npy", help="CLIP embeddings of images, a row each.")],
    texts: Annotated[
        Path, typer.Argument(metavar="TEXTS.npy", help="CLIP embeddings of their texts, in the same order.")
    ],
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Measure how well image and text differences align: cosines and retrieval, for any CLIP's embeddings."""
    from pipeline.checkpoints import deltaedit
    from pipeline.evaluation import metrics

    values = metrics.alignment(*deltaedit.embeddings(images, texts))
    if as_json:
        return errors.print_json(values)
    for name, value in values.items():
        typer.echo(f"{name:22} {value['value']:.4f} ({value['low']:.4f} to {value['high']:.4f})")


@app.command()
def doctor(as_json: JsonOption = False, debug: DebugOption = False) -> None:
    """Show device, kernels, weights (verified by sha256), versions and disk; exit code 1 if there is a problem."""
    from deltaspace.doctor import examine, lines
    from pipeline.storage import params

    facts = examine(params.root())
    if as_json:
        errors.print_json(facts)
    else:
        typer.echo("\n".join(lines(facts)))
    if facts["problems"]:
        raise typer.Exit(1)


if __name__ == "__main__":
    main()
