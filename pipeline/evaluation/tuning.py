"""Trials of editors and settings on validation images: one setting for all prompts, never chosen on a test image."""

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
from torch import Tensor

from pipeline import delta_mapper, editors, inversion, sources
from pipeline.evaluation import TRIAL_METRICS, counterfactuals, metrics
from pipeline.evaluation.batching import clip_units
from pipeline.runtime import files
from pipeline.runtime.errors import InputError, nearest
from pipeline.storage import artefacts, dataset, images, params
from pipeline.values import Edited, Inversion, Source, TextPair

if TYPE_CHECKING:
    from pipeline.evaluation.counterfactuals import CounterfactualSet
    from pipeline.networks import Networks


@dataclass(frozen=True)
class Trial:
    """One setting of an editor and its results; reached, kept and psnr (dB) as in the benchmark.

    distance: of edits to their input, 1 - cosine of the oracle's features
    agreement: cosine of the step in CLIP space with the text delta
    evaluations: forward passes of the drawing network per edit
    seconds: processor time per edit, preparation of the image included; wall time on a GPU
    round_trip: mean squared error, on [0,1], of images at strength 0
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
        """Order of trials: reached + kept."""
        return self.reached + self.kept


def grid(settings: Any, values: Mapping[str, Sequence[Any]], option: str = "--try") -> Iterator[Any]:
    """Copies of `settings` with every combination of `values` (field -> candidates).

    Raises InputError for an unknown field, a value of another type, and a combination that the settings refuse.
    """
    names = [field.name for field in fields(settings)]
    for name in values:
        if name not in names:
            raise InputError(f"there is no setting '{name}'{nearest(name, names)}: there are {', '.join(names)}")
    for chosen in itertools.product(*values.values()):
        combined = {name: getattr(settings, name) for name in names} | dict(zip(values, chosen, strict=True))
        yield params.build(type(settings), combined, option)


@torch.no_grad()
def validation_set(
    networks: Networks, count: int, style: str = "painted", split: str = "seen"
) -> tuple[Source, CounterfactualSet]:
    """The first `count` validation images, inverted as the stage `invert` does, and their counterfactuals.

    style: of the rendering, one of `portraits.STYLES`; split: of the prompts

    Raises InputError for a domain without renderer, too few images, or no such prompts.
    """
    domain, root = networks.domain, networks.root
    if domain.renderer is None:
        raise InputError(f"{domain.name} has photographs: tuning needs a renderer, for counterfactuals")
    prompts = {prompt.text: prompt for prompt in domain.prompts if prompt.split == split}
    if not prompts:
        splits = sorted({prompt.split for prompt in domain.prompts})
        raise InputError(f"{domain.name} has no prompts of split '{split}': there are {', '.join(splits)}")
    prepare = params.section(dataset.PrepareParams, root, "prepare", domain=domain)
    ids = [row for row in dataset.row_ids(prepare) if row[1] == "val"][:count]
    if len(ids) < count:
        raise InputError(f"{count} validation images are asked for, prepare.val is {len(ids)}")
    rows = [dataset.Rendered(domain.resolution, tuple(ids), style)(position) for position in range(count)]
    photos = torch.stack([images.decode_png(row.image) for row in rows])
    source = sources.source(networks, photos, _invert(networks, photos), sources.portraits_of([r.params for r in rows]))
    test = counterfactuals.TestSet(tuple(range(count)), photos, source.people)
    cases = counterfactuals.cases(test, [(row, text) for text in prompts for row in range(count)], prompts)
    batch = params.section(inversion.InvertParams, root, "invert", domain=domain).batch
    return source, counterfactuals.counterfactual_set(networks, cases, domain.resolution, batch)


def _invert(networks: Networks, photos: Tensor) -> Inversion:
    settings = params.section(inversion.InvertParams, networks.root, "invert", domain=networks.domain)
    encoder, generator = networks.encoder, networks.generator
    w_plus, _ = inversion.invert(encoder, generator, photos, settings.batch, settings.refine)
    detail = None
    if settings.seeks_detail:
        detail = inversion.details(encoder, generator, photos, w_plus, settings)
    return Inversion(w_plus, detail, settings.refine)


def settings_of(name: str, root: Path, domain: Any) -> Any:
    """Effective settings of an editor in its stage."""
    module = editors.module(name)
    return params.section(module.Params, root, f"edit_{module.KIND}.{name}", domain=domain)


def candidates(name: str, root: Path, domain: Any, values: Mapping[str, Sequence[Any]]) -> list[Any]:
    """`grid` of an editor's own settings; InputError begins with its name."""
    try:
        return list(grid(settings_of(name, root, domain), values))
    except InputError as error:
        raise InputError(f"{name}: {error}") from error


