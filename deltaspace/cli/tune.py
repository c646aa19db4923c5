"""The command `tune`: settings of editors, compared on validation images."""

from __future__ import annotations

from dataclasses import replace
from itertools import groupby, product
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from deltaspace.cli import errors, options
from deltaspace.cli.options import DebugOption, DeviceOption, DomainOption, JsonOption

if TYPE_CHECKING:
    from pipeline.evaluation.tuning import Trial


def tune(
    editors: Annotated[str, typer.Argument(metavar="EDITOR[,EDITOR]", help="Methods; see `editors`.")],
    values: Annotated[
        list[str] | None,
        typer.Option(
            "--try", metavar="NAME=X,Y", help="Values to try, as strength=1,2; repeatable. Default: the effective ones."
        ),
    ] = None,
    images: Annotated[int, typer.Option(min=1, metavar="N", help="Validation portraits to edit.")] = 64,
    style: Annotated[
        str, typer.Option(metavar="STYLE[,STYLE]", help="How they are drawn: painted, as everywhere, or inked.")
    ] = "painted",
    train: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=X,Y", help="Values of section mapper; trains one for each combination; repeatable."),
    ] = None,
    source: Annotated[
        str | None, typer.Option(metavar="WORDS[,WORDS]", help="Source texts in place of the domain's neutral word.")
    ] = None,
    split: Annotated[
        str, typer.Option(metavar="SPLIT", help="Which of the domain's prompts: seen, heldout or combined.")
    ] = "seen",
    domain: DomainOption = "portraits",
    device: DeviceOption = "auto",
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="FILE.csv", help="Also write the trials there, as a table.")
    ] = None,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Try editors and settings on validation portraits, all prompts alike; the best by reached + kept is last.

    Changes no setting: put the best into params.yaml. Portraits in a style that no network has seen show how an editor
    does beyond its domain.
    """
    tried, recipe = options.grid(values or []), options.grid(train or [], "--train")
    names, styles = options.words(editors), options.words(style)
    source_texts = [None] if source is None else options.words(source)
    for name in names:
        options.check_names(domain, name)

    from deltaspace.prompts import clean, vocabulary_warnings
    from deltaspace.studio import device_named
    from pipeline.evaluation import tuning
    from pipeline.networks import Networks
    from pipeline.runtime import processes, progress
    from pipeline.storage import domains, params

    processes.idle_threads()
    source_texts = [text and clean(text, "--source word") for text in source_texts]
    for word in styles:
        options.check_style(word)
    root = params.root()
    of_domain = domains.load(domain, root)
    settings = {name: tuning.candidates(name, root, of_domain, tried) for name in names}
    networks = Networks(of_domain, root, device_named(device))
    validation = {word: tuning.validation_set(networks, images, word, split) for word in styles}
    warnings = [line for text in source_texts if text for line in vocabulary_warnings(text, networks.clip, domain)]
    errors.warn(warnings)
    mappers = list(tuning.mapper_candidates(networks, recipe))
    jobs = [(*pair, name, one) for pair in product(styles, source_texts) for name in names for one in settings[name]]
    tracked, trials = progress.track(product(mappers, jobs), len(mappers) * len(jobs), f"trying {editors}"), []
    for (mapper, train_mapper), group in groupby(tracked, key=lambda pair: pair[0]):
        trained = train_mapper()
        for _, (word, text, name, one) in group:
            trial = tuning.run_trial(trained, name, one, validation[word], text)
            trials.append((word, replace(trial, settings=mapper | trial.settings)))
    trials.sort(key=lambda pair: (styles.index(pair[0]), pair[1].score))
    if out:
        tuning.save(out, images, split, trials)
    if as_json:
        rows: list[dict[str, Any]] = [{"style": word, **vars(trial), "score": trial.score} for word, trial in trials]
        return errors.print_json({"images": images, "split": split, "warnings": warnings, "trials": rows})
    varied = (*(f"mapper.{name}" for name in recipe), *(["source"] if source else []), *tried)
    for word, trial in trials:
        typer.echo(_line(trial, [word] if len(styles) > 1 else [], varied))
    best = "the last is the best" if len(styles) == 1 else "of every style the last is the best"
    typer.echo(f"{best}; put it into params.yaml, edit_KIND.EDITOR")


def _line(trial: Trial, style: list[str], varied: tuple[str, ...]) -> str:
    chosen = [f"{name} {trial.settings[name]}" for name in varied]
    scores = f"reached {trial.reached:.3f}, kept {trial.kept:.3f}, sum {trial.score:.3f}, {trial.psnr:.1f} dB"
    cost = f"{trial.evaluations} passes, {trial.seconds:.3f} s"
    return f"{' '.join([trial.editor, *style, *chosen])}: {scores}, round trip {trial.round_trip:.1e}, {cost}"
