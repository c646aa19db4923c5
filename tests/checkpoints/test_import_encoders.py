"""Encoders and the face network of others: in our form, in the right place, or refused by name in one line."""

from __future__ import annotations

import argparse
import collections
import json
import os
import random
from collections.abc import Callable
from pathlib import Path

import arcface_files as files
import numpy as np
import pytest
import tiny_project
import torch
from arcface_files import NARROW, Plain
from PIL import Image
from torch import Tensor

from pipeline.checkpoints import encoders
from pipeline.networks import Networks
from pipeline.runtime.errors import InputError
from pipeline.storage import domains, weights

R, D = tiny_project.R, tiny_project.D
ROWS, SIZE = 6, 64
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """The tiny project without an encoder; its generator stays."""
    root = tiny_project.make(tmp_path / "project")
    (root / "data/pretrained/tiny/encoder.safetensors").unlink()
    return root


def at(project: Path) -> Networks:
    return Networks(domains.load("tiny", project), project)


def shipped(project: Path, name: str) -> Path:
    return project / f"data/pretrained/tiny/{name}.safetensors"


@pytest.fixture(scope="module")
def theirs() -> dict[str, Tensor]:
    return files.drawn(files.encoder_shapes(ROWS, NARROW, D, SIZE))


@pytest.fixture(scope="module")
def decoder() -> dict[str, Tensor]:
    from pipeline.models import stylegan2

    torch.manual_seed(2)
    model = {"size": R, "style_dim": D, "widths": {"4": 12, "8": 10, "16": 8}, "n_mlp": 2}
    return {key: value.clone() for key, value in stylegan2.build(model).state_dict().items()}


MEAN = torch.linspace(-1, 1, D)


def refused(outcome: tuple[int, str, str], *words: str) -> None:
    code, out, err = outcome
    assert (code, out, len(err.splitlines())) == (2, "", 1), err
    assert all(word in err for word in words), err


# ---------------------------------------------------------------- e4e and pSp


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("namespace", [False, True])
def test_an_e4e_file_becomes_encoder_and_generator(
    run: Run, project: Path, tmp_path: Path, theirs: dict, decoder: dict, namespace: bool, legacy: bool
) -> None:
    shipped(project, "generator").unlink()
    content = files.checkpoint(theirs, decoder, MEAN.expand(ROWS, -1), dataset_type="ffhq_encode", lr=1e-4, n=[1, None])
    content["opts"]["checkpoint"] = argparse.Namespace(path="x")
    if namespace:
        content["opts"] = argparse.Namespace(**content["opts"])
    path = files.saved(tmp_path / "e4e.pt", content, legacy)
    code, out, err = run("import", "encoder", path, "--domain", "tiny")
    assert (code, err) == (0, "") and "e4e, 6 rows of 12 numbers" in out and "generator.safetensors" in out
    images = torch.rand(3, 3, SIZE, SIZE) * 2 - 1
    expected = Plain(theirs).codes(images, ROWS, MEAN)
    nets = at(project)
    assert (nets.encoder(images) - expected).abs().max() < 1e-4 * expected.abs().max()
    assert nets.encoder.latent_avg.shape == (ROWS, D)
    assert {k for k, v in decoder.items() if not torch.allclose(nets.generator.state_dict()[k], v)} == set()
    assert torch.allclose(nets.generator.w_mean, MEAN)
    assert shipped(project, "generator").with_suffix(".png").exists()
    meta = weights.read_meta(shipped(project, "encoder"))
    assert meta["model"] == {
        "backbone": "ir_se50",
        "widths": list(NARROW),
        "rows": ROWS,
        "style_dim": D,
        "size": SIZE,
        "common": True,
    }
    original = meta["original"]
    assert original["sha256"] == weights.digest(path) and original["kind"] == "e4e"
    assert original["opts"]["dataset_type"] == "ffhq_encode" and original["opts"]["n"] == [1, None]
    assert original["opts"]["checkpoint"] == {"path": "x"}


