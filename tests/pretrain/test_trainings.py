"""Trainings of a domain's networks: each resumes where it was killed, and ends in a file the pipeline reads."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import astuple, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small_trainings
import torch
from small_trainings import BATCH, CHUNK, PARTS, PEOPLE, D, R, domain_at, job_of, loop_of, module_of
from torch import Tensor

from pipeline import portraits
from pipeline.networks import Networks
from pipeline.runtime.errors import InputError
from pipeline.storage import weights
from pretrain import clip, common, datasets, encoder, labels
from pretrain import generator as gan
from pretrain.datasets import DeviceImages

small_chunks = small_trainings.small_chunks  # a fixture of every test here


@pytest.fixture(scope="module")
def trained(small_chunks: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project in which every training has run for two steps."""
    root = tmp_path_factory.mktemp("trained")
    for name in PARTS:
        module_of(name).train(job_of(name, root))
    return root


@pytest.fixture
def project(trained: Path, tmp_path: Path) -> Path:
    """A copy of it that a test may change."""
    return Path(shutil.copytree(trained, tmp_path / "project"))


def state_of(root: Path, name: str) -> dict[str, Any]:
    return torch.load(root / f"data/pretraining/tiny/{name}.pt", weights_only=True)


# ---------------------------------------------------------------- every training


@pytest.mark.parametrize("name", PARTS)
def test_a_training_takes_its_steps_and_writes_its_state(name: str, trained: Path) -> None:
    state = state_of(trained, name)
    assert state["step"] == 2  # 19 images are two whole batches
    assert "ema" in state and any(part.startswith("adam") for part in state)


@pytest.mark.parametrize("name", PARTS)
def test_trained_networks_are_read_by_the_pipeline(name: str, trained: Path) -> None:
    networks = Networks(domain_at(trained), trained)
    images = torch.rand(3, 3, R, R) * 2 - 1
    outputs: dict[str, Callable[[Any], Tensor]] = {
        "generator": lambda net: net(net.repeat(net.truncate(net.mapping(torch.randn(3, D)), 0.7))),
        "clip": lambda net: torch.cat([net.embed_images(images), net.embed_texts(["face", "red hair", ""])]),
        "identity": lambda net: net(images),
        "oracle": lambda net: torch.cat(list(net(images).values()), dim=1),
        "oracle2": lambda net: torch.cat(list(net(images).values()), dim=1),
        "encoder": lambda net: net(images),
        "denoiser": lambda net: net(
            images, torch.tensor([1, 500, 999]), torch.randn(3, networks.generator.layout.size)
        ),
    }
    network = getattr(networks, name)
    with torch.no_grad():
        assert torch.isfinite(outputs[name](network)).all()
    assert not network.training and not any(parameter.requires_grad for parameter in network.parameters())


@pytest.mark.parametrize("name", PARTS)
def test_promoted_files_hold_averaged_half_precision_weights_and_a_header(name: str, trained: Path) -> None:
    path = trained / f"data/pretrained/tiny/{name}.safetensors"
    tensors, meta = weights.load(path)
    averaged = state_of(trained, name)["ema"]
    assert set(averaged) == set(tensors) - {"w_mean"}
    for key, value in averaged.items():
        torch.testing.assert_close(tensors[key], value, atol=1e-3, rtol=1e-3, check_dtype=False)
    floats = sum(value.numel() for value in tensors.values() if value.is_floating_point())
    assert path.stat().st_size < 2 * floats + 60_000  # two bytes a number, and a heading
    assert meta["network"] == name and meta["domain"] == "tiny" and meta["steps"] == 2


@pytest.mark.parametrize("name", PARTS)
def test_a_finished_training_called_again_changes_no_byte(name: str, project: Path) -> None:
    path = project / f"data/pretrained/tiny/{name}.safetensors"
    before = path.read_bytes()
    module_of(name).train(job_of(name, project))
    assert path.read_bytes() == before


@pytest.mark.parametrize("name", PARTS)
def test_more_images_continue_a_finished_training(name: str, project: Path) -> None:
    module_of(name).train(job_of(name, project, images=3 * BATCH))
    assert state_of(project, name)["step"] == 3


@pytest.mark.parametrize("name", ["oracle", "generator"])
def test_a_fresh_training_puts_the_old_state_aside(name: str, project: Path) -> None:
    old = project / f"data/pretraining/tiny/{name}.pt"
    before = old.read_bytes()
    module_of(name).train(job_of(name, project, images=BATCH, resume=False))
    assert state_of(project, name)["step"] == 1
    assert old.with_suffix(".pt.old").read_bytes() == before


