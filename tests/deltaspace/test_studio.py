from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tiny_project
import torch
import yaml
from PIL import Image

import deltaspace
from deltaspace.studio import Studio, device_named
from pipeline import inversion, relevance, sampling
from pipeline.runtime.errors import InputError
from pipeline.storage import weights

R = tiny_project.R
TEXT = "face with red hair"


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_project.make(tmp_path_factory.mktemp("service"))


@pytest.fixture(scope="module")
def studio(project: Path) -> Studio:
    return deltaspace.load("tiny", device="cpu", root=project)


@pytest.fixture
def photo() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8))


def test_importing_the_library_imports_nothing_heavy() -> None:
    code = "import sys, deltaspace; print([m for m in ('torch', 'numpy', 'PIL', 'yaml') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


def test_one_picture_gives_the_same_edit_in_every_form(studio: Studio, photo: Image.Image, tmp_path: Path) -> None:
    photo.save(tmp_path / "photo.png")
    forms = [tmp_path / "photo.png", str(tmp_path / "photo.png"), photo, np.asarray(photo)]
    results = [studio.edit(form, TEXT) for form in forms]
    for result in results[1:]:
        assert torch.equal(result.pixels, results[0].pixels)
    assert results[0].pixels.shape == (3, R, R)
    tensor = studio.edit(results[0].image.pixels, TEXT)
    assert torch.equal(tensor.pixels, results[0].pixels)


def test_strength_zero_is_the_inversion_and_more_strength_moves_further(studio: Studio, photo: Image.Image) -> None:
    person = studio.photo(photo)
    zero, half, whole = (studio.edit(person, TEXT, strength, editor="deltaedit_g") for strength in (0.0, 0.5, 1.0))
    assert torch.equal(zero.pixels, person.inversion) and zero.moved == 0
    assert torch.equal(studio.edit(person, TEXT, 0.0).pixels, person.pixels)  # by default it is the photograph
    steps = [(result.edited.s - person.source.s).norm().item() for result in (half, whole)]  # type: ignore[operator]
    assert 0 < steps[0] == pytest.approx(steps[1] / 2, rel=1e-4)


def test_a_higher_threshold_moves_fewer_channels(studio: Studio) -> None:
    moved = [studio.edit(studio.sample(1), TEXT, threshold=threshold).moved for threshold in (0.0, 0.1, 9.0)]
    assert moved[0] == studio.networks.generator.layout.size > moved[1] > moved[2] == 0  # type: ignore[operator]


