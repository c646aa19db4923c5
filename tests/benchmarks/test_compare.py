"""Both sides of the comparison do the same work, and the file has the measured numbers."""

from __future__ import annotations

import json
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks import baseline, compare, compare_cases
from benchmarks.compare import Case, Gpu, Watch
from kernels import dispatch
from kernels.box_resample import box_resample
from kernels.epilogue_difference import epilogue_difference
from pipeline import relevance
from pipeline.delta_mapper import DeltaMapper, validate
from pipeline.models.stylegan2 import Generator
from pipeline.models.stylespace import StyleLayout
from pipeline.report import external_results
from pipeline.runtime.errors import InputError

D, E = 5, 7


class Shade:
    """Stand-in for CLIP."""

    dim, image_size = E, 7

    def embed_images(self, images: Tensor) -> Tensor:
        return box_resample(images, 7).square().sum(dim=1).float()[:, :, 0]


@pytest.fixture(scope="module")
def generator() -> Generator:
    torch.manual_seed(0)
    network = Generator(16, D, {4: 6, 8: 9, 16: 4}, n_mlp=2).eval()
    for layer in network.convolutions:
        torch.nn.init.constant_(layer.noise.weight, 0.7)
        torch.nn.init.normal_(layer.activate.bias)
    return network.requires_grad_(False)


@pytest.mark.parametrize("shared", [False, True])
def test_the_published_synthesis_gives_the_same_images(generator: Generator, shared: bool) -> None:
    w_plus = generator.repeat(torch.randn(3, D))
    s = generator.styles(w_plus) + torch.randn(3, generator.layout.size)
    result = baseline.synthesis(generator, s, w_plus, shared)
    torch.testing.assert_close(result, generator.synthesis(s, w_plus), atol=2e-5, rtol=1e-4)


def test_the_published_resampling_is_the_box_filter() -> None:
    images = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(baseline.resampled(images, 7), box_resample(images, 7), atol=1e-5, rtol=0)


@pytest.mark.parametrize("shared", [False, True])
def test_the_published_relevance_rows_equal_ours(generator: Generator, shared: bool) -> None:
    size = generator.layout.size
    params = relevance.RelevanceParams(3, 5.0, 0.7, 0)
    probe = relevance.probe(generator, Shade(), torch.zeros(size), torch.ones(size), params)  # type: ignore[arg-type]
    result = baseline.relevance_rows(probe, range(4, 10), shared)
    assert F.cosine_similarity(result, relevance.compute(probe, relevance.Part(range(3), range(4, 10)))).min() > 0.9999


