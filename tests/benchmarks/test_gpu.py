"""What is measured on a GPU is what the files say, rehearsed on the CPU in small sizes."""

from __future__ import annotations

import json
import shutil
import stat
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import ffhq, gpu, kernel_cases, kernels, toolchain
from deltaspace.cli import app
from kernels import build
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
    pictures=2,
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


def numbers(found: Any) -> list[float]:
    return [value for _, value in gpu._numbers(found)]


# ---------------------------------------------------------------- kernels


def test_every_operation_with_cuda_code_is_measured_and_checked() -> None:
    assert {case.operation for case in kernel_cases.cases(1, 64).values()} == set(toolchain.NATIVE)
    assert kernel_cases.small_calls("cpu", "ref") == 10 * 4 * 2


@pytest.mark.parametrize("dtype", kernel_cases.DTYPES.values(), ids=str)
@pytest.mark.parametrize("layout", [PLANES, LAST], ids=["planes", "channels_last"])
def test_what_must_move_is_every_input_and_result_once(dtype: torch.dtype, layout: torch.memory_format) -> None:
    size = dtype.itemsize
    for case, forth, back in (
        (kernel_cases._biased(2, 3, 5, 7), 2 * 210 + 3, 3 * 210 + 3),  # back: cotangent, result, both gradients
        (kernel_cases._boxed((2, 3, 8, 8), 4), 384 + 96, 96 + 384),
    ):
        given = case.inputs(dtype, layout, "cpu")
        found = kernels.moved(case, given, case.run(**given, impl="ref"))
        assert found == (forth * size, back * size), case.operation
    case = kernel_cases._epilogue((2, 3, 5, 7), styled=True)
    given = case.inputs(dtype, layout, "cpu")
    sides = 4 * (6 + 35 + 1 + 3 + 6)  # float32 in any case
    forth, back = kernels.moved(case, given, case.run(**given, impl="ref"))
    assert forth == 2 * 210 * size + sides and back == 3 * 210 * size + sides + 4 * (6 + 1 + 3 + 6)


@pytest.mark.parametrize("name", SMALL)
def test_errors_are_those_of_rounding(name: str) -> None:
    torch.manual_seed(0)
    case = SMALL[name]
    for dtype in kernel_cases.DTYPES.values():
        found = kernels.errors(case, case.inputs(dtype, PLANES, "cpu"), "auto")
        assert set(found) == {"ours", "ref"} and set(found["ours"]) == {"y", *case.graded}
        eps = torch.finfo(dtype).eps
        assert all(0 <= who["y"] < 5 * eps for who in found.values())
        if dtype == torch.float32:  # half precision sees some signs wrong, which gradients feel
            assert all(error < 100 * eps for error in found["ours"].values())


def test_a_wrong_result_shows_as_an_error() -> None:
    def wrong(impl: str, **given: torch.Tensor) -> torch.Tensor:
        return bias_act(**given, impl=impl) * (1.01 if impl != "ref" else 1.0)

    case = kernel_cases.Case("bias_act", {"x": (8, 9), "bias": (9,)}, wrong, ("x",), ("y",))
    given = case.inputs(torch.float32, PLANES, "cpu")
    found = kernels.errors(case, given, "auto")
    assert found["ours"]["y"] == pytest.approx(0.01, rel=1e-3) == found["ours"]["x"] and found["ref"]["y"] < 1e-6


def test_kernels_are_rehearsed_on_a_cpu_and_written_after_every_item(tmp_path: Path) -> None:
    path, seen = tmp_path / "gpu/kernels.json", 0
    chosen = {name: SMALL[name] for name in ("bias_act mapping", "box_resample 64 to 14 px")}
    for name, found in kernels.run(path, ROOT, "cpu", chosen):
        seen += 1
        written = json.loads(path.read_text())
        assert len(written["items"]) == seen and name in gpu.line(name, found)
    assert seen == 1 + 3 + 3 * 2
    assert {"command", "commit", "device", "versions", "notes", "items"} == set(written)
    assert set(written["versions"]) == {"torch", "cuda", "driver", "python"}
    row = written["items"]["box_resample 64 to 14 px | float16 | channels_last"]
    assert row["forward"]["moved_mb"] == pytest.approx(2 * (3 * 64 * 64 + 3 * 14 * 14) / 1e6, rel=1e-3)
    assert row["result"] == [1, 3, 14, 14]
    for way in ("forward", "backward"):
        for who in ("ours", "ref", "ours_again"):
            assert row[way][who]["gpu_us"] > 0 and row[way][who]["share"] > 0
    assert written["items"]["copy"]["bytes_per_s"] > 1e6