def mapper_candidates(
    networks: Networks, values: Mapping[str, Sequence[Any]]
) -> Iterator[tuple[dict[str, Any], Callable[[], Networks]]]:
    """Networks with a mapper trained by every combination of `values` of section `mapper`.

    Yields the settings, as "mapper.NAME", and a function that trains the mapper as the stage does, without writing it.
    Without values, the networks as they are. Raises InputError as `grid`, and without codes.
    """
    domain = networks.domain
    if not values:
        yield {}, lambda: networks
        return
    settings = params.section(delta_mapper.MapperParams, networks.root, "mapper", domain=domain)
    if not networks.paths.codes.is_dir():
        raise InputError(f"{networks.paths.codes} is missing: run `dvc repro cache@{domain.name}`")
    for section in grid(settings, values, "--train"):
        yield {f"mapper.{name}": getattr(section, name) for name in values}, lambda s=section: _trained(networks, s)


def _trained(networks: Networks, section: delta_mapper.MapperParams) -> Networks:
    """The networks with a mapper trained by `section`."""
    paths, redrawn = networks.paths, params.load_yaml(networks.root)["sample"]["redrawn"]
    codes = artefacts.read(paths.codes, "codes", ["s", "clip"], {"source": section.sources, "split": "train"})
    siblings = delta_mapper.siblings(paths.codes, section, redrawn)
    layout, device = networks.generator.layout, networks.device
    trainer = delta_mapper.Trainer(codes["s"], codes["clip"], layout, section, device, siblings)
    with torch.enable_grad():
        for number in range(section.steps):
            trainer.step(number)
    other = copy.copy(networks)
    other.__dict__["mapper"] = trainer.mapper.eval().requires_grad_(False)
    return other


@torch.no_grad()
def run_trial(
    networks: Networks,
    name: str,
    settings: Any,
    validation: tuple[Source, CounterfactualSet],
    source_text: str | None = None,
) -> Trial:
    """Means over prompts for one setting of one editor.

    validation: of `validation_set`
    source_text: in place of the domain's neutral word (paper, section 5.5.1)

    Raises InputError where no prompt applies to any image.
    """
    (source, goals), editor = validation, editors.load(name, networks, settings)
    clock = time.process_time if networks.device == "cpu" else time.perf_counter
    seconds, edits, evaluations, direction = 0.0, 0, 0, None
    before = networks.oracle.features(source.image), clip_units(networks, source.image, len(source))
    table: dict[str, list[float]] = {}
    for condition in sources.conditions(networks.domain):
        condition = condition if source_text is None else replace(condition, source=source_text)
        rows = [row for row in range(len(source)) if (row, condition.target) in goals.index]
        if not rows:
            continue
        direction, started = editor.fit(condition), clock()
        edited = editor.edit(editor.prepare(source.select(rows)), direction, settings.strength)
        seconds, edits, evaluations = seconds + clock() - started, edits + len(rows), edited.evaluations
        for key, values in _measure(networks, goals, condition, rows, edited, before).items():
            table.setdefault(key, []).append(values.nanmean().item())
    if direction is None:
        raise InputError("no prompt of the domain applies to one of these images: try more of them")
    means = {key: sum(values) / len(values) for key, values in table.items()}
    error = metrics.mse(editor.edit(editor.prepare(source), direction, 0.0).images, source.image).mean().item()
    settings_columns = vars(settings) if source_text is None else {"source": source_text, **vars(settings)}
    return Trial(name, settings_columns, **means, evaluations=evaluations, seconds=seconds / edits, round_trip=error)


def _measure(
    networks: Networks,
    goals: CounterfactualSet,
    condition: TextPair,
    rows: list[int],
    edited: Edited,
    before: tuple[Tensor, Tensor],
) -> dict[str, Tensor]:
    """reached, kept, psnr, distance and agreement of the edits of `rows` [n]; before: oracle's features, CLIP units."""
    domain, edited_images = networks.domain, edited.images.clamp(-1, 1)
    cases = [goals.index[row, condition.target] for row in rows]
    features = networks.oracle.features(edited_images)
    logits = networks.oracle.logits(features)
    read = torch.stack([logits[name].argmax(1).cpu() for name in networks.oracle.attributes], dim=1)
    step = clip_units(networks, edited_images, len(before[1])) - before[1][rows]
    delta = networks.clip.text_delta(domain.neutral, condition.target, domain.templates).cpu()
    return {
        "reached": metrics.reached(read, goals.values[cases], goals.asked[cases]),
        "kept": metrics.kept(read, goals.values[cases], goals.counted[cases]),
        "psnr": metrics.psnr(edited_images.cpu(), goals.images(cases)),
        "distance": 1 - metrics.cosine(features, before[0][rows]),
        "agreement": metrics.cosine(step, delta.expand_as(step)),
    }


def save(path: Path, count: int, split: str, trials: Sequence[tuple[str, Trial]]) -> None:
    """Write (style, trial) pairs as CSV, a row each: first the settings, which differ by editor, then the metrics.

    count: validation images; split: of the prompts
    """
    rows = [
        {"editor": trial.editor, "images": count, "style": style, "split": split}
        | trial.settings
        | {name: f"{getattr(trial, name):.4g}" for name in TRIAL_METRICS}
        for style, trial in trials
    ]
    names = dict.fromkeys(name for row in rows for name in row if name not in TRIAL_METRICS)
    text = io.StringIO()
    writer = csv.DictWriter(text, [*names, *TRIAL_METRICS], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    files.write_bytes(path, text.getvalue().encode())