def test_the_relevance_case_computes_the_same_rows_three_times(generator: Generator) -> None:
    class Networks:
        clip, device = Shade(), "cpu"
        s_stats = torch.zeros(generator.layout.size), torch.ones(generator.layout.size)

    networks: Any = Networks()
    networks.generator = generator
    case = compare_cases.relevance_finite(networks)
    rows, plain, ours = case.published(), case.plain(), case.ours()
    assert rows is not None and plain is not None and ours is not None and case.parts == 1
    assert len(rows) == sum(max(1, width // compare_cases.SHARE) for width in generator.layout.dims)
    assert rows.shape == plain.shape and F.cosine_similarity(ours, rows).min() > 0.999


def test_the_published_mapper_training_draws_items_and_learns() -> None:
    torch.manual_seed(0)
    layout, traits = StyleLayout((6, 6, 5, 5, 5, 4, 3), split=(2, 5)), torch.randn(300, 2)
    s, clip = (traits @ torch.randn(2, layout.size)).half(), traits @ torch.randn(2, 9) + torch.randn(9)
    first, one, second, other = baseline.Codes(s, clip)[7]
    assert torch.equal(first, s[7].float()) and (second == s.float()).all(dim=1).sum() == 1
    torch.testing.assert_close(one, clip[7] / clip[7].norm())
    torch.testing.assert_close(other.norm(), torch.tensor(1.0))
    mapper = DeltaMapper(layout, 9)
    before = validate(mapper, s, clip)["val_mse"]
    baseline.mapper_training(mapper, s, clip, steps=60, batch=32, lr=0.5)
    assert validate(mapper, s, clip)["val_mse"] < 0.9 * before


@pytest.mark.parametrize(("steps", "reached"), [(40, True), (1, False)])
def test_the_time_to_a_loss_requires_that_the_loss_is_reached(
    steps: int, reached: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, generator: Generator
) -> None:
    traits = torch.randn(300, 2)
    codes = {"s": traits @ torch.randn(2, generator.layout.size), "clip": traits @ torch.randn(2, 9)}
    monkeypatch.setattr(compare_cases.artefacts, "read", lambda *_: codes)
    monkeypatch.setattr(compare_cases, "PUBLISHED_MAPPER", (10, 0.5, 0.0))
    monkeypatch.setattr(compare_cases, "OUR_STEPS", steps)
    domain = SimpleNamespace(name="tiny", defaults={"mapper": {"lr": 2.0}})
    here: Any = SimpleNamespace(root=tmp_path, domain=domain, generator=generator, device="cpu")
    case = compare_cases.mapper_time_to_loss(here)
    if reached:
        row = compare.measure(case, "cpu")
        assert row["memory_ratio"] is None and "memory" not in compare.line("time", row) and row["ours_s"] > 0
    else:
        with pytest.raises(InputError, match="1 steps end at"):
            compare.measure(case, "cpu")


def test_peak_memory_counts_live_tensors_only() -> None:
    def run() -> None:
        kept = torch.zeros(1000)
        for _ in range(5):
            kept = kept + 1
        kept.view(10, 100).add_(1)

    assert compare.watched(run).peak == 2 * 4000
    with Watch() as mode:
        both = [torch.zeros(10), torch.zeros(30).double()]
    assert mode.peak == 40 + 120 + 240 and len(both) == 2


def test_gpu_seconds_are_projected_from_bytes_and_operations() -> None:
    gpu = Gpu("a GPU", bandwidth=1e9, float32=1e9, tensor32=2e9, half=4e9, launch=1e-6)
    x, w = torch.randn(8, 1000), torch.randn(1000, 2000)
    half_x, half_w = x.bfloat16(), w.bfloat16()
    images, kernel = torch.randn(1, 4, 10, 10), torch.randn(9, 4, 3, 3)
    written = x.clone()
    for run, expected in (
        (lambda: x + 1, 64_000 / 1e9 + 1e-6),  # read and written once: more than its additions take
        (lambda: x @ w, 2 * 8 * 1000 * 2000 / 1e9 + 1e-6),
        (lambda: half_x @ half_w, 2 * 8 * 1000 * 2000 / 4e9 + 1e-6),
        (lambda: F.conv2d(images, kernel, padding=1), 2 * 900 * 36 / 2e9 + 1e-6),
        (lambda: x.view(4, 2000).permute(1, 0), 0),  # only looked at otherwise
        (lambda: written.add_(1), 64_000 / 1e9 + 1e-6),
        (lambda: torch._foreach_add_([written, written], 1), 2 * 64_000 / 1e9 + 1e-6),
    ):
        with Watch(gpu) as mode:
            run()
        assert mode.projected == pytest.approx(expected, rel=1e-3), expected


def test_operations_without_cuda_code_are_counted_as_plain_pytorch() -> None:
    x, base = torch.randn(4, 16, 8, 8), torch.randn(2, 16, 8, 8)
    result = [compare.watched(lambda i=i: epilogue_difference(x, base, impl=i)).projected for i in ("auto", "ref")]
    assert result[0] == pytest.approx(result[1])
    native = "ref" if dispatch.unavailable("epilogue_difference", "cpp") else "cpp"
    assert dispatch.choose("epilogue_difference", "auto", x) == native  # as before


def test_an_interval_holds_the_ratio_and_is_a_point_without_spread() -> None:
    assert compare.interval([4.0] * 5, [2.0] * 5) == (2.0, 2.0)
    low, high = compare.interval([3.0, 4.0, 5.0, 4.2, 3.9], [1.0, 1.1, 0.9, 1.0, 1.05])
    assert low < 4.0 < high


def spin(milliseconds: float) -> None:
    end = time.process_time() + milliseconds / 1000
    while time.process_time() < end:
        pass


@pytest.fixture
def rows(monkeypatch: pytest.MonkeyPatch) -> None:
    def case(_: object) -> Case:
        def work(milliseconds: float, value: float) -> Tensor:
            spin(milliseconds)
            return torch.full((8,), value)

        return Case(lambda: work(10, 1.0), lambda: work(20, 1.0), lambda: work(10, 1.5), rounds=3, parts=4)

    monkeypatch.setattr(compare_cases, "CASES", {"first": case, "second": case})


class Here:
    device = "cpu"


@pytest.mark.usefixtures("rows")
def test_rows_are_measured_and_added_to_the_file(tmp_path: Path) -> None:
    path = tmp_path / "bench.json"
    assert [name for name, _ in compare.run(Here(), path, ("second",))] == ["second"]  # type: ignore[arg-type]
    assert [name for name, _ in compare.run(Here(), path, ("first",))] == ["first"]  # type: ignore[arg-type]
    result = json.loads(path.read_text())
    assert set(result) == {"machine", "rows", "projected"} and set(result["rows"]) == {"first", "second"}
    assert result["machine"]["threads"] == 1 and result["machine"]["load"] >= 0
    row = result["rows"]["first"]
    assert set(row) == {
        *("published_s", "plain_s", "ours_s", "ratio", "ratio_low", "ratio_high", "ratio_plain"),
        *("max_abs_diff", "memory_ratio", "projected_cuda_ratio"),
    }
    assert (
        3 < row["ratio"] < 5 and 6 < row["ratio_plain"] < 10 and row["ratio_low"] <= row["ratio"] <= row["ratio_high"]
    )
    assert row["max_abs_diff"] == 0.5 and row["memory_ratio"] == 1
    assert "first" in compare.line("first", row) and "ratio" in compare.line("first", row)


@pytest.mark.usefixtures("rows")
def test_an_unknown_row_is_refused_with_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="did you mean 'first'"):
        list(compare.run(Here(), tmp_path / "bench.json", ("frist",)))  # type: ignore[arg-type]
    assert not (tmp_path / "bench.json").exists()


def test_the_page_reads_the_file(tmp_path: Path) -> None:
    assert external_results.speed(tmp_path) is None
    (tmp_path / "reports").mkdir()
    (tmp_path / "reports/bench.json").write_text(json.dumps({"machine": {"cores": 2}, "rows": {"first": {"ratio": 2}}}))
    assert external_results.speed(tmp_path) == {"machine": {"cores": 2}, "rows": {"first": {"ratio": 2}}}