def test_pictures_are_inverted_with_it(run: Run, project: Path, tmp_path: Path, theirs: dict, decoder: dict) -> None:
    path = files.saved(tmp_path / "e4e.pt", files.checkpoint(theirs, decoder, torch.zeros(ROWS, D)))
    assert run("import", "encoder", path, "--domain", "tiny")[0] == 0
    noise = np.random.default_rng(0).integers(0, 255, (R, R, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "photo.png")
    code, out, _ = run("invert", tmp_path / "photo.png", "--domain", "tiny", "--out", tmp_path / "out")
    assert code == 0 and "inversion error" in out


def test_a_psp_file_keeps_its_rows_apart(run: Run, project: Path, tmp_path: Path, theirs: dict, decoder: dict) -> None:
    content = files.checkpoint(
        theirs, decoder, MEAN[None], encoder_type="GradualStyleEncoder", start_from_latent_avg=True
    )
    assert run("import", "encoder", files.saved(tmp_path / "psp.pt", content), "--domain", "tiny")[0] == 0
    images = torch.rand(2, 3, SIZE, SIZE) * 2 - 1
    expected = Plain(theirs).codes(images, ROWS, MEAN, psp=True)
    assert (at(project).encoder(images) - expected).abs().max() < 1e-4 * expected.abs().max()


def test_a_generator_that_is_there_stays_and_another_ones_mean_is_doubted(
    run: Run, project: Path, tmp_path: Path, theirs: dict, decoder: dict
) -> None:
    tensors, meta = weights.load(shipped(project, "generator"))
    weights.save(shipped(project, "generator"), tensors | {"w_mean": MEAN}, meta)
    before = shipped(project, "generator").read_bytes()
    path = files.saved(tmp_path / "e4e.pt", files.checkpoint(theirs, decoder, MEAN + 0.01))
    assert run("import", "encoder", path, "--domain", "tiny")[::2] == (0, "")
    refused(run("import", "encoder", path, "--domain", "tiny"), "exists already", "--force")
    files.saved(path, files.checkpoint(theirs, decoder, -MEAN))
    code, _, err = run("import", "encoder", path, "--domain", "tiny", "--force")
    assert code == 0 and "trained for another generator?" in err
    assert shipped(project, "generator").read_bytes() == before


def test_what_the_oldest_files_lack_is_filled_in(run: Run, project: Path, tmp_path: Path, theirs: dict) -> None:
    shipped(project, "generator").unlink()
    state = {key: value for key, value in theirs.items() if not key.endswith("num_batches_tracked")}
    content = files.checkpoint(state, {}, None, start_from_latent_avg=False)
    del content["opts"]["encoder_type"]
    code, _, err = run("import", "encoder", files.saved(tmp_path / "e4e.pt", content), "--domain", "tiny")
    assert code == 0
    for words in ("read as e4e's", "does not start from a mean code", "holds no generator"):
        assert words in err
    images = torch.rand(2, 3, SIZE, SIZE) * 2 - 1
    expected = Plain(theirs).codes(images, ROWS, torch.zeros(D))
    assert (at(project).encoder(images) - expected).abs().max() < 1e-4 * expected.abs().max()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"opts": {"encoder_type": "ProgressiveBackboneEncoder"}}, "its encoder is ProgressiveBackboneEncoder"),
        ({"opts": {"encoder_type": "BackboneEncoderUsingLastLayerIntoW"}}, "BackboneEncoderUsingLastLayerIntoW"),
        ({"opts": {"encoder_type": "a\x1b[2Jb"}}, "its encoder is a\\x1b[2Jb"),
        ({"opts": {"dataset_type": "cars_encode"}}, "192 x 256"),
        ({"opts": [1, 2]}, "its opts are no mapping"),
        ({"latent_avg": None}, "latent_avg is missing"),
        ({"latent_avg": torch.zeros(ROWS + 1, D)}, "latent_avg has the shape [7, 12]"),
        ({"latent_avg": torch.zeros(ROWS, D, dtype=torch.int32)}, "latent_avg"),
        ({"input_layer.0.weight": torch.zeros(16, 6, 3, 3)}, "takes 6 channels, as ReStyle's"),
        ({"input_layer.0.weight": torch.zeros(16, 19, 3, 3)}, "takes 19 channels"),
        ({"styles.5.linear.weight": None}, "has 5 rows"),
        ({"body.13.res_layer.5.fc1.weight": None}, "body.13.res_layer.5.fc1.weight missing"),
        ({"latlayer2.bias": None, "latlayer1.bias": None}, "latlayer1.bias, latlayer2.bias missing"),
        ({"body.24.res_layer.0.weight": torch.ones(64)}, "body.24.res_layer.0.weight have no place"),
        ({"styles.3.linear.weight": torch.ones(D, 65)}, "styles.3.linear.weight has the shape [12, 65]"),
        ({"body.0.res_layer.1.weight": torch.ones(16)}, "4 dimensions are expected"),
        ({"body.2.res_layer.0.weight": torch.ones(16, dtype=torch.int64)}, "numbers of type int64"),
        ({"body.2.res_layer.0.weight": torch.full((16,), torch.nan)}, "not finite"),
        ({"body.2.res_layer.0.num_batches_tracked": torch.tensor(1.5)}, "num_batches_tracked holds numbers"),
    ],
)
def test_what_cannot_be_run_is_refused_by_name(
    run: Run, project: Path, tmp_path: Path, theirs: dict, decoder: dict, change: dict, words: str
) -> None:
    content = files.checkpoint(theirs, decoder, MEAN.expand(ROWS, -1), start_from_latent_avg=True)
    for key, value in change.items():
        if key == "opts" and isinstance(value, dict):
            content["opts"] |= value
        elif key in ("opts", "latent_avg"):
            content[key] = value
        else:
            content["state_dict"][f"encoder.{key}"] = value
    content["state_dict"] = {key: value for key, value in content["state_dict"].items() if value is not None}
    before = sorted(path.name for path in shipped(project, "x").parent.iterdir())
    refused(run("import", "encoder", files.saved(tmp_path / "e4e.pt", content), "--domain", "tiny"), words, "e4e.pt")
    assert sorted(path.name for path in shipped(project, "x").parent.iterdir()) == before


