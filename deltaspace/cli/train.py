"""The commands around training: pictures to train on, a domain's networks, and an editor's settings."""

from __future__ import annotations

from dataclasses import replace
from itertools import groupby, product
from pathlib import Path
from typing import Annotated

import typer

from deltaspace.cli import errors
from deltaspace.cli import options as arguments
from deltaspace.cli.options import DebugOption, DeviceOption, DomainOption, JsonOption
from pipeline.runtime.errors import InputError, nearest

# later ones learn from earlier ones
TRAINED = ("generator", "clip", "identity", "oracle", "encoder", "denoiser", "oracle2")
SHIPPED = ("mapper", "relevance", "s_stats")  # made by the workflow, put beside them by pretrain.artefacts
PARTS = (*TRAINED, *SHIPPED)


def pretrain(
    domain: Annotated[str, typer.Argument(metavar="DOMAIN", help="See `domains`.")],
    part: Annotated[
        str | None,
        typer.Argument(
            metavar=f"[{'|'.join(PARTS)}]", help="Absent: all that are trained, one after another.", show_default=False
        ),
    ] = None,
    minutes: Annotated[
        float | None, typer.Option(metavar="N", help="Stop each part after so long; it can go on later.")
    ] = None,
    images: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Pictures to train on in all; absent, the domain's.")
    ] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Start anew instead of going on.")] = False,
    device: DeviceOption = "auto",
    promote_only: Annotated[
        bool, typer.Option("--promote-only", help="Train nothing; write out what was trained before.")
    ] = False,
    debug: DebugOption = False,
) -> None:
    """Train the networks that a domain's workflow starts from; goes on where it stopped.

    States lie in data/pretraining/DOMAIN, results in data/pretrained/DOMAIN. Several GPUs share the work under
    `torchrun --nproc-per-node N -m stages.app pretrain DOMAIN`. Mapper, relevance and s_stats are what the workflow
    made: they are copied there together.
    """
    if part is not None and part not in PARTS:
        raise InputError(f"unknown part '{part}'{nearest(part, PARTS)}: there are {', '.join(PARTS)}")
    if minutes is not None and not minutes > 0:
        raise InputError(f"--minutes {minutes:g} is no time to train: give a number above 0")
    from importlib import import_module

    from deltaspace.studio import device_named
    from pipeline import training
    from pipeline.runtime import processes
    from pipeline.storage import domains, params
    from pretrain import common

    processes.idle_threads()
    processes.keep_memory()

    root = params.root()
    found = domains.load(domain, root)
    place = training.join(device_named(device))

    def tell(line: str) -> None:
        if training.first_process():
            typer.echo(line)

    for name in [part] if part else TRAINED:
        if part is None and (reason := common.left_out(found, root, name)):
            tell(f"{name}: left out, {reason}")
            continue
        module = import_module(f"pretrain.{name if name in TRAINED else 'artefacts'}")
        if promote_only or name in SHIPPED:
            module.promote(found, root)
        else:
            module.train(found, root, minutes=minutes, images=images, resume=not fresh, device=place)
        training.wait_for_first()  # who writes what the next part reads
        path = found.weights("mapper" if name == "s_stats" else name).path
        if not (root / path).exists():  # which the next part would miss
            return tell(f"{name}: out of time before its first weights; the same command goes on")
        tell(f"{name}: done, in {path}")


def words(
    wordnet: Annotated[Path, typer.Option(metavar="DIR", help="Folder of WordNet's data.* and index.* files.")],
    moby: Annotated[Path, typer.Option(metavar="FILE", help="The Moby Thesaurus: a line for every word, with commas.")],
    domain: DomainOption = "portraits",
    debug: DebugOption = False,
) -> None:
    """Make the table of what a CLIP that was trained here reads for other words, from two dictionaries."""
    from pipeline.runtime import files
    from pipeline.storage import domains, params
    from pretrain import build_synonyms as tables

    root = params.root()
    path = tables.make(domains.load(domain, root), root, wordnet, moby)
    typer.echo(f"wrote {path}; in domains/{domain}.yaml:")
    typer.echo(f"words: {{file: {path.name}, sha256: {files.digest(path)}}}")


