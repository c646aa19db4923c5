"""Benchmarks on a GPU, rehearsed on the CPU in small sizes: what they measure, and the files they write."""

from __future__ import annotations

import json
import shutil
import stat
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import __main__ as command
from benchmarks import ffhq, gpu, kernel_cases, kernels, toolchain
from kernels import dispatch
from kernels.bias_act import bias_act
from pipeline.runtime.errors import InputError
from pipeline.storage import params

ROOT = Path(__file__).resolve().parents[2]
SMALL = kernel_cases.cases(batch=1, size=64, small=1)
PLANES, LAST = torch.contiguous_format, torch.channels_last
SIZES = ffhq.Sizes(
    size=16,
    style_dim=8,
    widths={4: 6, 8: 9, 16: 4},
    clip={
        "embed_dim": 30,
        "vision": {"image_size": 8, "layers": 1, "width": 64, "patch_size": 4},
        "text": {"context_length": 8, "width": 64, "heads": 2, "layers": 1},
    },
    batches=(8, 16),
    least_s=0.01,
    images=2,
    layer_s=0.02,
    rows=80,
    steps=3,
    edits=2,
    denoiser={"resolution": 16, "channels": 8, "mult": (1, 2), "attention": (), "time_dim": 16, "style_dim": 12}
    | {"boundaries": (4, 8)},
    slow_steps=10,
    slow_edits=1,
    fast_edits=1,
)


# ---------------------------------------------------------------- kernels


def test_every_operation_with_cuda_code_is_measured_and_checked() -> None:
    assert {case.operation for case in kernel_cases.cases(1, 64).values()} == set(toolchain.NATIVE)
    assert kernel_cases.small_calls("cpu", "ref") == 9 * 4 * 2


@pytest.mark.parametrize("dtype", kernel_cases.DTYPES.values(), ids=str)
@pytest.mark.parametrize("layout", [PLANES, LAST], ids=["planes", "channels_last"])
def test_every_input_and_result_moves_once(dtype: torch.dtype, layout: torch.memory_format) -> None:
    size = dtype.itemsize
    for case, forth, back in (
        (kernel_cases._biased(2, 3, 5, 7), 2 * 210 + 3, 3 * 210 + 3),  # back: cotangent, result, both gradients
        (kernel_cases._boxed((2, 3, 8, 8), 4), 384 + 96, 96 + 384),
    ):
        tensors = case.inputs(dtype, layout, "cpu")
        item = kernels.moved(case, tensors, case.run(**tensors, impl="ref"))
        assert item == (forth * size, back * size), case.operation
    case = kernel_cases._epilogue((2, 3, 5, 7), with_style=True)
    tensors = case.inputs(dtype, layout, "cpu")
    sides = 4 * (6 + 35 + 1 + 3 + 6)  # float32 in any case
    forth, back = kernels.moved(case, tensors, case.run(**tensors, impl="ref"))
    assert forth == 2 * 210 * size + sides and back == 3 * 210 * size + sides + 4 * (6 + 1 + 3 + 6)


@pytest.mark.parametrize("name", SMALL)
def test_errors_are_within_rounding(name: str) -> None:
    torch.manual_seed(0)
    case = SMALL[name]
    for dtype in kernel_cases.DTYPES.values():
        item = kernels.errors(case, case.inputs(dtype, PLANES, "cpu"), "auto")
        assert set(item) == {"ours", "ref"} and set(item["ours"]) == {"y", *case.graded}
        eps = torch.finfo(dtype).eps
        assert all(0 <= row["y"] < 5 * eps for row in item.values())
        if dtype == torch.float32:  # half precision sees some signs wrong, which gradients feel
            assert all(error < 100 * eps for error in item["ours"].values())


def test_a_wrong_result_is_measured_as_an_error() -> None:
    def wrong(impl: str, **tensors: torch.Tensor) -> torch.Tensor:
        return bias_act(**tensors, impl=impl) * (1.01 if impl != "ref" else 1.0)

    case = kernel_cases.Case("bias_act", {"x": (8, 9), "bias": (9,)}, wrong, ("x",), ("y",))
    tensors = case.inputs(torch.float32, PLANES, "cpu")
    item = kernels.errors(case, tensors, "auto")
    assert item["ours"]["y"] == pytest.approx(0.01, rel=1e-3) == item["ours"]["x"] and item["ref"]["y"] < 1e-6