def test_an_encoder_of_another_generator_is_refused(
    run: Run, project: Path, tmp_path: Path, theirs: dict, decoder: dict
) -> None:
    eight = files.drawn(files.encoder_shapes(8, NARROW, D, SIZE))
    path = files.saved(tmp_path / "e4e.pt", files.checkpoint(eight, decoder, MEAN))
    refused(run("import", "encoder", path, "--domain", "tiny"), "8 rows", "16 pixels have 6")
    wide = files.drawn(files.encoder_shapes(ROWS, NARROW, D + 1, SIZE))
    files.saved(path, files.checkpoint(wide, decoder, torch.zeros(D + 1)))
    refused(run("import", "encoder", path, "--domain", "tiny"), "e4e.pt", "13 numbers, the generator's 12")
    files.saved(path, decoder)
    refused(run("import", "encoder", path, "--domain", "tiny"), "holds no encoder")
    refused(run("import", "encoder", path, "--domain", "nowhere"), "unknown domain")
    shipped(project, "generator").unlink()
    broken = {key: value for key, value in decoder.items() if key != "convs.1.conv.weight"}
    files.saved(path, files.checkpoint(theirs, broken, MEAN))
    refused(run("import", "encoder", path, "--domain", "tiny"), "3 convolutions")
    assert not shipped(project, "encoder").exists() and not shipped(project, "generator").exists()


# ---------------------------------------------------------------- the face network


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_face_network_is_the_one_of_the_file(run: Run, project: Path, tmp_path: Path, wrapped: bool) -> None:
    state = files.drawn(files.face_shapes(NARROW, 20))
    content = {"state_dict": state} if wrapped else collections.OrderedDict(state)
    path = files.saved(tmp_path / "model_ir_se50.pth", content, legacy=True)
    code, out, err = run("import", "identity", path, "--domain", "tiny")
    assert (code, err) == (0, "") and "embeddings of 20 numbers" in out
    images = torch.rand(2, 3, 256, 256) * 2 - 1
    assert (at(project).identity(images) - Plain(state).face(images)).abs().max() < 1e-4
    assert weights.read_meta(shipped(project, "identity"))["original"]["sha256"] == weights.digest(path)
    refused(run("import", "identity", path, "--domain", "tiny"), "--force")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"output_layer.3.weight": None}, "output_layer.3.weight is not among its keys"),
        ({"body.23.res_layer.5.fc2.weight": None}, "body.23.res_layer.5.fc2.weight missing"),
        ({"output_layer.4.running_var": torch.ones(21)}, "output_layer.4.running_var has the shape [21]"),
        ({"head.weight": torch.ones(2)}, "head.weight have no place"),
        ({7: torch.ones(2)}, "no name of a tensor"),
    ],
)
def test_another_face_network_is_refused(run: Run, project: Path, tmp_path: Path, change: dict, words: str) -> None:
    state = {k: v for k, v in (files.drawn(files.face_shapes(NARROW, 20)) | change).items() if v is not None}
    path = files.saved(tmp_path / "face.pth", state)
    refused(run("import", "identity", path, "--domain", "tiny"), words, "face.pth")
    assert not shipped(project, "identity").exists()