def draw(
    out: Annotated[Path, typer.Argument(metavar="FILE.zip", help="Where the pictures go.")],
    count: Annotated[int, typer.Option(min=1, max=100_000, metavar="N", help="How many people.")] = 2000,
    size: Annotated[int, typer.Option(min=8, max=1024, metavar="R", help="Pixels.")] = 64,
    style: Annotated[str, typer.Option(metavar="STYLE", help="painted or inked.")] = "painted",
    first: Annotated[int, typer.Option(min=0, metavar="ID", help="The first person; the others follow.")] = 500_000,
    debug: DebugOption = False,
) -> None:
    """Draw people into a zip file of PNGs: pictures to try a domain of your own with.

    The networks of portraits learnt from painted people of ids from 1,000,000 up; none has seen an inked one.
    """
    from zipfile import ZipFile, ZipInfo

    from pipeline import portraits
    from pipeline.runtime import files, progress
    from pipeline.storage import dataset

    _known_style(style, portraits.STYLES)
    if out.suffix != ".zip":
        raise InputError(f"{out} is no name for a zip file: end it in .zip")
    people = dataset.Rendered(size, tuple((row, "") for row in range(first, first + count)), style)
    with files.replacing(out) as partial, ZipFile(partial, "w") as archive:
        for place in progress.track(range(count), count, "drawing"):
            person = people(place)
            archive.writestr(ZipInfo(f"{person.id}.png"), person.image)
    typer.echo(f"wrote {count:,} pictures to {out}")


def _known_style(style: str, styles: tuple[str, ...]) -> None:
    if style not in styles:
        raise InputError(f"unknown style '{style}'{nearest(style, styles)}: there are {', '.join(styles)}")


def new_domain(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Of the new domain, such as my_cats.")],
    pictures: Annotated[
        Path, typer.Option(metavar="PATH", help="A folder, .zip or .parquet file of pictures of one kind.")
    ],
    resolution: Annotated[int, typer.Option(metavar="R", help="Pixels to work at, from 16 up: a power of two.")] = 32,
    neutral: Annotated[str, typer.Option(metavar="WORD", help="For any of the pictures, such as cat.")] = "picture",
    debug: DebugOption = False,
) -> None:
    """Make a domain of a folder of pictures and nothing else; `pretrain` then trains a generator for them.

    Writes domains/NAME.yaml: sizes that a CPU trains in an hour at 32 pixels, and in days at 64; a GPU above.
    """
    from pipeline.runtime import files
    from pipeline.storage import domain_template, domains, image_sources, params

    root = params.root()
    domain_template.check_name(name)
    if name in domains.names(root):
        raise InputError(f"{domain_template.domain_file(name)} exists already: choose another name, or edit it")
    if resolution < 16 or resolution > 1024 or resolution & (resolution - 1):
        raise InputError(f"--resolution {resolution} is no size for a generator: give a power of two from 16 to 1024")
    place = pictures.expanduser().resolve()
    found = len(image_sources.listing(place).members)
    source = place.relative_to(root) if place.is_relative_to(root) else place
    counts, origin = domain_template.counts_of(found), f"`deltaspace new-domain` from {found:,} pictures"
    plans = domain_template.plans_from_nothing(resolution)
    text = domain_template.text(
        name, origin, resolution, neutral, plans, source=domain_template.quoted(str(source)), counts=counts
    )
    files.write_bytes(root / domain_template.domain_file(name), text.encode())
    domains.load(name, root)
    typer.echo(f"{place}: {found:,} pictures, {counts[0] - counts[1]:,} of them to train on")
    typer.echo(f"wrote {domain_template.domain_file(name)}: fill it in, then: deltaspace pretrain {name}")