def test_the_file_is_written_after_every_item(tmp_path: Path) -> None:
    path, seen = tmp_path / "gpu/kernels.json", 0
    chosen = {name: SMALL[name] for name in ("bias_act mapping", "box_resample 64 to 14 px")}
    for name, item in kernels.run(path, ROOT, "cpu", chosen):
        seen += 1
        written = json.loads(path.read_text())
        assert len(written["items"]) == seen and name in gpu.line(name, item)
    assert seen == 1 + 3 + 3 * 2
    assert {"command", "commit", "device", "versions", "notes", "items"} == set(written)
    assert set(written["versions"]) == {"torch", "cuda", "driver", "python"}
    row = written["items"]["box_resample 64 to 14 px | float16 | channels_last"]
    assert row["forward"]["moved_mb"] == pytest.approx(2 * (3 * 64 * 64 + 3 * 14 * 14) / 1e6, rel=1e-3)
    assert row["result"] == [1, 3, 14, 14]
    for direction in ("forward", "backward"):
        for name in ("ours", "ref", "ours_again"):
            assert row[direction][name]["gpu_us"] > 0 and row[direction][name]["share"] > 0
    assert written["items"]["copy"]["bytes_per_s"] > 1e6


def test_a_generator_is_timed_with_and_without_native_code() -> None:
    before = dispatch.choose("bias_act", "auto", torch.zeros(1))
    with dispatch.reference_only():
        assert all(dispatch.choose(name, "auto", torch.zeros(1)) == "ref" for name in dispatch.OPERATIONS)
    assert before == dispatch.choose("bias_act", "auto", torch.zeros(1))
    item = kernels.generator(16, {4: 6, 8: 9, 16: 4}, 8, 2, "cpu")
    assert item["float32"]["relative_difference"] < 1e-5 and item["bfloat16"]["relative_difference"] < 0.1
    assert item["gradient_float32"]["relative_difference"] < 1e-4
    assert all(value > 0 for row in ("float32", "bfloat16") for _, value in gpu.numbers(item[row]))


@pytest.mark.parametrize(
    ("says", "expected"),
    [("calls 80\n========= ERROR SUMMARY: 0 errors", (0, 80)), ("========= ERROR SUMMARY: 3 errors", (3, None))],
)
def test_the_summary_of_the_sanitizer_is_read(says: str, expected: tuple, tmp_path: Path, monkeypatch: Any) -> None:
    tool = tmp_path / "compute-sanitizer"
    tool.write_text(f"#!/bin/sh\nprintf '%b\\n' '{says}'\n")
    tool.chmod(tool.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setattr(shutil, "which", lambda name, path=None: str(tool))
    item = toolchain.sanitized("memcheck", ROOT)
    assert (item["errors"], item["calls"]) == expected and ("lines" in item) == bool(expected[0])


def test_without_the_sanitizer_the_file_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda *_, **__: None)
    assert toolchain.sanitized("racecheck", ROOT) == {
        "errors": None,
        "reason": "compute-sanitizer is not on PATH",
    }


# ---------------------------------------------------------------- published sizes


def test_the_published_sizes_are_those_of_the_paper() -> None:
    with torch.device("meta"):
        generator = ffhq.Generator(1024, 512, ffhq.WIDTHS)
        mapper = ffhq.DeltaMapper(generator.layout, 512)
    assert generator.layout.size == 6048 and generator.layout.level_sizes == (1536, 2048, 2464)
    assert sum(p.numel() for p in generator.parameters()) == 30_370_060
    assert sum(p.numel() for p in mapper.parameters()) == 82_760_576