# ---------------------------------------------------------------- hostile


class Caller:
    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple:
        return os.system, (self.command,)


class Options(argparse.Namespace):
    """A Namespace of a class that is not on the list."""


@pytest.mark.parametrize("legacy", [False, True])
def test_opts_that_call_out_run_nothing(run: Run, tmp_path: Path, theirs: dict, decoder: dict, legacy: bool) -> None:
    canary = tmp_path / "sang"
    hostile = Caller(f"touch {canary}")
    for opts, words in (
        (hostile, "posix.system"),
        ({"encoder_type": "Encoder4Editing", "device": hostile}, "posix.system"),
        (argparse.Namespace(device=hostile), "posix.system"),
        (Options(device="cuda"), "Options"),
    ):
        content = files.checkpoint(theirs, decoder, MEAN) | {"opts": opts}
        path = files.saved(tmp_path / "e4e.pt", content, legacy)
        refused(run("import", "encoder", path, "--domain", "tiny"), words, "not on the list")
    assert not canary.exists()
    torch.load(files.saved(tmp_path / "x", hostile), weights_only=False)
    assert canary.exists()  # it would have sung


def test_opts_of_any_kind_are_kept_as_plain_data(run: Run, project: Path, tmp_path: Path, theirs: dict) -> None:
    odd = {
        "long": "x" * 10_000,
        "huge": 10**400,
        "nan": float("nan"),
        "lone": "\udcff",
        "tensor": torch.ones(2),
        "deep": [[[[[[1]]]]]],
        3: b"bytes",
        "many": list(range(10_000)),
    }
    path = files.saved(tmp_path / "e4e.pt", files.checkpoint(theirs, {}, MEAN) | {"opts": odd})
    assert run("import", "encoder", path, "--domain", "tiny")[0] == 0
    opts = weights.read_meta(shipped(project, "encoder"))["original"]["opts"]
    assert len(json.dumps(opts)) < 5000 and opts["tensor"] == "(TensorSpec)" and opts["huge"] == "(int)"


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("kind", ["encoder", "face"])
def test_a_file_cut_or_with_a_flipped_bit_is_refused_or_reads_as_a_network(
    tmp_path: Path, theirs: dict, kind: str, legacy: bool
) -> None:
    path = tmp_path / "network.pt"
    if kind == "encoder":
        files.saved(path, files.checkpoint(theirs, {}, MEAN, options=argparse.Namespace(a=1)), legacy)
    else:
        files.saved(path, files.drawn(files.face_shapes(NARROW, 20)), legacy)
    whole, draw, refusals = path.read_bytes(), random.Random(0), 0

    def read() -> encoders.Imported:
        return encoders.style_encoder(path, R) if kind == "encoder" else encoders.face_network(path)

    for length in (1, 100, len(whole) // 2, len(whole) - 9):
        path.write_bytes(whole[:length])
        with pytest.raises(InputError) as caught:
            read()
        assert "\n" not in str(caught.value)
    for turn in range(24):
        place = draw.randrange(40_000) if turn % 2 else draw.randrange(len(whole))
        broken = bytearray(whole)
        broken[place] ^= 1 << draw.randrange(8)
        path.write_bytes(broken)
        try:
            found = read()
            assert all(bool(torch.isfinite(value).all()) for value in found.tensors.values())
        except InputError as error:
            assert "\n" not in str(error)
            refusals += 1
    assert refusals > (20 if not legacy else 2)
