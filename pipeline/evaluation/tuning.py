"""Editors and their settings side by side on validation people: one setting for all prompts, never on a test person."""

from __future__ import annotations

import copy
import csv
import io
import itertools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from pipeline import delta_mapper, editors, inversion, sources
from pipeline.evaluation import counterfactuals, metrics, network_quality
from pipeline.report.charts import MEASURED
from pipeline.runtime import files
from pipeline.runtime.errors import InputError, nearest
from pipeline.storage import artefacts, dataset, images, params
from pipeline.values import Source

if TYPE_CHECKING:
    from pipeline.networks import Backbones


@dataclass(frozen=True)
class Trial:
    """One setting of an editor and what it gave: reached and kept by the evaluation's definitions, psnr in dB.

    distance: of the edit to its input, 1 - cosine of the oracle's features. agreement: cosine of the step in CLIP space
    with the text's. evaluations: passes of the network that draws, per edit. seconds: of the processor per edit, what
    is done once per person shared by all of its edits; on a GPU, of the clock. round_trip: mean squared error, on
    [0,1], of people whom it edits with strength 0.
    """

    editor: str
    settings: dict[str, Any]
    reached: float
    kept: float
    psnr: float
    distance: float
    agreement: float
    evaluations: int
    seconds: float
    round_trip: float

    @property
    def score(self) -> float:
        return self.reached + self.kept


def grid(settings: Any, values: Mapping[str, Sequence[Any]], option: str = "--try") -> Iterator[Any]:
    """`settings` with every combination of `values` (field -> what to try) put in.

    InputError for another field, a value of another type, and a combination that the settings refuse.
    """
    known = [field.name for field in fields(settings)]
    for name in values:
        if name not in known:
            raise InputError(f"there is no setting '{name}'{nearest(name, known)}: there are {', '.join(known)}")
    for chosen in itertools.product(*values.values()):
        tried = {name: getattr(settings, name) for name in known} | dict(zip(values, chosen, strict=True))
        yield params.build(type(settings), tried, option)


@torch.no_grad()
def validation(
    backbones: Backbones, count: int, style: str = "painted", split: str = "seen"
) -> tuple[Source, counterfactuals.Truth]:
    """The first `count` validation people, inverted as the workflow inverts people to edit, and their counterfactuals.

    style: in which both are drawn, one of `portraits.STYLES`. split: of which prompts. Raises InputError where true
    attributes are not known (domains without a renderer), there are fewer people, or no such prompts.
    """
    domain, root = backbones.domain, backbones.root
    if domain.renderer is None:
        raise InputError(f"{domain.name} has photographs, whose true attributes are not known: nothing to tune by")
    prompts = {prompt.text: prompt for prompt in domain.prompts if prompt.split == split}
    if not prompts:
        known = sorted({prompt.split for prompt in domain.prompts})
        raise InputError(f"{domain.name} has no prompts of split '{split}': there are {', '.join(known)}")
    prepare = params.section(dataset.PrepareParams, root, "prepare", domain=domain)
    rows = [row for row in dataset.row_ids(prepare) if row[1] == "val"][:count]
    if len(rows) < count:
        raise InputError(f"{count} validation people are asked for, prepare.val is {len(rows)}")
    drawn = [dataset.Rendered(domain.resolution, tuple(rows), style)(place) for place in range(count)]
    photos = torch.stack([images.decode_png(row.image) for row in drawn])
    how = params.section(inversion.InvertParams, root, "invert", domain=domain)
    w_plus, _ = inversion.invert(backbones.encoder, backbones.generator, photos, how.batch, how.refine)
    detail = None
    if how.seeks_detail:
        detail = inversion.details(backbones.encoder, backbones.generator, photos, w_plus, how)
    people = sources.source(backbones, photos, w_plus, detail, sources.people_of([row.params for row in drawn]))
    test = counterfactuals.TestSet(tuple(range(count)), photos, people.people)
    cases = counterfactuals.cases(test, [(row, text) for text in prompts for row in range(count)], prompts)
    return people, counterfactuals.see(backbones, cases, domain.resolution, how.batch)


def settings_of(name: str, root: Path, domain: Any) -> Any:
    """The editor's own section of params.yaml."""
    module = editors.module(name)
    return params.section(module.Params, root, f"edit_{module.KIND}.{name}", domain=domain)


def tries(name: str, root: Path, domain: Any, values: Mapping[str, Sequence[Any]]) -> list[Any]:
    """`grid` of the editor's own settings; what is wrong is told with its name."""
    try:
        return list(grid(settings_of(name, root, domain), values))
    except InputError as error:
        raise InputError(f"{name}: {error}") from error