def test_a_generator_is_timed_with_and_without_native_code() -> None:
    before = set(build._PLAIN)
    with kernels.plain():
        assert all(build.choose(name, "auto", torch.zeros(1)) == "ref" for name in build.OPERATIONS)
    assert before == build._PLAIN
    found = kernels.chain(16, {4: 6, 8: 9, 16: 4}, 8, 2, "cpu")
    assert found["float32"]["relative_difference"] < 1e-5 and found["bfloat16"]["relative_difference"] < 0.1
    assert found["gradient_float32"]["relative_difference"] < 1e-4
    assert all(value > 0 for way in ("float32", "bfloat16") for value in numbers(found[way]))


@pytest.mark.parametrize(
    ("says", "expected"),
    [("calls 80\n========= ERROR SUMMARY: 0 errors", (0, 80)), ("========= ERROR SUMMARY: 3 errors", (3, None))],
)
def test_the_summary_of_the_sanitizer_is_read(says: str, expected: tuple, tmp_path: Path, monkeypatch: Any) -> None:
    tool = tmp_path / "compute-sanitizer"
    tool.write_text(f"#!/bin/sh\nprintf '%b\\n' '{says}'\n")
    tool.chmod(tool.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setattr(shutil, "which", lambda name, path=None: str(tool))
    found = toolchain.sanitized("memcheck", ROOT)
    assert (found["errors"], found["calls"]) == expected and ("lines" in found) == bool(expected[0])


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


def test_all_of_the_method_is_rehearsed_on_a_cpu(tmp_path: Path) -> None:
    path = tmp_path / "ffhq_shapes.json"
    for name, found in ffhq.run(path, ROOT, "cpu", SIZES):
        assert "error" not in found, f"{name}: {found}"
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
    assert reverse["cotangents_measured"] == reverse["cotangents"] == 30
    for precision in ("float32", "bfloat16"):
        trained = items[f"mapper_{precision}"]
        assert trained["projected_201562_steps_min"] == pytest.approx(201_562 * trained["step_ms"] / 60_000, rel=1e-3)
    assert items["deltaedit_g"]["ours"]["repeats"] == 2
    assert items["deltaedit_d_ddim"]["settings"]["solver"] == "ddim" and items["deltaedit_d_ddim"]["evaluations"] == 20
    shipped = params.load_yaml(ROOT)["edit_diffusion"]["deltaedit_d"]
    assert items["deltaedit_d_shipped"]["settings"] == shipped


# ---------------------------------------------------------------- both


def test_an_item_that_fails_is_one_line_and_the_rest_goes_on(tmp_path: Path) -> None:
    def fails() -> dict:
        raise RuntimeError("out of\nmemory")

    record = gpu.record(tmp_path / "r.json", "a command", ROOT, "cpu", ["a note"])
    first, second = record.item("first", fails), record.item("second", lambda: {"x_ms": 1.0})
    assert first["error"] == "RuntimeError: out of memory" and second["x_ms"] == 1.0
    assert "failed" in gpu.line("first", first)
    assert list(json.loads((tmp_path / "r.json").read_text())["items"]) == ["first", "second"]


def test_the_commit_is_what_is_told_or_what_git_knows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(gpu.COMMIT, "abc")
    assert gpu.commit(tmp_path) == "abc"
    monkeypatch.delenv(gpu.COMMIT)
    monkeypatch.setenv("PATH", "")
    assert gpu.commit(tmp_path) is None


def test_calls_are_timed_in_turn() -> None:
    seen: list[int] = []
    found = gpu.timing([lambda i=i: seen.append(i) for i in range(4)], "cpu", budget=1e-9)
    assert found.gpu_us > 0 and seen[-5:] == [0, 1, 2, 3, 0]


def test_on_a_gpu_calls_are_queued_behind_a_sleep_and_timed_by_events(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing

        def record(self) -> None:
            told.append("event")

        def elapsed_time(self, after: Event) -> float:
            return 0.25  # ms

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: told.append("wait"))
    monkeypatch.setattr(torch.cuda, "_sleep", lambda cycles: told.append("sleep"), raising=False)
    found = gpu.timing([lambda: told.append("call")] * 2, "cuda", budget=1e-9)
    assert found.gpu_us == 250.0 and found.call_us > 0
    start = told.index("sleep")
    assert told[start:] == ["sleep", *["event", "call", "event"] * 5, "wait", *["call"] * 5, "wait"]


@pytest.mark.parametrize("what", ["kernels", "ffhq"])
def test_without_a_gpu_the_command_says_so_in_one_line(what: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert app.run(["bench", what, "--device", "cpu"]) == 2
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1 and f"`deltaspace bench {what}` measures a GPU" in said[0]


def test_an_unknown_bench_is_refused_with_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert app.run(["bench", "kernel"]) == 2 and "did you mean 'kernels'" in capsys.readouterr().err
    assert app.run(["bench", "ffhq", "--rows", "x"]) == 2 and "leave it out" in capsys.readouterr().err
    for benches in (kernels, ffhq):
        with pytest.raises(InputError, match="there is no CUDA device here"):
            list(benches.run(ROOT / "never.json", ROOT, "cpu"))
