"""Hostile files: each is refused with exit code 2 and one line, runs nothing, and takes no memory worth the name."""

from __future__ import annotations

import argparse
import collections
import io
import json
import os
import pickle
import random
import struct
import subprocess
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path

import clip_files
import foreign_files as files
import numpy as np
import pytest
import tiny_project
import torch

from deltaspace.cli import app
from pipeline.checkpoints import clip as published_clip
from pipeline.checkpoints import generators, reader
from pipeline.runtime.errors import InputError
from pipeline.storage import params

LOOKED_FOR = (
    "conv1.conv.weight",
    *(f"encoder.styles.{row}.linear.weight" for row in range(6)),  # of the tiny domain
    "input_layer.0.weight",
    "output_layer.3.weight",
)
MOST_MEMORY = 40_000_000  # bytes; a refusal needs none of what the file claims


class Caller:
    """Runs something when it is unpickled the ordinary way."""

    def __init__(self, function: Callable, *arguments: object) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple:
        return self.call


def storage_blob(content: object) -> bytes:
    stream = io.BytesIO()
    torch.save(content, stream, _use_new_zipfile_serialization=False)
    return stream.getvalue()


def zip_blob(content: object) -> bytes:
    stream = io.BytesIO()
    torch.save(content, stream)
    return stream.getvalue()


def zipped(path: Path, pickled: bytes, compression: int = zipfile.ZIP_STORED, **records: bytes) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("archive/data.pkl", pickled)
        for name, content in records.items():
            archive.writestr(name.replace("__", "/"), content)
    return path


def claimed(shape: tuple[int, ...], stride: tuple[int, ...], numel: int = 4) -> bytes:
    """data.pkl of a state dict whose one tensor, under the names that each command looks for, claims a shape."""

    class Pickler(pickle.Pickler):
        def persistent_id(self, obj: object) -> object:
            return ("storage", torch.FloatStorage, "0", "cpu", numel) if obj is marker else None

    class Tensor:
        def __reduce__(self) -> tuple:
            return torch._utils._rebuild_tensor_v2, (marker, 0, shape, stride, False, collections.OrderedDict())

    marker, stream = object(), io.BytesIO()
    Pickler(stream, 2).dump({key: Tensor() for key in LOOKED_FOR})
    return stream.getvalue()


def safetensors(path: Path, header: object, data: bytes = b"", length: int | None = None) -> Path:
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)
    return path