@pytest.mark.parametrize("name", PARTS)
def test_without_a_state_training_continues_from_the_weights(name: str, project: Path) -> None:
    (project / f"data/pretraining/tiny/{name}.pt").unlink()
    kept, _ = weights.load(project / f"data/pretrained/tiny/{name}.safetensors")
    module = module_of(name)
    module.train(job_of(name, project))  # finished already: no step is left
    again = state_of(project, name)
    assert again["step"] == 2
    for key, value in again["ema"].items():
        torch.testing.assert_close(value, kept[key], check_dtype=False)
    module.train(job_of(name, project, images=3 * BATCH))
    state = state_of(project, name)
    assert state["step"] == 3 and any(part.startswith("adam") for part in state)
    part = "d" if name == "generator" else "ema"  # at first only the discriminator is trained
    assert any(not torch.equal(value, again[part][key]) for key, value in state[part].items())


def test_without_a_state_the_generator_keeps_its_discriminator(project: Path) -> None:
    known = state_of(project, "generator")["d"]
    for name in ("generator", "generator-half"):
        (project / f"data/pretraining/tiny/{name}.pt").unlink()
    gan.train(job_of("generator", project))
    assert not (project / "data/pretraining/tiny/generator-half.pt").exists()
    for key, value in state_of(project, "generator")["d"].items():
        torch.testing.assert_close(value, known[key], atol=1e-3, rtol=1e-3)


