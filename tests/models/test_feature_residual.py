"""Feature residuals: fitted by descent, kept where an edit changes nothing, damped where it does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import edited_world
import pytest
import test_inversion
import tiny_project
import torch
import yaml
from test_inversion import PIXELS, halfway
from torch import Tensor

import deltaspace
from pipeline import editors, inversion, sampling, sources
from pipeline.evaluation import inversion_quality
from pipeline.evaluation.bootstrap import Bootstrap
from pipeline.evaluation.context import EvaluationContext
from pipeline.evaluation.counterfactuals import TestSet
from pipeline.models.feature_residual import DECAY, FeatureResidual
from pipeline.models.stylegan2 import Generator
from pipeline.networks import Networks
from pipeline.runtime.errors import InputError
from pipeline.storage import artefacts, domains, images, params
from pipeline.values import Inversion, TextPair

generator, known = test_inversion.generator, test_inversion.known  # fixtures
project = edited_world.project
TEXT = "face with red hair"
DRAWN = (
    *("deltaedit_g", "deltaedit_gr", "deltaedit_g_unmasked", "deltaedit_g_wplus", "clip_target", "styleclip_gd"),
    *("styleclip_op", "styleclip_lm", "stylemc"),
)
CHEAP = {"styleclip_op": {"steps": 1}, "styleclip_lm": {"steps": 1}, "stylemc": {"images": 4}}


def some(generator: Generator, w_plus: Tensor, size: int = 8) -> tuple[Tensor, FeatureResidual]:
    s = generator.styles(w_plus)
    plain, _ = generator.features_at(size, s, w_plus)
    added = torch.randn(plain.shape, generator=torch.Generator().manual_seed(3))
    return s, FeatureResidual.of(generator, added, s, w_plus)


@pytest.mark.parametrize("size", [4, 8, 16])
def test_synthesis_from_the_features_gives_the_image(
    generator: Generator, known: tuple[Tensor, Tensor], size: int
) -> None:
    w_plus = known[0]
    s = generator.styles(w_plus)
    x, below = generator.features_at(size, s, w_plus)
    assert x.shape[2:] == (size, size) and (below is None) == (size == 4)
    again = generator.synthesis_from(size, x, below, s, w_plus)
    assert torch.allclose(again, generator.synthesis(s, w_plus), atol=1e-5)
    assert generator.feature_shape(size) == x.shape[1:]


def test_the_residual_is_whole_where_nothing_changes_and_gone_where_all_does(
    generator: Generator, known: tuple[Tensor, Tensor]
) -> None:
    s, detail = some(generator, known[0])
    assert torch.equal(detail.add_to(detail.unedited), detail.unedited + detail.residual)
    far = detail.unedited + 10 * detail.unedited.square().mean().sqrt()
    assert torch.allclose(detail.add_to(far), far, atol=1e-6)
    whole = generator.synthesis(s, known[0], detail=detail)
    x, below = generator.features_at(8, s, known[0])
    assert torch.allclose(whole, generator.synthesis_from(8, x + detail.residual, below, s, known[0]), atol=1e-5)


def test_the_residual_decays_with_the_local_change_only() -> None:
    plain = torch.ones(1, 2, 8, 8)
    detail = FeatureResidual(torch.ones_like(plain), plain)
    for change in (0.5 * DECAY, DECAY):
        left = detail.add_to(plain + change) - plain - change
        assert torch.allclose(
            left, torch.full_like(left, torch.tensor(-((change / DECAY) ** 2)).exp().item()), atol=1e-5
        )
    corner = plain.clone()
    corner[..., 0, 0] += 5
    left = detail.add_to(corner) - corner
    assert (left[..., :2, :2] < 0.01).all() and torch.equal(left[..., 2:, 2:], torch.ones(1, 2, 6, 6))


def test_a_fitted_residual_lowers_the_error_below_that_of_the_codes(
    generator: Generator, known: tuple[Tensor, Tensor]
) -> None:
    w_plus, photos = halfway(generator, known[0]), known[1]
    before = inversion.errors(generator, photos, w_plus)
    s = generator.styles(w_plus)
    errors = []
    for steps in (1, 40):
        added = inversion.missing_detail(PIXELS, generator, photos, w_plus, 8, steps)
        drawn = generator.synthesis(s, w_plus, detail=FeatureResidual.of(generator, added, s, w_plus)).clamp(-1, 1)
        errors.append(((drawn - photos) / 2).square().mean(dim=(1, 2, 3)))
    assert (
        (errors[0] <= before).all()
        and (errors[1] < before).all()
        and errors[1].mean() < min(errors[0].mean(), 0.3 * before.mean())
    )
    assert all(parameter.grad is None for parameter in generator.parameters())


def test_residuals_are_independent_of_the_batch(generator: Generator, known: tuple[Tensor, Tensor]) -> None:
    how, w_plus = inversion.InvertParams(8, 5, 8), halfway(generator, known[0])
    together = inversion.details(PIXELS, generator, known[1], w_plus, how)
    order = [3, 1, 2, 0, 4]
    apart = inversion.details(PIXELS, generator, known[1][order], w_plus[order], how)
    assert together.dtype == torch.float16
    assert torch.equal(together[1], apart[1]) and not torch.equal(together[0], apart[0])


def test_a_residual_finer_than_the_image_is_refused(generator: Generator, known: tuple[Tensor, Tensor]) -> None:
    with pytest.raises(InputError, match="the generator has no features of 32 pixels: set at most 16"):
        inversion.missing_detail(PIXELS, generator, known[1], known[0], 32, 1)


def test_gradients_through_a_residual_are_finite(generator: Generator, known: tuple[Tensor, Tensor]) -> None:
    s, detail = some(generator, known[0])
    s = s.clone().requires_grad_()
    (slope,) = torch.autograd.grad(generator.synthesis(s, known[0], detail=detail).square().sum(), s)
    assert torch.isfinite(slope).all() and slope.any()


# ---------------------------------------------------------------- at work


@pytest.mark.parametrize("name", DRAWN)
def test_edits_of_generator_editors_keep_the_residual(project: Path, name: str) -> None:
    nets = Networks(domains.load("tiny", project), project)
    torch.manual_seed(5)
    w_plus = nets.generator.repeat(nets.generator.mapping(torch.randn(2, nets.generator.style_dim)))
    added = torch.randn(2, 12, 8, 8)
    image = torch.rand(2, 3, 16, 16) * 2 - 1
    with_it, without = (sources.source(nets, image, Inversion(w_plus, detail)) for detail in (added, None))
    module = editors.module(name)
    own = params.section(module.Params, tiny_project.ROOT, f"edit_{module.KIND}.{name}", CHEAP.get(name))
    editor = module.build(nets, own)
    direction = editor.fit(TextPair("face", TEXT))
    unedited = nets.generator.synthesis(with_it.s, w_plus, detail=with_it.residual)
    assert torch.allclose(editor.edit(editor.prepare(with_it), direction, 0.0).images, unedited, atol=1e-4)
    assert torch.allclose(
        editor.edit(editor.prepare(without), direction, 0.0).images, nets.generator(w_plus), atol=1e-4
    )
    assert not torch.allclose(unedited, nets.generator(w_plus), atol=1e-2)


def test_a_residual_lowers_the_error_of_an_opened_photograph(project: Path, tmp_path: Path) -> None:
    mine = tiny_project.copy(project, tmp_path / "mine")
    content = yaml.safe_load((mine / "params.yaml").read_text())
    errors = {}
    for size in (0, 8, 16):
        content["invert"] |= {"refine": 20, "detail": size}
        (mine / "params.yaml").write_text(yaml.safe_dump(content))
        person = deltaspace.load("tiny", device="cpu", root=mine).portrait(1)
        assert (person.source.residual is None) == (size == 0)
        errors[size] = person.error
    assert errors[8] < errors[0] and errors[16] < errors[0]
    content["invert"]["detail"] = 64
    (mine / "params.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(InputError, match="no features of 64 pixels"):
        deltaspace.load("tiny", device="cpu", root=mine).portrait(1)


def test_selected_rows_keep_their_own_residual(generator: Generator, known: tuple[Tensor, Tensor]) -> None:
    _, detail = some(generator, known[0])
    chosen = detail.select([2, 0])
    assert torch.equal(chosen.residual[0], detail.residual[2]) and torch.equal(chosen.unedited[1], detail.unedited[0])
    assert detail.to("cpu").residual.device.type == "cpu"


def test_inversion_metrics_are_given_with_and_without_the_residual(project: Path) -> None:
    nets = Networks(domains.load("tiny", project), project)
    torch.manual_seed(6)
    photos = torch.rand(3, 3, 16, 16) * 2 - 1
    test = TestSet((1, 2, 3), photos, None)
    w_plus = nets.encoder(photos)
    added = inversion.details(nets.encoder, nets.generator, photos, w_plus, inversion.InvertParams(8, 30, 16))
    shared: dict[str, Any] = {"networks": nets, "test": test, "edits": {}, "prompts": {}}
    with_it, without = (
        inversion_quality.inversion(
            EvaluationContext(**shared, inversion=Inversion(w_plus, detail), batch=2, bootstrap=Bootstrap(20))
        )
        for detail in (added, None)
    )
    assert with_it["codes"]["psnr"] == without["psnr"] and "codes" not in without
    assert with_it["psnr"]["value"] > without["psnr"]["value"] + 1


def test_only_edited_images_get_a_residual_and_without_it_there_is_none(project: Path, tmp_path: Path) -> None:
    from stages import invert
    from stages._stage import NetworkSpec

    mine = tiny_project.copy(project, tmp_path / "mine")
    nets = Networks(domains.load("tiny", mine), mine)
    pictures = [images.encode_png(torch.full((3, 16, 16), shade)) for shade in (-0.5, 0.0, 0.5)]
    rows = {"id": [7, 8, 9], "split": ["train", "test", "test"], "image": pictures, "params": None}
    shard, codes = tmp_path / "images.parquet", tmp_path / "reals.parquet"
    artefacts.write_shard(shard, "images", rows, {})
    how, edited = inversion.InvertParams(8, 2, 8), frozenset({8, 9})
    meta = {"params": vars(how)}
    job = invert.Job(NetworkSpec("tiny", mine, "cpu"), shard, codes, how, edited, meta)
    invert.write(job, codes)
    table = nets.paths.details / artefacts.shard_name(0)
    invert.write_details(job, table)
    assert artefacts.read(table, "details", ["id"])["id"].tolist() == [8, 9]
    found = sources.inversions(nets, [9], codes).detail
    assert found is not None and found.shape == (1, 12, 8, 8) and found.any()
    w_plus = artefacts.read(codes, "reals", ["w_plus"], {"id": 9})["w_plus"].unflatten(1, (nets.generator.num_ws, -1))
    alone = inversion.details(nets.encoder, nets.generator, sampling.decode_images(pictures[2:]), w_plus, how)
    assert torch.allclose(found, alone, atol=1e-3)
    invert.write_none(meta, table)
    assert sources.inversions(nets, [8, 9], codes).detail is None