def test_the_whole_method_is_measured_in_small_sizes(tmp_path: Path) -> None:
    path = tmp_path / "ffhq_shapes.json"
    for name, item in ffhq.run(path, ROOT, "cpu", SIZES):
        assert "error" not in item, f"{name}: {item}"
        assert name in json.loads(path.read_text())["items"]
    written = json.loads(path.read_text())
    items = written["items"]
    assert written["shapes"]["style_channels"] == 34 and written["shapes"]["layers"] == [6, 6, 9, 9, 4]
    rendered = items["sample_cache"]["batch 16"]
    expected = 200_000 / rendered["images_per_s"] / 3600
    assert (
        rendered["projected_200000_images_h"] == pytest.approx(expected, rel=1e-3)
        and "batch 16, ref" in items["sample_cache"]
    )
    finite = items["relevance_finite"]
    total = sum(row["measured_s"] * row["channels"] / row["channels_measured"] for row in finite["layers"].values())
    assert finite["projected_all_channels_100_pictures_min"] == pytest.approx(
        (total + finite["kept_pass_s"]) * 50 / 60, rel=1e-3
    )
    reverse = items["relevance_reverse"]
    assert reverse["cotangents"] == 30 and reverse["picture_s"] > 0
    for precision in ("float32", "bfloat16"):
        trained = items[f"mapper_{precision}"]
        assert trained["projected_201562_steps_min"] == pytest.approx(201_562 * trained["step_ms"] / 60_000, rel=1e-3)
    assert items["deltaedit_g"]["ours"]["repeats"] == 2
    assert items["deltaedit_d_ddim"]["settings"]["solver"] == "ddim" and items["deltaedit_d_ddim"]["evaluations"] == 20
    written = params.load_yaml(ROOT)
    assert (
        items["deltaedit_d_shipped"]["settings"] == written["channel_mask"] | written["edit_diffusion"]["deltaedit_d"]
    )


# ---------------------------------------------------------------- both


def test_an_exception_is_recorded_and_the_next_item_measured(tmp_path: Path) -> None:
    def fails() -> dict:
        raise RuntimeError("out of\nmemory")

    record = gpu.record(tmp_path / "r.json", "a command", ROOT, "cpu", ["a note"])
    first, second = record.item("first", fails), record.item("second", lambda: {"x_ms": 1.0})
    assert first["error"] == "RuntimeError: out of memory" and second["x_ms"] == 1.0
    assert "failed" in gpu.line("first", first)
    assert list(json.loads((tmp_path / "r.json").read_text())["items"]) == ["first", "second"]


def test_the_commit_is_read_from_the_environment_or_git(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(gpu.COMMIT, "abc")
    assert gpu.commit(tmp_path) == "abc"
    monkeypatch.delenv(gpu.COMMIT)
    monkeypatch.setenv("PATH", "")
    assert gpu.commit(tmp_path) is None


def test_timing_rotates_among_the_calls() -> None:
    seen: list[int] = []
    item = gpu.timing([lambda i=i: seen.append(i) for i in range(4)], "cpu", budget=1e-9)
    assert item.gpu_us > 0 and seen[-5:] == [0, 1, 2, 3, 0]


def test_on_a_gpu_calls_are_queued_behind_a_sleep_and_timed_by_events(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing

        def record(self) -> None:
            calls.append("event")

        def elapsed_time(self, after: Event) -> float:
            return 0.25  # ms

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: calls.append("wait"))
    monkeypatch.setattr(torch.cuda, "_sleep", lambda cycles: calls.append("sleep"), raising=False)
    item = gpu.timing([lambda: calls.append("call")] * 2, "cuda", budget=1e-9)
    assert item.gpu_us == 250.0 and item.call_us > 0
    start = calls.index("sleep")
    assert calls[start:] == ["sleep", *["event", "call", "event"] * 5, "wait", *["call"] * 5, "wait"]


@pytest.mark.parametrize("name", ["kernels", "ffhq"])
def test_without_a_gpu_the_command_says_so_in_one_line(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main([name, "--device", "cpu"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and f"`python -m benchmarks {name}` measures a GPU" in lines[0]
    for module in (kernels, ffhq):
        with pytest.raises(InputError, match="there is no CUDA device here"):
            list(module.run(ROOT / "never.json", ROOT, "cpu"))


def test_rows_are_chosen_for_the_comparison_only(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["ffhq", "x", "--device", "cpu"]) == 2 and "no rows to choose from" in capsys.readouterr().err
    assert command.main(["compare", "frist", "--device", "cpu"]) == 2 and "unknown row" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        command.main(["kernel"])