def test_a_direction_is_fitted_once_per_prompt_and_settings(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    studio = deltaspace.load("tiny", device="cpu", root=project)
    fitted = []
    real = studio.networks.clip.text_delta
    monkeypatch.setattr(
        studio.networks.clip,
        "text_delta",
        lambda source, target, templates: fitted.append((source, target)) or real(source, target, templates),
    )
    for row_id in (1, 2):
        for strength in (0.5, 1.0):
            studio.edit(studio.sample(row_id), TEXT, strength)
    studio.edit(studio.sample(1), TEXT, source="happy face")
    assert fitted == [("face", TEXT), ("happy face", TEXT)]


def test_a_sample_is_the_fake_of_that_id(studio: Studio) -> None:
    from pipeline import sampling

    fake = sampling.sample_w(studio.networks.generator, [5], seed=0, truncation=1.0, batch=8, redrawn=0.5)
    assert torch.equal(studio.sample(5).source.inversion.w_plus[:, 0], fake)
    assert not torch.equal(studio.sample(5, seed=1).source.inversion.w_plus[:, 0], fake)
    assert studio.sample(5).error is None


def test_only_a_drawn_person_has_a_counterfactual(studio: Studio) -> None:
    from pipeline import portraits
    from pipeline.storage import images

    person = studio.portrait(58000)
    result = studio.edit(person, TEXT, editor="counterfactual")
    red = portraits.counterfactual(portraits.sample(58000), {"hair_color": "red"})
    assert torch.equal(result.pixels, images.from_uint8(portraits.render(red, R)))
    assert result.moved is None
    with pytest.raises(InputError, match="give --portrait ID"):
        studio.edit(studio.sample(1), TEXT, editor="counterfactual")


def test_a_picture_far_from_the_domain_gets_a_warning_with_the_number(project: Path, tmp_path: Path) -> None:
    root = tiny_project.copy(project, tmp_path / "copy")
    path = root / "data/pretrained/tiny/encoder.safetensors"
    tensors, meta = weights.load(path)
    for limit, count in ((1e-9, 1), (100.0, 0)):
        weights.save(path, tensors, {**meta, "far_error": limit})
        studio = deltaspace.load("tiny", device="cpu", root=root)
        person = studio.portrait(1)
        assert len(person.warnings) == count
        guess = studio.networks.encoder(person.source.image)
        told = f"{inversion.errors(studio.networks.generator, person.source.image, guess).item():.3f}"
        assert all(told in warning for warning in person.warnings)


def test_words_clip_was_never_taught_get_a_warning_with_their_number(studio: Studio) -> None:
    assert studio.prompt(TEXT).warnings == ()
    (warning,) = studio.prompt("face with 👋 and Wizard hair").warnings
    assert "3 of 6 words" in warning and all(f"'{word}'" in warning for word in ("👋", "and", "wizard"))
    (warning,) = studio.prompt("وجه بشعر أحمر").warnings
    assert "3 of 3 words" in warning
    (warning,) = studio.prompt(TEXT, source="zebra").warnings
    assert "'zebra'" in warning


def test_a_prompt_longer_than_clip_reads_is_cut_with_a_note(studio: Studio) -> None:
    prompt = studio.prompt(f"{TEXT} " * 200)
    (warning,) = prompt.warnings
    assert "reads the first" in warning and "of its 800 words" in warning
    assert prompt.pair.target.split() == (TEXT.split() * 9)[: len(prompt.pair.target.split())]
    assert studio.edit(studio.sample(1), prompt.pair.target).prompt.warnings == ()


def test_a_prompt_of_the_domain_knows_its_attribute_whatever_its_case(studio: Studio) -> None:
    pair = studio.prompt("Face with RED hair").pair
    assert (pair.asks, pair.source) == ({"hair_color": "red"}, "face")
    assert not studio.prompt("face with hair").pair.asks


@pytest.mark.parametrize("text", ["", " ", "\u200f", "\udcff"])
def test_prompts_with_nothing_in_them_are_refused(studio: Studio, text: str) -> None:
    with pytest.raises(InputError):
        studio.prompt(text)


def test_names_come_with_the_nearest(studio: Studio, project: Path) -> None:
    with pytest.raises(InputError, match="did you mean 'deltaedit_g'"):
        studio.edit(studio.sample(1), TEXT, editor="deltaeditg")
    with pytest.raises(InputError, match="did you mean 'tiny'"):
        deltaspace.load("tinny", root=project)
    with pytest.raises(InputError, match="did you mean 'cuda'"):
        device_named("cda")


def test_a_device_that_is_not_there_is_refused() -> None:
    with pytest.raises(InputError, match="is not there"):
        device_named(f"cuda:{torch.cuda.device_count()}")


def test_a_threshold_for_an_editor_without_one_is_refused(studio: Studio) -> None:
    with pytest.raises(InputError, match="identity_editor has no threshold"):
        studio.edit(studio.sample(1), TEXT, editor="identity_editor", threshold=0.1)


@pytest.mark.parametrize("picture", [3, None, np.zeros((4, 4), dtype=np.float32), torch.zeros(3, R, R + 1)])
def test_what_is_no_picture_is_refused(studio: Studio, picture: object) -> None:
    with pytest.raises(InputError):
        studio.photo(picture)


def test_a_missing_network_names_the_command_that_makes_it(project: Path, tmp_path: Path) -> None:
    root = tiny_project.copy(project, tmp_path / "copy")
    (root / "data/pretrained/tiny/clip.safetensors").unlink()
    with pytest.raises(InputError, match="deltaspace import clip FILE --domain tiny"):
        deltaspace.load("tiny", device="cpu", root=root).prompt(TEXT)


def test_without_a_matrix_relevance_is_measured_for_the_text_alone_and_said_so(project: Path, tmp_path: Path) -> None:
    bare = tiny_project.copy(project, tmp_path / "bare")
    (bare / "data/pretrained/tiny/relevance.safetensors").unlink()
    studio = deltaspace.load("tiny", device="cpu", root=bare)
    editor = studio.editor("deltaedit_g", 0.1)
    assert len(editor.warnings) == 1 and "dvc repro relevance@tiny" in editor.warnings[0]
    image, prompt = studio.sample(3), studio.prompt(TEXT)
    result = studio.apply(image, prompt, editor)
    networks, delta = studio.networks, studio.networks.clip.text_delta("face", TEXT, studio.domain.templates)
    probe = relevance.probe(networks.generator, networks.clip, *sampling.style_stats(networks), relevance.SINGLE_TEXT)
    effect = relevance.prompt_relevance(probe, delta)
    moved = (result.edited.s != image.source.s)[0]  # type: ignore[index]
    assert torch.equal(moved, effect.abs() >= 0.1) and 0 < moved.sum() < len(moved)
    assert editor.warnings[0] in result.warnings


def test_a_generator_and_a_clip_are_enough_to_edit_its_own_pictures(project: Path, tmp_path: Path) -> None:
    bare = tiny_project.copy(project, tmp_path / "bare")
    for name in ("relevance", "mapper", "encoder"):
        (bare / f"data/pretrained/tiny/{name}.safetensors").unlink()
    (bare / "params.yaml").write_text(
        yaml.safe_dump(
            {**tiny_project.PARAMS, "edit_baseline": {"styleclip_gd": {"strength": 1.0, "alpha": 3.0, "beta": 0.0}}}
        )
    )
    studio = deltaspace.load("tiny", device="cpu", root=bare)
    studio.ready(photographs=False)
    with pytest.raises(InputError, match=r"encoder.safetensors is missing"):
        studio.ready()
    result = studio.edit(studio.sample(3), TEXT, editor="styleclip_gd")
    assert result.moved == result.channels and torch.isfinite(result.pixels).all()
    mean, std = sampling.style_stats(studio.networks)
    assert mean.shape == std.shape == (result.channels,) and (std > 0).all()


@pytest.mark.parametrize(
    "options",
    [{"text": None}, {"strength": "1"}, {"strength": 1e9}, {"threshold": "a"}, {"editor": 4}, {"source": 4}],
    ids=str,
)
def test_wrong_arguments_are_refused(studio: Studio, options: dict[str, object]) -> None:
    with pytest.raises(InputError):
        studio.edit(studio.sample(1), **{"text": TEXT, **options})  # type: ignore[arg-type]


def test_wrong_ids_and_devices_are_refused(studio: Studio) -> None:
    for call in (lambda: studio.sample(-1), lambda: studio.portrait("3"), lambda: device_named(5)):  # type: ignore[arg-type]
        with pytest.raises(InputError):
            call()