def entry(shape: list[int], begin: int, end: int, dtype: str = "F32") -> dict:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def corpus(folder: Path, canary: Path) -> dict[str, Path]:
    """Every hostile file by name; those that could run something would write `canary`."""
    command = f"touch {canary}"
    system, evaluate = Caller(os.system, command), Caller(eval, f"open({str(canary)!r}, 'w')")
    popen = Caller(subprocess.Popen, ["touch", str(canary)])
    load = torch.storage._load_from_bytes
    small = storage_blob(torch.ones(3).untyped_storage())
    found = {}

    def put(name: str, content: bytes) -> None:
        (folder / name).write_bytes(content)
        found[name] = folder / name

    for protocol in (0, 2, 4, 5):
        put(f"system-{protocol}.pkl", pickle.dumps({"G_ema": system}, protocol))
    put("eval.pkl", pickle.dumps(evaluate))
    put("popen.pkl", pickle.dumps([popen]))
    put("getattr.pkl", pickle.dumps(Caller(getattr, "x", "__class__")))
    put("nested.pkl", pickle.dumps({"G_ema": Caller(load, pickle.dumps(system))}))
    put("nested-torch.pkl", pickle.dumps({"G_ema": Caller(load, storage_blob({"x": system}))}))
    put("nested-twice.pkl", pickle.dumps(Caller(load, storage_blob({"x": Caller(load, small)}))))
    put("legacy.pt", storage_blob({"g_ema": {"conv1.conv.weight": system}}))
    put("instance.pkl", f"(S'{command}'\nios\nsystem\n.".encode())
    put("huge-key.pkl", pickle.dumps({10**5000: 1}))
    put("odd-key.pkl", pickle.dumps({"a\nb\x1b[2J": 1}))
    put("no-modules.pkl", files.pickled(folder / "x", files.Module("G\nx", {}, {}, {}, _modules=3)).read_bytes())
    put("no-variables.pkl", files.pickled(folder / "x", (files.Network("G", {}, synthesis=3),)).read_bytes())  # type: ignore[arg-type]
    put("extension.pkl", b"\x80\x02\x82\x01.")
    put("build-name.pkl", b"\x80\x02cbuiltins\ndict\n}X\x01\x00\x00\x00ab.")
    put("deep-key.pkl", b"\x80\x02}N" + b"\x85" * 300_000 + b"Ns.")
    put("memo.pkl", b"\x80\x02Nr\xff\xff\xff\xff.")
    put("long-string.pkl", b"\x80\x04\x8e" + struct.pack("<Q", 2**60) + b"x")
    put("byte-array.pkl", b"\x80\x05\x96" + struct.pack("<Q", 2**40) + b"x")
    put("no-end.pkl", b"\x80\x02" + b"N" * 1000)
    put("underflow.pkl", b"\x80\x02R.")
    put("empty.pkl", b"")
    put("text.pkl", b"<html>quota exceeded</html>")
    put("opts.pt", storage_blob({"state_dict": {}, "opts": argparse.Namespace(device=system)}))
    put("opts-zip.pt", zip_blob({"state_dict": {}, "opts": argparse.Namespace(device=system)}))
    put("opts-build.pt", b"\x80\x02cargparse\nNamespace\n)\x81(cposix\nsystem\nX\x04\x00\x00\x00true\x85Rdb.")
    put("array.pkl", pickle.dumps({"conv1.conv.weight": np.array([system], dtype=object)}))
    found["source.pkl"] = files.pickled(folder / "source.pkl", {"G_ema": files.Module("Generator", {}, {}, {})})
    found["zip-system.pt"] = zipped(folder / "zip-system.pt", pickle.dumps(system))
    bomb = {"archive__data__0": bytes(60_000_000)}
    found["bomb.pt"] = zipped(folder / "bomb.pt", claimed((15_000_000,), (1,)), zipfile.ZIP_DEFLATED, **bomb)
    data = {"archive__data__0": bytes(16)}
    for name, shape, stride, numel in (
        ("absurd", (10**9, 10**9), (10**9, 1), 4),
        ("expanded", (10**6, 10**6), (0, 0), 4),
        ("beyond", (5,), (1,), 4),
        ("negative", (-4,), (1,), 4),
        ("huge-storage", (4,), (1,), 2**38),
    ):
        found[f"{name}.pt"] = zipped(folder / f"{name}.pt", claimed(shape, stride, numel), **data)
    found["traversal.pt"] = zipped(folder / "traversal.pt", claimed((4,), (1,)), **data, **{"..__..__evil": b"x"})
    found["script.pt"] = zipped(folder / "script.pt", claimed((4,), (1,)), **data, **{"archive__code__a.py": b"x"})
    put("not-a-zip.pt", b"PK\x03\x04" + bytes(200))
    for name, header, content, length in (
        ("beyond", {"conv1.conv.weight": entry([1000], 0, 4000)}, bytes(16), None),
        ("absurd", {"conv1.conv.weight": entry([10**9, 10**9], 0, 16)}, bytes(16), None),
        ("overlap", {"a": entry([4], 0, 16), "conv1.conv.weight": entry([4], 0, 16)}, bytes(16), None),
        ("long-header", {"a": entry([4], 0, 16)}, bytes(16), 2**50),
        ("no-json", "{", b"", None),
        ("name", {"../../evil": entry([4], 0, 16), "conv1.conv.weight": entry([1], 16, 20)}, bytes(20), None),
    ):
        found[f"{name}.safetensors"] = safetensors(folder / f"{name}.safetensors", header, content, length)
    return found | clips(folder, system)


