"""Released artefacts: mapper, relevance matrix and cached codes of others, in our form and in the right place."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tiny_project
import torch

from pipeline.checkpoints import deltaedit
from pipeline.delta_mapper import DeltaMapper
from pipeline.models.stylespace import StyleLayout
from pipeline.networks import Networks
from pipeline.storage import artefacts, domains, weights

E = tiny_project.E
Run = Callable[..., tuple[int, str, str]]
PUBLISHED = StyleLayout((512,) * 10 + (256, 256, 128, 128, 64, 64, 32))  # of the 1024-pixel generator


@pytest.fixture
def project(tmp_path: Path) -> Path:
    root = tiny_project.make(tmp_path / "project")
    for name in ("mapper", "relevance"):
        (root / f"data/pretrained/tiny/{name}.safetensors").unlink()
    return root


@pytest.fixture
def layout(project: Path) -> StyleLayout:
    return Networks(domains.load("tiny", project), project).generator.layout


def refused(outcome: tuple[int, str, str], words: str) -> None:
    code, out, err = outcome
    assert (code, out, len(err.splitlines())) == (2, "", 1), err
    assert words in err


def array(path: Path, values: np.ndarray) -> Path:
    np.save(path, values)
    return path


def test_the_published_mapper_has_the_keys_and_sizes_of_ours() -> None:
    with weights.Unfilled():
        state = DeltaMapper(PUBLISHED, 512).state_dict()
    assert PUBLISHED.size == 6048 and len(state) == 72
    assert sum(value.numel() for value in state.values()) == 82_760_576
    assert state["fm_fine.mapping.0.weight"].shape == (2464, 4928)


@pytest.mark.parametrize("legacy", [False, True])
def test_a_mapper_is_the_one_of_the_file(
    run: Run, project: Path, layout: StyleLayout, tmp_path: Path, legacy: bool
) -> None:
    torch.manual_seed(1)
    theirs = DeltaMapper(layout, E).eval()
    torch.save(theirs.state_dict(), tmp_path / "net.pth", _use_new_zipfile_serialization=not legacy)
    code, out, err = run("import", "mapper", tmp_path / "net.pth", "--domain", "tiny")
    assert code == 0 and "clip_normalise" in err and f"{layout.size} style channels" in out
    ours = Networks(domains.load("tiny", project), project).mapper
    s, told = torch.randn(3, layout.size), torch.randn(3, 2 * E)
    with torch.no_grad():
        assert torch.equal(ours(s, told), theirs(s, told))
    refused(run("import", "mapper", tmp_path / "net.pth", "--domain", "tiny"), "--force")
    assert run("import", "mapper", tmp_path / "net.pth", "--domain", "tiny", "--force")[0] == 0


def test_a_mapper_of_another_generator_is_refused(run: Run, layout: StyleLayout, tmp_path: Path) -> None:
    path = tmp_path / "net.pth"
    wider = StyleLayout((*layout.dims[:-1], layout.dims[-1] + 2), layout.split)
    torch.save(DeltaMapper(wider, E).state_dict(), path)
    refused(run("import", "mapper", path, "--domain", "tiny"), "trained for another generator")
    state = DeltaMapper(layout, E).state_dict()
    torch.save({k: v for k, v in state.items() if k != "fm_fine.mapping.2.bias"}, path)
    refused(run("import", "mapper", path, "--domain", "tiny"), "fm_fine.mapping.2.bias")
    torch.save({"x": torch.ones(2)}, path)
    refused(run("import", "mapper", path, "--domain", "tiny"), "holds no Delta Mapper")
    refused(run("import", "mapper", path, "--domain", "portraits"), "unknown domain")


def test_a_relevance_matrix_is_read_as_it_is(run: Run, project: Path, layout: StyleLayout, tmp_path: Path) -> None:
    rows = torch.nn.functional.normalize(torch.randn(layout.size, E), dim=1).half()
    code, _, err = run("import", "relevance", array(tmp_path / "fs3.npy", rows.numpy()), "--domain", "tiny")
    assert (code, err) == (0, "")
    assert torch.equal(Networks(domains.load("tiny", project), project).relevance, rows.float())


def test_rows_of_the_first_layers_leave_the_rest_at_zero(
    run: Run, project: Path, layout: StyleLayout, tmp_path: Path
) -> None:
    have = sum(layout.dims[:3])
    path = array(tmp_path / "fs3.npy", np.full((have, E), 0.5, np.float32))
    code, _, err = run("import", "relevance", path, "--domain", "tiny")
    assert code == 0 and "ends with style layer 3 of 5" in err and "not 1" in err
    found = weights.load(project / "data/pretrained/tiny/relevance.safetensors")[0]["relevance"]
    assert found.shape == (layout.size, E) and bool((found[:have] == 0.5).all()) and not found[have:].any()
    refused(
        run("import", "relevance", array(path, np.ones((have + 1, E))), "--domain", "tiny", "--force"),
        f"{have + 1} rows",
    )


def test_codes_become_the_table_that_the_mapper_learns_from(
    run: Run, project: Path, layout: StyleLayout, tmp_path: Path
) -> None:
    draw = np.random.default_rng(0)

    def pair(name: str, count: int) -> tuple[Path, Path]:
        s = draw.normal(1, 2, (count, layout.size)).astype(np.float32)
        return array(tmp_path / f"s_{name}.npy", s), array(
            tmp_path / f"c_{name}.npy", draw.normal(size=(count, E)).astype(np.float16)
        )

    fakes, reals = pair("noise", 5000), pair("ffhq", 60)
    code, out, err = run("import", "codes", "--domain", "tiny", "--fakes", *fakes, "--reals", *reals)
    assert (code, err) == (0, "") and "5,060 rows" in out
    where = artefacts.DomainPaths("tiny", project)
    found = artefacts.read(where.codes, "codes")
    assert [found["source"].count(source) for source in ("fake", "real")] == [5000, 60]
    assert found["split"][50] == "val" and found["id"][-1] == 59
    assert np.array_equal(found["s"][:5000].numpy(), np.load(fakes[0]).astype(np.float16))
    assert np.array_equal(found["clip"][5000:].numpy(), np.load(reals[1]).astype(np.float32))
    stats = weights.load(where.s_stats)[0]
    assert torch.allclose(stats["std"], torch.full((layout.size,), 2.0), atol=0.15)
    assert sorted(path.name for path in where.data.iterdir()) == ["codes", "s_stats.safetensors"]
    refused(run("import", "codes", "--domain", "tiny", "--fakes", *fakes), "--force")
    refused(run("import", "codes", "--domain", "tiny", "--fakes", *reversed(fakes), "--force"), "style channels")
    refused(run("import", "codes", "--domain", "tiny", "--fakes", fakes[0], reals[1], "--force"), "same images")
    refused(run("import", "codes", "--domain", "tiny"), "no codes")
    assert artefacts.count(where.codes, "codes") == 5060


def header(shape: str, dtype: str = "'<f4'") -> bytes:
    text = f"{{'descr': {dtype}, 'fortran_order': False, 'shape': {shape}}}".ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text.encode()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x93NUMPY",
        header(f"(58, {E})"),
        header("(10**9, 20)") + bytes(80),
        header("(1000000000000, 20)") + bytes(80),
        header("(-4, 20)") + bytes(80),
        header("(2, 2)", "'|O'") + b"\x80\x04cposix\nsystem\n(X\x04\x00\x00\x00true\x85R.",
        header("(2, 2)", "[('a', '<f4')]") + bytes(16),
        header("__import__('os').system('true')") + bytes(80),
        b"PK\x05\x06" + bytes(18),
        json.dumps({"a": 1}).encode(),
    ],
)
def test_lying_and_foreign_arrays_are_refused_in_one_line(run: Run, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "fs3.npy").write_bytes(content)
    refused(run("import", "relevance", tmp_path / "fs3.npy", "--domain", "tiny"), "fs3.npy")


def test_numbers_that_are_not_finite_are_refused(run: Run, layout: StyleLayout, tmp_path: Path) -> None:
    path = array(tmp_path / "fs3.npy", np.full((layout.size, E), np.nan, np.float32))
    refused(run("import", "relevance", path, "--domain", "tiny"), "not finite")


def test_the_layout_is_that_of_the_generators_heading(project: Path, layout: StyleLayout) -> None:
    assert deltaedit.layout_of(domains.load("tiny", project), project) == layout
