"""The command line `deltaspace`: arguments and words. The work is in pipeline/ and pretrain/, imported when needed."""

from __future__ import annotations

import ast
import gc
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from deltaspace.cli import errors
from deltaspace.cli import install as imports
from deltaspace.cli import interpolate as blending
from deltaspace.cli import options as arguments
from deltaspace.cli import train as training
from deltaspace.cli import weights as fetching
from deltaspace.cli.options import DebugOption, DeviceOption, DomainOption, FaceOption, JsonOption
from pipeline.editors import DEFAULT

if TYPE_CHECKING:
    from deltaspace.batch import Report

app = typer.Typer(
    name="deltaspace",
    help=f"Edit pictures with words, and train what that needs. Try: [bold]{arguments.EXAMPLE}[/bold]",
    epilog="The whole workflow runs with `make repro`.",
    rich_markup_mode="rich",
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def main() -> None:
    """The entry point `deltaspace`."""
    code = run(sys.argv[1:])
    gc.freeze()  # or Python looks for cycles in all of torch before it ends, most of a second
    sys.exit(code)


def run(words: Sequence[str]) -> int:
    """Run a command line; exit code 0, 2 for bad input (one line on stderr), 1 for a fault of the program."""
    return errors.run(app, words)


def _show_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"deltaspace {version('deltaspace')}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
    debug: DebugOption = False,
) -> None:
    pass


# ---------------------------------------------------------------- pictures


@app.command()
def edit(
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="IMAGE|DIR TEXT...", help="A picture or a folder of them, then texts.", show_default=False
        ),
    ] = None,
    sample: Annotated[
        list[str] | None, typer.Option(metavar="ID", help="A generated person instead of a picture; 3,7 for several.")
    ] = None,
    portrait: Annotated[
        list[str] | None, typer.Option(metavar="ID", help="A drawn person instead, if the domain can draw.")
    ] = None,
    face: FaceOption = None,
    source: Annotated[
        str | None, typer.Option(metavar="TEXT", help="What the picture shows now; absent, the domain's neutral word.")
    ] = None,
    editor: Annotated[str, typer.Option("--editor", "-e", metavar="NAME", help="Method; see `editors`.")] = DEFAULT,
    strength: Annotated[
        list[str] | None,
        typer.Option("--strength", "-s", metavar="X", help="How far, 1 being the whole way; 0.5,1 for several."),
    ] = None,
    threshold: Annotated[
        float | None,
        typer.Option(metavar="X", help="Relevance below which a style channel stays; in place of a share."),
    ] = None,
    domain: DomainOption = "portraits",
    device: DeviceOption = "auto",
    out: Annotated[
        Path, typer.Option("--out", "-o", metavar="DIR", help="Folder for results, or a .png for a single one.")
    ] = Path("edited"),
    seed: Annotated[
        int | None, typer.Option(min=0, metavar="N", help="Of generated people; absent, the project's.")
    ] = None,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Edit a picture, or every picture of a folder, towards one or several texts.

    Writes every edited picture, and a grid of them: picture, its inversion, edits.
    """
    started = time.perf_counter()
    samples, portraits = arguments.ids(sample, "--sample"), arguments.ids(portrait, "--portrait")
    paths, texts = arguments.pictures_and_texts(words or [], drawn=bool(samples or portraits))
    strengths = arguments.strengths(strength)
    threshold = arguments.finite(threshold, "--threshold", 0.1)
    arguments.known(domain, editor)
    arguments.of_a_photograph(face, paths)
    errors.one_thread()

    from deltaspace import batch
    from deltaspace.outputs import Gallery
    from deltaspace.studio import Studio

    pictures = batch.Pictures(batch.find(paths, out), samples, portraits)
    edits = len(pictures) * len(texts) * len(strengths)
    target = Gallery(out, pictures.paths, single=edits == 1)
    studio = Studio.load(domain, device)
    tool = studio.tool(editor, threshold)
    prompts = [studio.prompt(text, source) for text in texts]
    told = list(dict.fromkeys([*tool.warnings, *(warning for prompt in prompts for warning in prompt.warnings)]))
    errors.warn(told)
    report = batch.Report(domain, studio.device, editor)
    results = batch.edit(studio, pictures, prompts, strengths, tool, target, report, seed, face)
    _watch(results, edits, "editing")
    report.seconds = time.perf_counter() - started
    if not as_json:
        for fact in report.pictures:
            if fact["error"] is not None:
                typer.echo(_inversion_line(fact))
        for fact in report.edits:
            typer.echo(_edit_line(fact))
    report.warnings = [*told, *report.warnings]
    _finish(report, as_json, told)


@app.command()
def invert(
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE|DIR...", help="Pictures, or folders of them.")],
    face: FaceOption = None,
    domain: DomainOption = "portraits",
    device: DeviceOption = "auto",
    out: Annotated[Path, typer.Option("--out", "-o", metavar="DIR", help="Folder for the results.")] = Path("inverted"),
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Find the codes of pictures: what the generator makes of them, and how far that is off.

    Writes the inversion, its codes (w_plus and s, safetensors), and a grid: picture, inversion.
    """
    started = time.perf_counter()
    arguments.known(domain)
    errors.one_thread()

    from deltaspace import batch
    from deltaspace.outputs import Gallery
    from deltaspace.studio import Studio

    pictures = batch.Pictures(batch.find(images, out))
    target = Gallery(out, pictures.paths)
    studio = Studio.load(domain, device)
    report = batch.Report(domain, studio.device)
    _watch(batch.invert(studio, pictures, target, report, face), len(pictures), "inverting")
    report.seconds = time.perf_counter() - started
    for fact in [] if as_json else report.pictures:
        typer.echo(f"{_inversion_line(fact)}, wrote {fact['inversion']} and {fact['codes']}")
    _finish(report, as_json)


