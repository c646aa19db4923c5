"""The commands `pretrain`, `words`, `draw` and `new-domain`: networks of a domain, and images to train them on."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from deltaspace.cli import options
from deltaspace.cli.options import DebugOption, DeviceOption, DomainOption
from pipeline.runtime.errors import InputError, nearest

if TYPE_CHECKING:
    from pretrain.common import Training

# later ones learn from earlier ones
TRAINED = ("generator", "clip", "identity", "oracle", "encoder", "denoiser", "oracle2")
SHIPPED = ("mapper", "relevance", "s_stats")  # made by the workflow, copied by pretrain.ship
PARTS = (*TRAINED, *SHIPPED)


def pretrain(
    domain: Annotated[str, typer.Argument(metavar="DOMAIN", help="See `domains`.")],
    part: Annotated[
        str | None,
        typer.Argument(
            metavar=f"[{'|'.join(PARTS)}]", help="Default: all that are trained, one after another.", show_default=False
        ),
    ] = None,
    minutes: Annotated[
        float | None, typer.Option(metavar="N", help="Stop each part after so long; it can be resumed.")
    ] = None,
    images: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Images to train on in all; default: the domain's.")
    ] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Start anew instead of resuming.")] = False,
    device: DeviceOption = "auto",
    promote_only: Annotated[
        bool, typer.Option("--promote-only", help="Write the weights of the last training state.")
    ] = False,
    debug: DebugOption = False,
) -> None:
    """Train the networks that a domain's workflow starts from; resumes where it stopped.

    Training states lie in data/pretraining/DOMAIN, weights in data/pretrained/DOMAIN. Several GPUs share the work under
    `torchrun --nproc-per-node N -m deltaspace.cli.app pretrain DOMAIN`. Mapper, relevance and s_stats are outputs of
    the workflow, which are copied there together.
    """
    if part is not None and part not in PARTS:
        raise InputError(f"unknown part '{part}'{nearest(part, PARTS)}: there are {', '.join(PARTS)}")
    if minutes is not None and not minutes > 0:
        raise InputError(f"--minutes {minutes:g} is no time to train: give a number above 0")
    from deltaspace.studio import device_named
    from pipeline import training
    from pipeline.runtime import processes
    from pipeline.storage import domains
    from pretrain import common

    processes.idle_threads()
    processes.keep_memory()

    root = options.project()
    settings = domains.load(domain, root)
    device = training.join(device_named(device))

    def say(line: str) -> None:
        if training.first_process():
            typer.echo(line)

    for name in [part] if part else TRAINED:
        job = common.Training(settings, root, name, minutes, images, resume=not fresh, device=device)
        if part is None and (reason := common.skip_reason(job)):
            say(f"{name}: skipped, {reason}")
            continue
        _run_part(job, promote_only)
        training.wait_for_first()  # writes what the next part reads
        path = settings.weights("mapper" if name == "s_stats" else name).path
        if not (root / path).exists():  # the next part would miss it
            return say(f"{name}: out of time before its first weights; the same command goes on")
        say(f"{name}: done, in {path}")


def _run_part(job: Training, promote_only: bool) -> None:
    """Train one network, or only promote its last state; files of the workflow are copied."""
    from importlib import import_module

    from pretrain import ship

    if job.name in SHIPPED:
        ship.promote(job)
    else:
        module = import_module(f"pretrain.{'oracle' if job.name == 'oracle2' else job.name}")
        (module.promote if promote_only else module.train)(job)


def words(
    wordnet: Annotated[Path, typer.Option(metavar="DIR", help="Folder of WordNet's data.* and index.* files.")],
    moby: Annotated[Path, typer.Option(metavar="FILE", help="The Moby Thesaurus: a line for every word, with commas.")],
    domain: DomainOption = "portraits",
    debug: DebugOption = False,
) -> None:
    """Build the table of known synonyms for words outside a CLIP's training captions, from two dictionaries."""
    from pipeline.runtime import files
    from pipeline.storage import domains
    from pretrain import build_synonyms

    root = options.project()
    path = build_synonyms.make(domains.load(domain, root), root, wordnet, moby)
    typer.echo(f"wrote {path}; in domains/{domain}.yaml:")
    typer.echo(f"words: {{file: {path.name}, sha256: {files.digest(path)}}}")


def draw(
    out: Annotated[Path, typer.Argument(metavar="FILE.zip", help="File to write.")],
    count: Annotated[int, typer.Option(min=1, max=100_000, metavar="N", help="Number of portraits.")] = 2000,
    size: Annotated[int, typer.Option(min=8, max=1024, metavar="R", help="Pixels.")] = 64,
    style: Annotated[str, typer.Option(metavar="STYLE", help="painted or inked.")] = "painted",
    first: Annotated[
        int, typer.Option(min=0, metavar="ID", help="Id of the first portrait; the others follow.")
    ] = 500_000,
    debug: DebugOption = False,
) -> None:
    """Render portraits into a zip file of PNGs, to try a domain of your own with.

    The networks of `portraits` were trained on painted ones of ids from 1,000,000 up; none has seen an inked one.
    """
    from zipfile import ZipFile, ZipInfo

    from pipeline.runtime import files, progress
    from pipeline.storage import dataset

    options.check_style(style)
    if out.suffix != ".zip":
        raise InputError(f"{out} is no name for a zip file: end it in .zip")
    render = dataset.Rendered(size, tuple((row, "") for row in range(first, first + count)), style)
    with files.replacing(out) as partial, ZipFile(partial, "w") as archive:
        for position in progress.track(range(count), count, "drawing"):
            row = render(position)
            archive.writestr(ZipInfo(f"{row.id}.png"), row.image)
    typer.echo(f"wrote {count:,} images to {out}")


def new_domain(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name of the new domain, such as my_cats.")],
    pictures: Annotated[
        Path, typer.Option(metavar="PATH", help="A folder, .zip or .parquet file of images of one kind.")
    ],
    resolution: Annotated[int, typer.Option(metavar="R", help="Pixels to work at, from 16 up: a power of two.")] = 32,
    neutral: Annotated[str, typer.Option(metavar="WORD", help="Word for any of the images, such as cat.")] = "picture",
    debug: DebugOption = False,
) -> None:
    """Make a domain from a folder of images alone; `pretrain` then trains a generator for them.

    Writes domains/NAME.yaml: sizes that a CPU trains in an hour at 32 pixels, and in days at 64; a GPU above.
    """
    from pipeline.runtime import files
    from pipeline.storage import domain_template, domains, image_sources

    root = options.project()
    domain_template.check_name(name)
    if name in domains.names(root):
        raise InputError(f"{domain_template.domain_file(name)} exists already: choose another name, or edit it")
    if resolution < 16 or resolution > 1024 or resolution & (resolution - 1):
        raise InputError(f"--resolution {resolution} is no size for a generator: give a power of two from 16 to 1024")
    path = pictures.expanduser().resolve()
    count = len(image_sources.list_images(path).members)
    source = path.relative_to(root) if path.is_relative_to(root) else path
    counts, origin = domain_template.split_counts(count), f"`deltaspace new-domain` from {count:,} images"
    plans = domain_template.plans_from_scratch(resolution)
    text = domain_template.text(
        name, origin, resolution, neutral, plans, source=domain_template.quoted(str(source)), counts=counts
    )
    files.write_bytes(root / domain_template.domain_file(name), text.encode())
    domains.load(name, root)
    typer.echo(f"{path}: {count:,} images, {counts[0] - counts[1]:,} of them to train on")
    typer.echo(f"wrote {domain_template.domain_file(name)}: fill it in, then: deltaspace pretrain {name}")
