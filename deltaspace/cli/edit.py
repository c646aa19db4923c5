"""The commands `edit` and `invert`."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from deltaspace.cli import errors, options
from deltaspace.cli.options import DebugOption, DeviceOption, DomainOption, FaceOption, JsonOption
from pipeline.editors import DEFAULT

if TYPE_CHECKING:
    from deltaspace.batch import Report


def edit(
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="IMAGE|DIR TEXT...", help="An image or a folder of them, then texts.", show_default=False
        ),
    ] = None,
    sample: Annotated[
        list[str] | None, typer.Option(metavar="ID", help="A generated image instead; 3,7 for several.")
    ] = None,
    portrait: Annotated[
        list[str] | None, typer.Option(metavar="ID", help="A drawn portrait instead, if the domain has a renderer.")
    ] = None,
    face: FaceOption = None,
    source: Annotated[
        str | None, typer.Option(metavar="TEXT", help="What the image shows now; default: the domain's neutral word.")
    ] = None,
    editor: Annotated[str, typer.Option("--editor", "-e", metavar="NAME", help="Method; see `editors`.")] = DEFAULT,
    strength: Annotated[
        list[str] | None,
        typer.Option("--strength", "-s", metavar="X", help="Strength of the edit; 0.5,1 for several."),
    ] = None,
    threshold: Annotated[
        float | None,
        typer.Option(metavar="X", help="Relevance below which a style channel stays; in place of top_share."),
    ] = None,
    domain: DomainOption = "portraits",
    device: DeviceOption = "auto",
    out: Annotated[
        Path, typer.Option("--out", "-o", metavar="DIR", help="Folder for results, or a .png for a single one.")
    ] = Path("edited"),
    seed: Annotated[
        int | None, typer.Option(min=0, metavar="N", help="Seed of generated images; default: the project's.")
    ] = None,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Edit an image, or every image of a folder, towards one or several texts.

    Writes every edited image, and a grid: image, its inversion, edits.
    """
    started = time.perf_counter()
    samples, portraits = options.ids(sample, "--sample"), options.ids(portrait, "--portrait")
    paths, texts = options.images_and_texts(words or [], by_id=bool(samples or portraits))
    strengths = options.strengths(strength)
    threshold = options.finite(threshold, "--threshold", 0.1)
    options.check_names(domain, editor)
    options.check_face(face, paths)
    errors.one_thread()

    from deltaspace import batch
    from deltaspace.outputs import OutputFolder
    from deltaspace.studio import Studio
    from pipeline.storage import params

    inputs = batch.Inputs(batch.find(paths, out), samples, portraits)
    count = len(inputs) * len(texts) * len(strengths)
    target = OutputFolder(out, inputs.paths, single=count == 1)
    studio = Studio.load(domain, device)
    configured = studio.editor(editor, threshold)
    if debug:
        chosen = {"strength": strengths} if strength else {}
        for line in params.describe_origins(configured.settings, configured.origins, chosen):
            typer.echo(f"{editor}: {line}", err=True)
    prompts = [studio.prompt(text, source) for text in texts]
    warnings = list(dict.fromkeys([*configured.warnings, *(line for prompt in prompts for line in prompt.warnings)]))
    errors.warn(warnings)
    report = batch.Report(domain, studio.device, editor)
    _run(batch.edit(studio, inputs, prompts, strengths, configured, target, report, seed, face), count, "editing")
    report.seconds = time.perf_counter() - started
    if not as_json:
        for fact in report.pictures:
            if fact["error"] is not None:
                typer.echo(_inversion_line(fact))
        for fact in report.edits:
            typer.echo(_edit_line(fact))
    report.warnings = [*warnings, *report.warnings]
    _finish(report, as_json, warnings)


def invert(
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE|DIR...", help="Images, or folders of them.")],
    face: FaceOption = None,
    domain: DomainOption = "portraits",
    device: DeviceOption = "auto",
    out: Annotated[Path, typer.Option("--out", "-o", metavar="DIR", help="Folder for the results.")] = Path("inverted"),
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Invert images: the codes from which the generator makes them, and the error that remains.

    Writes the inversion, its codes (w_plus and s, safetensors), and a grid: image, inversion.
    """
    started = time.perf_counter()
    options.check_names(domain)
    errors.one_thread()

    from deltaspace import batch
    from deltaspace.outputs import OutputFolder
    from deltaspace.studio import Studio

    inputs = batch.Inputs(batch.find(images, out))
    target = OutputFolder(out, inputs.paths)
    studio = Studio.load(domain, device)
    report = batch.Report(domain, studio.device)
    _run(batch.invert(studio, inputs, target, report, face), len(inputs), "inverting")
    report.seconds = time.perf_counter() - started
    for fact in [] if as_json else report.pictures:
        typer.echo(f"{_inversion_line(fact)}, wrote {fact['inversion']} and {fact['codes']}")
    _finish(report, as_json)


def _run(work: Iterable[Any], total: int, label: str) -> None:
    """Exhaust an iterator, with a progress bar for more than one item."""
    from pipeline.runtime import progress

    for _ in progress.track(work, total, label) if total > 1 else work:
        pass


def _inversion_line(fact: dict[str, Any]) -> str:
    notes = f"; {', '.join(fact['notes'])}" if fact["notes"] else ""
    return f"{fact['name']}: inversion error {fact['error']:.4f} ({fact['psnr']:.1f} dB{notes})"


def _edit_line(fact: dict[str, Any]) -> str:
    moved = f", {fact['channels_moved']} of {fact['channels']} channels moved" if fact["channels"] else ""
    chosen = "" if fact["chosen_strength"] is None else f" x {fact['chosen_strength']:g}, chosen by CLIP"
    return f"{fact['name']} -> {fact['prompt']} (strength {fact['strength']:g}{chosen}{moved}), wrote {fact['path']}"


def _finish(report: Report, as_json: bool, printed: Sequence[str] = ()) -> None:
    """Print the rest of a report but for warnings `printed` before; images that failed make exit code 2."""
    if as_json:
        errors.print_json(vars(report))
    else:
        typer.echo(f"wrote {report.grid} in {report.seconds:.1f} s")
    errors.warn(warning for warning in report.warnings if warning not in printed)
    if report.failed:
        for entry in report.failed:
            print(f"deltaspace: skipped: {entry['reason']}", file=sys.stderr)
        raise typer.Exit(2)