def tune(
    editors: Annotated[str, typer.Argument(metavar="EDITOR[,EDITOR]", help="Methods; see `editors`.")],
    tries: Annotated[
        list[str] | None,
        typer.Option("--try", metavar="NAME=X,Y", help="Values to try, as strength=1,2; repeatable. Absent: its own."),
    ] = None,
    people: Annotated[int, typer.Option(min=1, metavar="N", help="Validation people to edit.")] = 64,
    style: Annotated[
        str, typer.Option(metavar="STYLE[,STYLE]", help="How they are drawn: painted, as everywhere, or inked.")
    ] = "painted",
    train: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=X,Y", help="Values of section mapper; trains one for each combination; repeatable."),
    ] = None,
    source: Annotated[
        str | None, typer.Option(metavar="WORDS[,WORDS]", help="Words to come from, for the domain's neutral one.")
    ] = None,
    split: Annotated[
        str, typer.Option(metavar="SPLIT", help="Which of the domain's prompts: seen, heldout or combined.")
    ] = "seen",
    without_matrix: Annotated[
        bool, typer.Option("--without-matrix", help="Measure relevance for each text alone.")
    ] = False,
    domain: DomainOption = "portraits",
    device: DeviceOption = "auto",
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="FILE.csv", help="Also write the trials there, as a table.")
    ] = None,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Try editors and their settings on validation people, all prompts alike; the best by reached + kept comes last.

    No setting is changed: put what you choose into params.yaml. People in a style that no network has seen tell how an
    editor does beyond its domain.
    """
    values, recipe = arguments.tries(tries or []), arguments.tries(train or [], "--train")
    names, styles = arguments.words(editors), arguments.words(style)
    sources = [None] if source is None else arguments.words(source)
    for name in names:
        arguments.known(domain, name)

    from deltaspace.prompts import clean, untaught
    from deltaspace.studio import device_named
    from pipeline import portraits
    from pipeline.evaluation import tuning
    from pipeline.networks import Backbones
    from pipeline.runtime import processes, progress
    from pipeline.storage import domains, params

    processes.idle_threads()
    sources = [word and clean(word, "--source word") for word in sources]
    for word in styles:
        _known_style(word, portraits.STYLES)
    root = params.root()
    found = domains.load(domain, root)
    settings = {name: tuning.tries(name, root, found, values) for name in names}
    networks = Backbones(found, root, device_named(device), ("relevance",) if without_matrix else ())
    drawn = {word: tuning.validation(networks, people, word, split) for word in styles}
    warnings = [line for word in sources if word for line in untaught(word, networks.clip, domain)]
    errors.warn(warnings)
    recipes = list(tuning.mappers(networks, recipe))
    tried = [(*pair, name, one) for pair in product(styles, sources) for name in names for one in settings[name]]
    tracked, trials = progress.track(product(recipes, tried), len(recipes) * len(tried), f"trying {editors}"), []
    for (mapper, make), group in groupby(tracked, key=lambda pair: pair[0]):
        learnt = make()
        for _, (word, words, name, one) in group:
            found = tuning.trial(learnt, name, one, *drawn[word], words)
            trials.append((word, replace(found, settings=mapper | found.settings)))
    trials.sort(key=lambda pair: (styles.index(pair[0]), pair[1].score))
    if out:
        tuning.save(out, people, split, trials)
    if as_json:
        told = [{"style": word, **vars(trial), "score": trial.score} for word, trial in trials]
        return errors.print_json({"people": people, "split": split, "warnings": warnings, "trials": told})
    for word, trial in trials:
        varied = (*(f"mapper.{name}" for name in recipe), *(["source"] if source else []), *values)
        chosen = [f"{name} {trial.settings[name]}" for name in varied]
        scores = f"reached {trial.reached:.3f}, kept {trial.kept:.3f}, sum {trial.score:.3f}, {trial.psnr:.1f} dB"
        cost = f"{trial.evaluations} passes, {trial.seconds:.3f} s"
        what = " ".join([trial.editor, *([word] if len(styles) > 1 else []), *chosen])
        typer.echo(f"{what}: {scores}, round trip {trial.round_trip:.1e}, {cost}")
    best = "the last is the best" if len(styles) == 1 else "of every style the last is the best"
    typer.echo(f"{best}; what is chosen belongs into params.yaml, edit_KIND.EDITOR")