app.command()(blending.interpolate)
app.command()(blending.mix)


def _watch(work: Iterable[Any], total: int, label: str) -> None:
    """Do the work; more than one piece of it shows how far it is."""
    from pipeline.runtime import progress

    for _ in progress.track(work, total, label) if total > 1 else work:
        pass


def _inversion_line(fact: dict[str, Any]) -> str:
    notes = f"; {', '.join(fact['notes'])}" if fact["notes"] else ""
    return f"{fact['name']}: inversion error {fact['error']:.4f} ({fact['psnr']:.1f} dB{notes})"


def _edit_line(fact: dict[str, Any]) -> str:
    moved = f", {fact['channels_moved']} of {fact['channels']} channels moved" if fact["channels"] else ""
    enough = "" if fact["enough"] is None else f" x {fact['enough']:g}, which CLIP found enough"
    return f"{fact['name']} -> {fact['prompt']} (strength {fact['strength']:g}{enough}{moved}), wrote {fact['path']}"


def _finish(report: Report, as_json: bool, told: Sequence[str] = ()) -> None:
    """Print the rest of a report; pictures that could not be used make exit code 2."""
    if as_json:
        errors.print_json(vars(report))
    else:
        typer.echo(f"wrote {report.grid} in {report.seconds:.1f} s")
    errors.warn(warning for warning in report.warnings if warning not in told)
    if report.failed:
        for entry in report.failed:
            print(f"deltaspace: skipped: {entry['reason']}", file=sys.stderr)
        raise typer.Exit(2)


# ---------------------------------------------------------------- training

app.command()(training.draw)
app.command()(training.new_domain)
app.command()(training.pretrain)
app.command()(training.tune)
app.command()(training.words)


# ---------------------------------------------------------------- what others made

app.command()(fetching.fetch)
for command in imports.COMMANDS:
    app.command(command)(getattr(imports, command.replace("-", "_")))


# ---------------------------------------------------------------- looking around