def script(path: Path, pickled: bytes, code: int = 1000) -> Path:
    """A TorchScript archive: a zip whose code is compressed, and a pickle that names classes of that code."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickled)
        archive.writestr("archive/code/__torch__.py", bytes(code), zipfile.ZIP_DEFLATED)
    return path


def clips(folder: Path, system: Caller) -> dict[str, Path]:
    """CLIPs that are none, and archives with a program of their own."""
    made = b"\x80\x02c__torch__.multimodal\nMultimodal\n)\x81"  # an object of the archive's own
    found = {
        "script-system.pt": pickle.dumps({"visual": system}, 2),
        "script-code.pt": made + b"}X\x06\x00\x00\x00visualcos\nsystem\nX\x04\x00\x00\x00true\x85Rsb.",
        "script-cycle.pt": made + b"q\x00}X\x01\x00\x00\x00ah\x00sb.",
        "script-wide.pt": made + b"q\x00}(" + b"".join(b"X\x01\x00\x00\x00%ch\x00" % c for c in b"abcdefgh") + b"ub.",
        "script-deep.pt": made + (b"}X\x01\x00\x00\x00a" + made[2:]) * 3000 + b"sb" * 3000 + b".",
        "script-empty.pt": made + b"}b.",
    }
    paths = {name: script(folder / name, content) for name, content in found.items()}
    paths["script-bomb.pt"] = script(folder / "script-bomb.pt", made + b"}b.", code=60_000_000)
    for name, sizes in (
        ("vocabulary", {"token_embedding.weight": [49_408, 1]}),
        ("context", {"token_embedding.weight": [49_408, 1], "positional_embedding": [60_000, 1]}),
        ("layers", {"token_embedding.weight": [49_408, 1]}),
    ):
        shapes = {"visual.conv1.weight": [8192, 3, 1, 1], "input_resolution": [1], "visual.proj": [1, 1]}
        shapes |= {"positional_embedding": [77, 1], "text_projection": [1, 8000], "visual.positional_embedding": [2, 1]}
        shapes |= sizes
        if name == "vocabulary":
            shapes["token_embedding.weight"] = [3, 1]
        for tower in ("", "visual.") if name == "layers" else ():
            shapes |= {f"{tower}transformer.resblocks.{i}.ln_1.weight": [0] for i in range(5000)}
        header, end = {}, 0
        for key, shape in shapes.items():
            length = int(np.prod(shape))
            header[key] = entry(shape, end, end + length, "U8")
            end += length
        paths[f"clip-{name}.safetensors"] = safetensors(folder / f"clip-{name}.safetensors", header, bytes(end))
    return paths


@pytest.fixture(scope="module")
def canary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("canary") / "sang"


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory, canary: Path) -> dict[str, Path]:
    return corpus(tmp_path_factory.mktemp("hostile"), canary)


def test_the_canary_sings_when_such_a_file_is_read_the_ordinary_way(tmp_path: Path) -> None:
    canary = tmp_path / "sang"
    pickle.loads(corpus(tmp_path, canary)["system-4.pkl"].read_bytes())
    assert canary.exists()


@pytest.mark.parametrize(
    "command",
    [
        ("generator", "--domain", "mine"),
        ("encoder", "--domain", "tiny", "--force"),
        ("identity", "--domain", "tiny"),
        ("clip", "--domain", "tiny", "--force"),
        ("lpips", "--domain", "tiny", "--force"),
    ],
    ids=lambda command: command[0],
)
def test_every_hostile_file_is_refused_in_one_line_and_runs_nothing(
    command: tuple[str, ...],
    hostile: dict[str, Path],
    canary: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    monkeypatch.setenv("DELTASPACE_ROOT", str(tiny_project.make(tmp_path / "project")))
    app.run(
        ["import", command[0], str(hostile["absurd.pt"]), *command[1:]]
    )  # what is imported once is not counted below
    before = {path: path.read_bytes() for path in (tmp_path / "project").rglob("*") if path.is_file()}
    wrong: dict[str, object] = {}
    kinds = (".pkl", ".pt", ".safetensors") if command[0] == "generator" else (".pt", ".safetensors")
    for name, path in ((name, path) for name, path in hostile.items() if path.suffix in kinds):
        capsys.readouterr()
        tracemalloc.start()
        code = app.run(["import", command[0], str(path), *command[1:]])
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        told = capsys.readouterr()
        if (code, told.out, len(told.err.strip().splitlines())) != (2, "", 1) or name not in told.err:
            wrong[name] = code, told.err
        if peak > MOST_MEMORY:
            wrong[name] = f"{peak / 1e6:.0f} MB"
    assert wrong == {}
    assert not canary.exists()
    assert {path: path.read_bytes() for path in (tmp_path / "project").rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("system-4.pkl", "posix.system"),
        ("eval.pkl", "builtins.eval"),
        ("popen.pkl", "subprocess.Popen"),
        ("nested.pkl", "posix.system"),
        ("nested-torch.pkl", "posix.system"),
        ("nested-twice.pkl", "a pickle lies inside"),
        ("zip-system.pt", "posix.system"),
        ("bomb.pt", "compressed"),
        ("traversal.pt", "leaves it"),
        ("script.pt", "TorchScript"),
        ("expanded.pt", "claim more than"),
        ("absurd.pt", "but its data are 4 numbers"),
        ("name.safetensors", "is no name of a tensor"),
        ("long-header.safetensors", "header claims"),
    ],
)
def test_the_error_names_what_is_wrong(hostile: dict[str, Path], name: str, words: str) -> None:
    with pytest.raises(InputError, match=words):
        generators.load(hostile[name])


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("script-system.pt", "posix.system"),
        ("script-code.pt", "os.system"),
        ("script-cycle.pt", "too deep, or are too many"),
        ("script-wide.pt", "too deep, or are too many"),
        ("script-empty.pt", "holds no CLIP"),
        ("clip-vocabulary.safetensors", "vocabulary has 3 words"),
        ("clip-context.safetensors", "claims context 60000"),
        ("clip-layers.safetensors", "claims layers 5000"),
    ],
)
def test_the_error_about_a_clip_names_what_is_wrong(hostile: dict[str, Path], name: str, words: str) -> None:
    with pytest.raises(InputError, match=words):
        published_clip.load(hostile[name])


@pytest.mark.parametrize("kind", ["archive", "safetensors"])
def test_a_clip_cut_or_with_a_flipped_bit_is_refused_or_reads_as_one(tmp_path: Path, kind: str) -> None:
    from safetensors.torch import save_file

    path, state = tmp_path / "clip", clip_files.openai()
    if kind == "archive":
        clip_files.archive(path, state)
    else:
        save_file(clip_files.hugging_face(state), path)
        clip_files.config(tmp_path / "config.json")
    whole, draw = path.read_bytes(), random.Random(0)
    for length in (1, 100, len(whole) // 2, len(whole) - 9):
        path.write_bytes(whole[:length])
        with pytest.raises(InputError) as caught:
            published_clip.load(path)
        assert "\n" not in str(caught.value)
    for turn in range(12):
        place = draw.randrange(4000) if turn % 2 else len(whole) - 1 - draw.randrange(4000)
        broken = bytearray(whole)
        broken[place] ^= 1 << draw.randrange(8)
        path.write_bytes(broken)
        try:
            found = published_clip.load(path)
            assert all(bool(torch.isfinite(found.tensor(name)).all()) for name in found.like)
        except InputError as error:
            assert "\n" not in str(error)


def test_what_a_file_says_never_reaches_the_terminal_as_it_is(hostile: dict[str, Path]) -> None:
    for name in ("odd-key.pkl", "no-modules.pkl"):
        with pytest.raises(InputError) as caught:
            generators.load(hostile[name])
        assert str(caught.value).isprintable()


@pytest.mark.parametrize("kind", ["zip", "legacy", "nvidia", "safetensors"])
def test_a_file_cut_or_with_a_flipped_bit_is_refused_or_reads_as_a_generator(tmp_path: Path, kind: str) -> None:
    from safetensors.torch import save_file

    original, path = files.generator(), tmp_path / "g"
    state = original.state_dict()
    if kind == "nvidia":
        files.ada(path, original)
    elif kind == "safetensors":
        save_file({k: v.contiguous() for k, v in state.items()}, path)
    else:
        torch.save(state, path, _use_new_zipfile_serialization=kind == "zip")
    whole, draw, refused = path.read_bytes(), random.Random(0), 0
    for length in (1, 100, len(whole) // 2, len(whole) - 9):
        path.write_bytes(whole[:length])
        with pytest.raises(InputError) as caught:
            generators.load(path)
        assert "\n" not in str(caught.value)
    for turn in range(30):
        place = draw.randrange(min(len(whole), 4000) if turn % 2 else len(whole))
        broken = bytearray(whole)
        broken[place] ^= 1 << draw.randrange(8)
        path.write_bytes(broken)
        try:
            found = generators.load(path)
            assert all(bool(torch.isfinite(value).all()) for value in found.tensors().values())
        except InputError as error:
            assert "\n" not in str(error)
            refused += 1
    assert refused or kind != "zip"


def test_the_source_text_in_nvidias_files_is_never_run(tmp_path: Path) -> None:
    content = reader.read(files.ada(tmp_path / "g.pkl", files.generator()))
    assert isinstance(content.tree["G_ema"], reader.Thing)
    assert "module_src" not in vars(content.tree["G_ema"])


@pytest.mark.parametrize(
    "text",
    ["a: !!python/object/apply:os.system [touch sang]", "a: &x [1]\nb: *x", "a: !!python/name:os.system", "a: 1\na: 2"],
)
def test_yaml_is_plain_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.yaml").write_text(text)
    with pytest.raises(InputError, match="is not plain YAML") as caught:
        params.read_mapping(tmp_path / "x.yaml")
    assert "\n" not in str(caught.value) and not (tmp_path / "sang").exists()