def test_weights_of_other_sizes_start_anew(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (project / "data/pretraining/tiny/oracle.pt").unlink()
    plan = {"model": {"widths": [7, 9]}, "images": BATCH, "renders": CHUNK, "batch": BATCH}
    module_of("oracle").train(job_of("oracle", project, domain_at(project, defaults={"pretrain": {"oracle": plan}})))
    assert "oracle starts anew" in capsys.readouterr().out
    assert state_of(project, "oracle")["step"] == 1


def test_a_damaged_state_is_named_in_one_line(project: Path) -> None:
    path = project / "data/pretraining/tiny/oracle.pt"
    path.write_bytes(path.read_bytes()[:-900])
    with pytest.raises(InputError, match=r"oracle\.pt is damaged") as caught:
        module_of("oracle").train(job_of("oracle", project, images=3 * BATCH))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", PARTS)
def test_promoting_without_a_state_names_the_command(name: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=rf"{name}\.pt is missing: run `deltaspace pretrain tiny {name}`"):
        module_of(name).promote(job_of(name, tmp_path))


def test_a_split_of_the_generators_plan_replaces_the_domains(tmp_path: Path) -> None:
    plan = {"model": {"split": [1, 3]}, "images": BATCH}
    domain = domain_at(tmp_path, defaults={"pretrain": {"generator": plan, "encoder": {**plan, "model": {}}}})
    assert job_of("generator", tmp_path, domain).plan.model["split"] == [1, 3]
    assert job_of("encoder", tmp_path, domain).plan.model["split"] == list(domain.level_split) == [2, 4]


@pytest.mark.parametrize("name", PARTS)
def test_a_missing_plan_is_refused(name: str, project: Path) -> None:
    with pytest.raises(InputError, match=rf"domains/tiny.yaml has no defaults.pretrain.{name}"):
        module_of(name).train(job_of(name, project, domain_at(project, defaults={})))


@pytest.mark.parametrize(("old", "new"), common.RENAMED_OPTIONS.items())
def test_an_option_by_its_old_name_is_refused_with_the_new_one(old: str, new: str, tmp_path: Path) -> None:
    plan = {"model": {}, "images": BATCH, old: 1}
    domain = domain_at(tmp_path, defaults={"pretrain": {"denoiser": plan}})
    with pytest.raises(InputError, match=rf"domains/tiny.yaml, defaults.pretrain.denoiser: {old} is now {new}"):
        _ = job_of("denoiser", tmp_path, domain).plan


@pytest.mark.parametrize("name", common.NEED_LABELS)
def test_networks_that_need_labels_are_refused_for_photographs(name: str, project: Path) -> None:
    with pytest.raises(InputError, match=f"domain 'tiny' has no renderer: {name} needs images with known parameters"):
        module_of(name).train(job_of(name, project, domain_at(project, renderer=None)))


@pytest.mark.parametrize("name", PARTS)
def test_a_resumed_training_ends_with_the_same_bytes(name: str, trained: Path, tmp_path: Path) -> None:
    whole, pieces = tmp_path / "whole.pt", tmp_path / "pieces.pt"
    assert [seen for seen, *_ in loop_of(name, trained, whole)] == [8, 16, 24, 32]
    for expected in (8, 16, 24, 32):
        torch.manual_seed(expected)  # other random numbers of the process must not matter
        assert [seen for seen, *_ in loop_of(name, trained, pieces, seconds=0)] == [expected]
    one, other = torch.load(whole, weights_only=True), torch.load(pieces, weights_only=True)
    assert one.keys() == other.keys()
    for part in one.keys() - {"step"}:
        for a, b in zip(leaves(one[part]), leaves(other[part]), strict=True):
            assert torch.equal(a, b), part


def leaves(state: Any) -> list[Tensor]:
    """All tensors and numbers of a nested state, in order."""
    if isinstance(state, Tensor):
        return [state]
    if isinstance(state, dict):
        return [leaf for key in state for leaf in leaves(state[key])]
    if isinstance(state, list | tuple):
        return [leaf for part in state for leaf in leaves(part)]
    return [torch.tensor(float(state))] if isinstance(state, int | float) else []


@pytest.mark.parametrize("name", ["identity", "oracle", "oracle2", "clip"])
def test_training_reduces_the_loss(name: str, trained: Path, tmp_path: Path) -> None:
    plan = job_of(name, trained).plan
    data = datasets.Renders(trained, R, PEOPLE if name == "identity" else None)
    people = {"people": PEOPLE, "scale": 4.0} if name == "identity" else {"warmup": 16} if name == "clip" else {}
    steps = module_of(name).steps
    count = 160 if name == "oracle2" else 40  # eight numbers per token, and none of its layers has batch norm
    loop = steps(plan.model, data, tmp_path / "state.pt", count * 16, batch=16, lr=5e-3, **people)
    losses = [metrics["loss"] for _, metrics, _ in loop]
    assert np.mean(losses[-8:]) < 0.95 * np.mean(losses[:8])


def test_labels_are_written_beside_renders_and_computed_again_where_missing(trained: Path) -> None:
    data = datasets.Renders(trained, R, PEOPLE)
    known = data.labels()
    assert len(known.geometry) == len(known.attributes) == len(data)
    person = datasets.training_portrait(7, PEOPLE)
    assert known.geometry[7].tolist() == pytest.approx(list(astuple(person.identity)))
    assert torch.equal(known.geometry[7], known.geometry[7 + PEOPLE])  # the same person
    of_row = known.of_rows(torch.tensor([7]))
    for name, visible in portraits.visible(person).items():
        value = portraits.ATTRIBUTES[name].index(portraits.attributes(person)[name])
        assert of_row[name].item() == (value if visible else labels.HIDDEN)
    for path in data.folder.glob(f"*{datasets.LABELS}"):
        path.unlink()
    again = datasets.Renders(trained, R, PEOPLE).labels()
    assert torch.equal(again.attributes, known.attributes) and torch.equal(again.geometry, known.geometry)
    assert len(list(data.folder.glob(f"*{datasets.LABELS}"))) == len(data.chunks)


def test_device_images_on_a_cpu_are_those_on_disk(trained: Path) -> None:
    data = datasets.Renders(trained, R)
    images, rows = DeviceImages(data, "cpu"), torch.tensor([CHUNK + 1, 0, 3])
    assert len(images) == len(data) and torch.equal(images.images(rows), data.images(rows))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_device_images_on_a_gpu_are_those_on_disk(trained: Path, tmp_path: Path) -> None:
    data = datasets.Renders(trained, R)
    images, rows = DeviceImages(data, "cuda"), torch.tensor([CHUNK + 1, 0, 3])
    images.refresh()  # nothing new
    on_device = images.images(rows.cuda())
    assert on_device.is_cuda and torch.allclose(on_device.cpu(), data.images(rows), atol=1e-6)


# ---------------------------------------------------------------- the generator's two sizes


def test_out_of_time_at_half_the_size_promotes_nothing_and_resumes(tmp_path: Path, trained: Path) -> None:
    shutil.copytree(trained / "data/pretraining/portraits", tmp_path / "data/pretraining/portraits")
    job, file = job_of("generator", tmp_path), tmp_path / "data/pretrained/tiny/generator.safetensors"
    gan.train(replace(job, minutes=1e-9))
    assert state_of(tmp_path, "generator-half")["step"] == 1
    assert not file.exists() and not (tmp_path / "data/pretraining/tiny/generator.pt").exists()
    gan.train(replace(job, minutes=1e-9))  # ends the half size, and begins the whole
    assert state_of(tmp_path, "generator-half")["step"] == 2
    assert state_of(tmp_path, "generator")["step"] == 1 and file.exists()
    gan.train(job)
    assert state_of(tmp_path, "generator")["step"] == 2


def test_only_the_discriminator_is_trained_at_first(trained: Path, tmp_path: Path) -> None:
    loop = loop_of("generator", trained, tmp_path / "state.pt")
    weights_after = []
    for _ in loop:
        frame = loop.gi_frame.f_locals  # type: ignore[attr-defined]
        networks = frame["generator"], frame["discriminator"]
        weights_after.append([torch.cat([p.detach().flatten() for p in net.parameters()]) for net in networks])
    (g1, d1), (g2, d2), (g3, d3), _ = weights_after
    assert torch.equal(g1, g2) and not torch.equal(g2, g3)
    assert not torch.equal(d1, d2) and not torch.equal(d2, d3)


# ---------------------------------------------------------------- CLIP and encoder


def test_weak_attributes_are_those_that_the_nearest_text_misreads(trained: Path) -> None:
    people = list(datasets.Renders(trained, R).people(torch.arange(40)))
    values_of_attributes = [(name, value) for name, values in portraits.ATTRIBUTES.items() for value in values]
    value_of_phrase = {
        portraits.noun_phrase("face", p): (name, value)
        for name, value in values_of_attributes
        for p in portraits.PHRASES[name][value][0]
    }

    class PartialClip:
        """CLIP that reads the attributes `learnt` without error, and all values of others as the same."""

        def __init__(self, *learnt: str) -> None:
            self.learnt = learnt

        def embedding(self, name: str, value: str) -> Tensor:
            return (
                torch.eye(len(values_of_attributes))[values_of_attributes.index((name, value))]
                if name in self.learnt
                else torch.ones(len(values_of_attributes))
            )

        def embed_images(self, images: Tensor) -> Tensor:
            true = [portraits.attributes(person) for person in people]
            return torch.stack([sum(self.embedding(name, values[name]) for name in self.learnt) for values in true])  # type: ignore[misc]

        def embed_texts(self, texts: list[str]) -> Tensor:
            return torch.stack([self.embedding(*value_of_phrase[text]) for text in texts])

    learnt = ("hair_color", "background", "skin")
    weak = clip.weak_attributes(PartialClip(*learnt), torch.zeros(40, 3, R, R), people)  # type: ignore[arg-type]
    assert weak is not None and not set(weak) & set(learnt) and {"expression", "facial_hair", "lips"} <= set(weak)
    assert clip.weak_attributes(PartialClip(*portraits.ATTRIBUTES), torch.zeros(40, 3, R, R), people) is None  # type: ignore[arg-type]


def test_the_encoder_uses_the_generators_discriminator_where_it_exists(project: Path) -> None:
    discriminator = encoder.discriminator_of(job_of("encoder", project))
    trained_weights = state_of(project, "generator")["d"]
    for name, value in discriminator.state_dict().items():
        torch.testing.assert_close(value, trained_weights[name], atol=1e-3, rtol=1e-3)
    (project / "data/pretrained/tiny/discriminator.safetensors").unlink()
    assert (
        encoder.discriminator_of(job_of("encoder", project)).from_rgb.weight.shape
        == discriminator.from_rgb.weight.shape
    )


def test_the_encoder_starts_at_the_mean_code(trained: Path, tmp_path: Path) -> None:
    list(loop_of("encoder", trained, tmp_path / "state.pt"))
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    mean = Networks(domain_at(trained), trained).generator.w_mean
    for part in ("encoder", "ema"):
        torch.testing.assert_close(state[part]["latent_avg"], mean.expand(6, D))


# ---------------------------------------------------------------- images


def test_renders_are_the_training_portraits_in_order(trained: Path) -> None:
    data = datasets.Renders(trained, R)
    assert len(data) == 2 * CHUNK  # 25 asked for, whole chunks made
    rows = torch.tensor([0, 30, 7])
    for image, person, row in zip(data.images(rows), data.people(rows), rows.tolist(), strict=True):
        assert person == portraits.sample(datasets.FIRST_ID + row)
        drawn = torch.from_numpy(portraits.render(person, R)).permute(2, 0, 1)
        assert torch.equal(((image + 1) * 127.5).round().byte(), drawn)
        assert image.min() >= -1 and image.max() <= 1


def test_with_few_people_each_has_several_images(trained: Path) -> None:
    data = datasets.Renders(trained, R, PEOPLE)
    first, again = data.people(torch.tensor([1, 1 + PEOPLE]))
    assert first.identity == again.identity == portraits.sample(datasets.FIRST_ID + 1).identity
    assert first.traits != again.traits and first.look != again.look
    images = data.images(torch.tensor([1, 1 + PEOPLE]))
    assert not torch.equal(images[0], images[1])


def test_finished_chunks_stay_and_new_ones_are_seen_after_a_refresh(project: Path) -> None:
    data, folder = datasets.Renders(project, R), datasets.render_folder(project, R)
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    datasets.make_renders(project, R, 3 * CHUNK)
    assert len(data) == 2 * CHUNK
    data.refresh()
    assert len(data) == 3 * CHUNK
    assert {name: (folder / name).stat().st_mtime_ns for name in before} == before
    (folder / "00003.partial").write_bytes(b"half")
    (folder / "00004.npy").write_bytes((folder / "00000.npy").read_bytes())  # beyond a gap
    data.refresh()
    assert len(data) == 3 * CHUNK