@app.command("domains")
def list_domains(as_json: JsonOption = False, debug: DebugOption = False) -> None:
    """List the kinds of pictures, and which of their networks are here."""
    from pipeline.storage import domains, params

    root = params.root()
    rows = []
    for name in domains.names(root):
        found = domains.load(name, root)
        there = [network for network in found.networks if (root / found.weights(network).path).is_file()]
        missing = [network for network in found.networks if network not in there]
        rows.append(
            {
                "name": name,
                "resolution": found.resolution,
                "neutral": found.neutral,
                "prompts": len(found.prompts),
                "networks": there,
                "missing": missing,
            }
        )
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
    rows = [{"name": name, **_about(folder / f"{name}.py")} for name in editors.names()]
    if as_json:
        return errors.print_json({"editors": rows})
    for row in rows:
        typer.echo(f"{row['name']:20} {row['kind']:10} {row['about']}")


def _about(file: Path) -> dict[str, str]:
    """Kind and first line of an editor's file, read without importing torch."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    values = (node for node in tree.body if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant))
    constants = {ast.unparse(node.targets[0]): str(node.value.value) for node in values}  # type: ignore[attr-defined]
    return {"kind": constants.get("KIND", ""), "about": (ast.get_docstring(tree) or "").partition("\n")[0]}


@app.command()
def alignment(
    images: Annotated[Path, typer.Argument(metavar="IMAGES.npy", help="CLIP embeddings of pictures, a row each.")],
    texts: Annotated[Path, typer.Argument(metavar="TEXTS.npy", help="Of their texts, in the same order.")],
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Do differences of pictures and of texts point the same way? Cosines and retrieval for anyone's embeddings."""
    from pipeline.checkpoints import deltaedit
    from pipeline.evaluation import metrics

    found = metrics.alignment(*deltaedit.embeddings(images, texts))
    if as_json:
        return errors.print_json(found)
    for name, value in found.items():
        typer.echo(f"{name:22} {value['value']:.4f} ({value['low']:.4f} to {value['high']:.4f})")


@app.command()
def doctor(as_json: JsonOption = False, debug: DebugOption = False) -> None:
    """Show device, kernels, weights (verified by sha256), versions and disk; exit code 1 if something needs mending."""
    from deltaspace.doctor import examine, lines
    from pipeline.storage import params

    found = examine(params.root())
    if as_json:
        errors.print_json(found)
    else:
        typer.echo("\n".join(lines(found)))
    if found["problems"]:
        raise typer.Exit(1)


@app.command()
def bench(
    what: Annotated[
        str | None,
        typer.Argument(metavar="kernels|ffhq", help="On a GPU; absent, the comparison.", show_default=False),
    ] = None,
    rows: Annotated[list[str] | None, typer.Option(metavar="NAME", help="Only this row; may be repeated.")] = None,
    device: DeviceOption = "auto",
    debug: DebugOption = False,
) -> None:
    """Time published code, plain PyTorch and this repository side by side (ten minutes); writes reports/bench.json.

    `kernels`: errors, times and bytes of the CUDA kernels. `ffhq`: the method in the published sizes, with random
    weights. Both need a GPU for some minutes, and write reports/gpu/.
    """
    arguments.of_a_bench(what, rows)

    from benchmarks import compare as benches
    from deltaspace.studio import device_named
    from pipeline.networks import Backbones
    from pipeline.storage import domains, params

    root, chosen = params.root(), device_named(device)
    if what:
        return _measure(what, root, chosen)
    backbones = Backbones(domains.load("portraits", root), root, chosen)
    for name, row in benches.run(backbones, root / "reports" / "bench.json", tuple(rows or ())):
        typer.echo(benches.line(name, row))


def _measure(what: str, root: Path, device: str) -> None:
    """`bench kernels` and `bench ffhq`: a line per item."""
    from benchmarks import ffhq, gpu, kernels

    measure, file = {
        "kernels": (kernels.run, "kernels.json"),
        "ffhq": (ffhq.run, "ffhq_shapes.json"),
    }[what]
    for name, found in measure(root / "reports" / "gpu" / file, root, device):
        typer.echo(gpu.line(name, found))


if __name__ == "__main__":
    main()