def mappers(
    backbones: Backbones, values: Mapping[str, Sequence[Any]]
) -> Iterator[tuple[dict[str, Any], Callable[[], Backbones]]]:
    """Every combination of `values` of section `mapper`, as settings "mapper.NAME", and what gives the networks with a
    mapper trained by it, on the workflow's codes and as the workflow trains one; nothing is written.

    Without values, the networks as they are. InputError as of `grid`, and where there are no codes yet.
    """
    domain, layout = backbones.domain, backbones.layout
    if not values:
        yield {}, lambda: backbones
        return
    whole = params.section(delta_mapper.MapperParams, backbones.root, "mapper", domain=domain)
    if not layout.codes.is_dir():
        raise InputError(f"{layout.codes} is missing: run `dvc repro cache@{domain.name}`")
    for section in grid(whole, values, "--train"):

        def trained(section: delta_mapper.MapperParams = section) -> Backbones:
            of = {"source": section.sources, "split": "train"}
            codes = artefacts.read(layout.codes, "codes", ["s", "clip"], of)
            siblings = delta_mapper.siblings(
                layout.codes, section, params.load_yaml(backbones.root)["sample"]["redrawn"]
            )
            style = backbones.generator.layout
            trainer = delta_mapper.Trainer(codes["s"], codes["clip"], style, section, backbones.device, siblings)
            with torch.enable_grad():
                for number in range(section.steps):
                    trainer.step(number)
            other = copy.copy(backbones)
            other.__dict__["mapper"] = trainer.mapper.eval().requires_grad_(False)
            return other

        yield {f"mapper.{name}": getattr(section, name) for name in values}, trained


@torch.no_grad()
def trial(
    backbones: Backbones,
    name: str,
    settings: Any,
    people: Source,
    goals: counterfactuals.Truth,
    source: str | None = None,
) -> Trial:
    """Means over prompts for one setting of one editor. `goals` are those of row ids 0 .. len(people) - 1. source: the
    words that prompts are told from, in place of the domain's neutral one (paper, section 5.5.1)."""
    editor, evaluations, spent, edits = editors.load(name, backbones, settings), 0, 0.0, 0
    direction = None
    domain, size = backbones.domain, len(people)
    clock = time.process_time if backbones.device == "cpu" else time.perf_counter
    before, clip_before = (
        backbones.oracle.features(people.image),
        network_quality.clip_units(backbones, people.image, size),
    )
    table: dict[str, list[float]] = {name: [] for name in ("reached", "kept", "psnr", "distance", "agreement")}
    for condition in sources.conditions(domain):
        condition = condition if source is None else replace(condition, source=source)
        rows = [row for row in range(size) if (row, condition.target) in goals.index]
        if not rows:
            continue
        cases = [goals.index[row, condition.target] for row in rows]
        direction, started = editor.fit(condition), clock()
        edited = editor.edit(people.select(rows), direction, settings.strength)
        spent, edits = spent + clock() - started, edits + len(rows)
        pictures, evaluations = edited.images.clamp(-1, 1), edited.evaluations
        seen = backbones.oracle.features(pictures)
        logits = backbones.oracle.logits(seen)
        read = torch.stack([logits[name].argmax(1).cpu() for name in backbones.oracle.attributes], dim=1)
        moved = network_quality.clip_units(backbones, pictures, size) - clip_before[rows]
        said = backbones.clip.text_delta(domain.neutral, condition.target, domain.templates).cpu()
        found = {
            "reached": metrics.reached(read, goals.answers[cases], goals.asked[cases]),
            "kept": metrics.kept(read, goals.answers[cases], goals.counted[cases]),
            "psnr": metrics.psnr(pictures.cpu(), goals.images(cases)),
            "distance": 1 - metrics.cosine(seen, before[rows]),
            "agreement": metrics.cosine(moved, said.expand_as(moved)),
        }
        for key, values in found.items():
            table[key].append(values.nanmean().item())
    means = {key: sum(values) / max(1, len(values)) for key, values in table.items()}
    if direction is None:
        raise InputError("no prompt of the domain concerns one of these people: try more people")
    error = metrics.mse(editor.edit(people, direction, 0.0).images, people.image).mean().item()
    costs = {"evaluations": evaluations, "seconds": spent / max(1, edits)}
    tried = vars(settings) if source is None else {"source": source, **vars(settings)}
    return Trial(name, tried, **means, **costs, round_trip=error)


def save(path: Path, people: int, split: str, trials: Sequence[tuple[str, Trial]]) -> None:
    """Write a table of (style of the pictures, trial) on prompts of `split` as CSV: a row each, settings first, which
    differ by editor."""
    rows = [
        {"editor": trial.editor, "people": people, "style": style, "split": split}
        | trial.settings
        | {name: f"{getattr(trial, name):.4g}" for name in MEASURED}
        for style, trial in trials
    ]
    names = dict.fromkeys(name for row in rows for name in row if name not in MEASURED)
    text = io.StringIO()
    writer = csv.DictWriter(text, [*names, *MEASURED], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    files.write_bytes(path, text.getvalue().encode())
