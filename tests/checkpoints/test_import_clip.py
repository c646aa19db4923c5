"""`deltaspace import clip`: CLIPs in the published layouts give what their own arithmetic gives."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import clip_files
import pytest
import tiny_project
import torch
import yaml
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

from kernels.box_resample import box_resample
from pipeline.models.clip import OPENAI_MEAN, OPENAI_STD, Clip
from pipeline.networks import Networks
from pipeline.storage import domains, weights

TEXTS = ["a face with red hair", "", "face " * 100, "赤い髪"]
TARGET = "data/pretrained/tiny/clip.safetensors"
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def project(tmp_path: Path) -> Path:
    root = tiny_project.make(tmp_path / "project")
    (root / TARGET).unlink()
    return root


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    return clip_files.openai()


def imported(project: Path, normalise: bool = False) -> Clip:
    path = project / "domains/tiny.yaml"
    path.write_text(yaml.safe_dump({**tiny_project.DOMAIN, "clip_normalise": normalise}))
    return Networks(domains.load("tiny", project), project).clip


def refused(outcome: tuple[int, str, str], words: str) -> None:
    code, out, err = outcome
    assert (code, out, len(err.splitlines())) == (2, "", 1), err
    assert words in err


def agree(clip: Clip, state: dict[str, Tensor], gelu: Callable[[Tensor], Tensor] = clip_files.quick) -> None:
    """The network gives the pictures and texts of the plain arithmetic on a state in OpenAI's layout."""
    theirs = clip_files.hugging_face({name: value.float() for name, value in state.items()})
    images = torch.rand(3, 3, 40, 40, generator=torch.Generator().manual_seed(1)) * 2 - 1
    pixels = box_resample(images, clip.image_size)
    if clip.normalise:
        mean, std = (torch.tensor(values)[:, None, None] for values in (OPENAI_MEAN, OPENAI_STD))
        pixels = ((pixels + 1) / 2 - mean) / std
    with torch.no_grad():
        expected = clip_files.plain_images(theirs, pixels, gelu)
        torch.testing.assert_close(clip.embed_images(images), expected, atol=1e-5, rtol=1e-5)
        texts = clip_files.plain_texts(theirs, clip.tokenizer(TEXTS).long(), gelu)
        torch.testing.assert_close(clip.embed_texts(TEXTS), texts, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("normalise", [False, True])
def test_openais_archive_gives_what_openais_arithmetic_gives(
    run: Run, project: Path, state: dict[str, Tensor], tmp_path: Path, normalise: bool
) -> None:
    code, out, err = run("import", "clip", clip_files.archive(tmp_path / "ViT-B-32.pt", state), "--domain", "tiny")
    assert (code, err) == (0, "") and "images of 24 pixels" in out and "embeddings of 20 numbers" in out
    clip = imported(project, normalise)
    assert (clip.dim, clip.image_size, clip.normalise) == (clip_files.EMBED, 24, normalise)
    agree(clip, clip_files.half(state))


@pytest.mark.parametrize("kind", ["safetensors", "bin", "legacy"])
@pytest.mark.parametrize("act", ["quick_gelu", "gelu"])
def test_hugging_faces_files_give_what_their_arithmetic_gives(
    run: Run, project: Path, state: dict[str, Tensor], tmp_path: Path, kind: str, act: str
) -> None:
    theirs, path = clip_files.hugging_face(state), tmp_path / f"model.{kind}"
    if kind == "safetensors":
        save_file(theirs, path, metadata={"format": "pt"})
    else:
        torch.save(theirs, path, _use_new_zipfile_serialization=kind == "bin")
    clip_files.config(tmp_path / "config.json", act)
    code, out, _ = run("import", "clip", path, "--domain", "tiny")
    assert code == 0 and "Hugging Face's CLIPModel" in out
    agree(imported(project), state, clip_files.quick if act == "quick_gelu" else F.gelu)


def test_a_state_dict_of_open_clip_is_the_model_that_is_named(
    run: Run, project: Path, state: dict[str, Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from open_clip import factory

    vision = {"image_size": 24, "layers": 2, "width": clip_files.VISION, "patch_size": clip_files.PATCH}
    text = {"context_length": 77, "vocab_size": 49408, "width": clip_files.TEXT, "heads": 1, "layers": 2}
    numbers = {"embed_dim": clip_files.EMBED, "vision_cfg": vision, "text_cfg": text}
    monkeypatch.setitem(factory._MODEL_CONFIGS, "ViT-tiny-8", numbers)
    monkeypatch.setitem(factory._MODEL_CONFIGS, "ViT-tiny-8-quickgelu", {**numbers, "quick_gelu": True})
    plain, training = tmp_path / "open_clip_pytorch_model.bin", tmp_path / "epoch_1.pt"
    torch.save(state, plain)
    torch.save({"epoch": 1, "state_dict": {f"module.{name}": value for name, value in state.items()}}, training)
    refused(run("import", "clip", plain, "--domain", "tiny"), "give --model")
    refused(run("import", "clip", plain, "--domain", "tiny", "--model", "ViT-B-32"), "it is another model")
    for path, name, gelu in (
        (plain, "ViT-tiny-8", F.gelu),
        (training, "ViT-tiny-8-quickgelu", clip_files.quick),
    ):
        assert run("import", "clip", path, "--domain", "tiny", "--model", name, "--force")[0] == 0
        agree(imported(project), state, gelu)


def test_openais_plain_state_dict_is_known_by_the_numbers_beside_its_weights(
    run: Run, project: Path, state: dict[str, Tensor], tmp_path: Path
) -> None:
    beside = {"input_resolution": torch.tensor(24), "context_length": torch.tensor(77), "vocab_size": torch.tensor(9)}
    torch.save({**state, **beside}, tmp_path / "clip.pt")
    assert run("import", "clip", tmp_path / "clip.pt", "--domain", "tiny")[0] == 0
    agree(imported(project), state)


def test_openais_residual_towers_are_read_as_well(run: Run, project: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    vision = {"image_size": 64, "layers": [1, 2, 1, 1], "width": 8, "patch_size": None}
    text = {"context_length": 77, "width": 64, "heads": 1, "layers": 1}
    theirs = Clip({"embed_dim": 12, "vision": vision, "text": text, "quick_gelu": True}).eval()
    state = {name: value for name, value in theirs.model.state_dict().items() if "num_batches" not in name}
    torch.jit.trace(clip_files.Node(state), torch.ones(1)).save(str(tmp_path / "RN50.pt"))
    assert run("import", "clip", tmp_path / "RN50.pt", "--domain", "tiny")[0] == 0
    ours, images = imported(project), torch.rand(2, 3, 40, 40)
    with torch.no_grad():
        torch.testing.assert_close(ours.embed_images(images), theirs.embed_images(images))
        torch.testing.assert_close(ours.embed_texts(TEXTS), theirs.embed_texts(TEXTS))


def test_an_imported_clip_knows_every_word_and_is_used_as_the_own_one_is(
    run: Run, project: Path, state: dict[str, Tensor], tmp_path: Path
) -> None:
    assert run("import", "clip", clip_files.archive(tmp_path / "x.pt", state), "--domain", "tiny")[0] == 0
    clip = imported(project)
    assert clip.unknown_words("a zebra on a bicycle") == []
    assert clip.text_delta("face", "face with red hair", ("a photo of {}",)).shape == (clip_files.EMBED,)
    meta = weights.read_meta(project / TARGET)
    assert meta["original"]["file"] == "x.pt" and meta["model"]["quick_gelu"] is True
    refused(run("import", "clip", tmp_path / "x.pt", "--domain", "tiny"), "--force")


def test_the_clip_of_another_domain_keeps_its_vocabulary(run: Run, project: Path, tmp_path: Path) -> None:
    own = tmp_path / "clip.safetensors"
    numbers = {**tiny_project.CLIP, "vision": {**tiny_project.CLIP["vision"], "image_size": 64}}
    theirs = Clip(numbers).eval()
    meta = {"model": numbers, "domain": "tiny", "vocabulary": ["face", "red"]}
    weights.save(own, theirs.state_dict(), meta, half=False)
    code, out, err = run("import", "clip", own, "--domain", "tiny")
    assert (code, err) == (0, "") and "the CLIP of another domain, images of 64 pixels" in out
    clip, images = imported(project), torch.rand(2, 3, 40, 40)
    with torch.no_grad():
        torch.testing.assert_close(clip.embed_images(images), theirs.embed_images(images))
        torch.testing.assert_close(clip.embed_texts(TEXTS), theirs.embed_texts(TEXTS))
    assert clip.unknown_words("red zebra") == ["zebra"]
    (project / "domains/other.yaml").write_text(yaml.safe_dump({**tiny_project.DOMAIN, "clip_normalise": True}))
    assert "set clip_normalise: false in domains/other.yaml" in run("import", "clip", own, "--domain", "other")[2]
    for wrong in ({**numbers, "embed_dim": 10**9}, {**numbers, "text": {}}, {"embed_dim": 4}, 7):
        weights.save(own, theirs.state_dict(), {"model": wrong}, half=False)
        code, _, err = run("import", "clip", own, "--domain", "tiny", "--force")
        assert code == 2 and len(err.splitlines()) == 1, err


def test_a_file_that_the_domain_does_not_name_is_pointed_out(
    run: Run, project: Path, state: dict[str, Tensor], tmp_path: Path
) -> None:
    entry = {"path": TARGET, "original_sha256": "0" * 64}
    (project / "domains/tiny.yaml").write_text(yaml.safe_dump({**tiny_project.DOMAIN, "clip": entry}))
    code, _, err = run("import", "clip", clip_files.archive(tmp_path / "x.pt", state), "--domain", "tiny")
    assert code == 0 and "not the one that the domain's file names" in err


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ("ViT-B-33", "open_clip has no model 'ViT-B-33' (did you mean"),
        ("ViT-B-16-SigLIP", "needs a Hugging Face tokenizer"),
        ("convnext_base", "not open_clip's own"),
        ("hf-hub:someone/else", "open_clip has no model"),
    ],
)
def test_unsupported_models_are_refused_by_name(
    run: Run, state: dict[str, Tensor], tmp_path: Path, model: str, words: str
) -> None:
    torch.save({"visual.conv1.weight": torch.ones(1), "token_embedding.weight": torch.ones(1)}, tmp_path / "x.pt")
    refused(run("import", "clip", tmp_path / "x.pt", "--domain", "tiny", "--model", model), words)


def test_what_does_not_fit_is_named(run: Run, project: Path, state: dict[str, Tensor], tmp_path: Path) -> None:
    path, config = tmp_path / "model.bin", tmp_path / "config.json"

    def told(words: str, theirs: dict[str, Tensor]) -> None:
        torch.save(theirs, path)
        refused(run("import", "clip", path, "--domain", "tiny"), words)

    theirs = clip_files.hugging_face(state)
    told("give --model", theirs)
    clip_files.config(config)
    told(
        "vision_model.pre_layrnorm.bias missing",
        {k: v for k, v in theirs.items() if k != "vision_model.pre_layrnorm.bias"},
    )
    told("extra too many", {**theirs, "extra": torch.ones(2)})
    told(
        "in_proj_weight has the shape",
        {**theirs, "text_model.encoder.layers.1.self_attn.q_proj.weight": torch.ones(3, 3)},
    )
    told("claims layers 0", {k: v for k, v in theirs.items() if not k.startswith("text_model.encoder")})
    told("vocabulary has 7 words", {**theirs, "text_model.embeddings.token_embedding.weight": torch.ones(7, 64)})
    told(
        "not finite",
        {**theirs, "visual_projection.weight": torch.full_like(theirs["visual_projection.weight"], torch.nan)},
    )
    told("holds no CLIP", {"x": torch.ones(2)})
    clip_files.config(config, "relu")
    told("config.json beside it asks for layers", theirs)
    config.write_text(json.dumps({"text_config": {"num_attention_heads": -1}, "vision_config": {}}))
    told("attention heads do not divide", theirs)
    config.write_text("[" * 100_000)
    told("does not describe a CLIPModel", theirs)
    assert not (project / TARGET).exists()
