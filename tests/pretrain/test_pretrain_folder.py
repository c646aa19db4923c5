"""Trainings on a folder of photographs alone: resumable, in one process and in several."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grey_photographs
import pytest
import tiny_project
import torch
import yaml
from grey_photographs import BATCH, PLANS, TRAIN, VAL, R, domain_at

from deltaspace.cli import app
from pipeline.networks import Networks
from pipeline.runtime.errors import InputError
from pipeline.storage import domains, weights
from pipeline.storage.domains import Domain
from pretrain import augment, encoder
from pretrain import generator as gan
from pretrain.common import Training

here, domain = grey_photographs.here, grey_photographs.domain  # fixtures, `here` of every test


# ---------------------------------------------------------------- the trainings


def state_of(root: Path, name: str) -> dict[str, Any]:
    return torch.load(root / f"data/pretraining/cats/{name}.pt", weights_only=True)


def test_out_of_time_before_the_first_weights_stops_the_command(
    domain: Domain, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "domains/cats.yaml"
    file.write_text(file.read_text().replace("images_half_size: 8", "images_half_size: 16"))
    assert app.run(["pretrain", "cats", "--minutes", "1e-9"]) == 0
    output = capsys.readouterr().out
    assert "generator: out of time" in output and "done" not in output and "encoder" not in output
    assert app.run(["pretrain", "cats"]) == 0
    assert "generator: done" in capsys.readouterr().out


def test_one_command_trains_all_networks_that_photographs_allow(
    domain: Domain, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert app.run(["pretrain", "cats"]) == 0
    output = capsys.readouterr().out.splitlines()
    for name in ("generator", "encoder", "denoiser"):
        assert f"{name}: done, in data/pretrained/cats/{name}.safetensors" in output
        assert state_of(tmp_path, name)["step"] == 2
    for name in ("clip", "identity", "oracle", "oracle2"):
        (line,) = [line for line in output if line.startswith(f"{name}: skipped")]
        assert name.startswith("oracle") or f"deltaspace import {name} FILE --domain cats" in line
        assert not (tmp_path / f"data/pretrained/cats/{name}.safetensors").exists()
    networks = Networks(domain, tmp_path)
    with torch.no_grad():
        images = networks.generator(networks.encoder(Training(domain, tmp_path, "encoder").unseen_images()))
    assert images.shape == (VAL, 3, R, R) and torch.isfinite(images).all()
    assert weights.read_meta(networks.path("encoder"))["far_error"] > 0
    assert networks.denoiser.spec["resolution"] == R

    files = {path: path.read_bytes() for path in (tmp_path / "data/pretrained/cats").iterdir()}
    assert app.run(["pretrain", "cats"]) == 0  # all is finished
    assert {path: path.read_bytes() for path in files} == files


def test_an_imported_network_is_not_trained_again(
    domain: Domain, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    project = tiny_project.make(tmp_path / "made") / "data/pretrained/tiny"
    (tmp_path / "data/pretrained/cats").mkdir(parents=True)
    for name in ("generator", "clip", "encoder"):
        shutil.copy(project / f"{name}.safetensors", tmp_path / "data/pretrained/cats")
    before = (tmp_path / "data/pretrained/cats/generator.safetensors").read_bytes()
    assert app.run(["pretrain", "cats"]) == 0
    output = capsys.readouterr().out
    for name in ("generator", "clip", "encoder"):
        assert f"{name}: skipped, imported before, in data/pretrained/cats/{name}.safetensors" in output
    assert (tmp_path / "data/pretrained/cats/generator.safetensors").read_bytes() == before
    assert state_of(tmp_path, "denoiser")["step"] == 2


def test_an_encoder_can_be_trained_for_a_generator_without_discriminator(domain: Domain, tmp_path: Path) -> None:
    project = tiny_project.make(tmp_path / "made") / "data/pretrained/tiny"
    (tmp_path / "data/pretrained/cats").mkdir(parents=True)
    shutil.copy(project / "generator.safetensors", tmp_path / "data/pretrained/cats")
    content = yaml.safe_load((tmp_path / "domains/cats.yaml").read_text())
    del content["defaults"]["pretrain"]["generator"]
    (tmp_path / "domains/cats.yaml").write_text(yaml.safe_dump(content))
    job = Training(domains.load("cats", tmp_path), tmp_path, "encoder")
    assert encoder.discriminator_of(job).state_dict().keys()
    one, other = (encoder.discriminator_of(job).state_dict() for _ in range(2))
    assert all(torch.equal(one[key], other[key]) for key in one)  # in every process, after every restart
    encoder.train(job)
    assert state_of(tmp_path, "encoder")["step"] == 2


def test_only_few_photographs_are_augmented_unless_the_plan_says_otherwise(
    domain: Domain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[dict[str, Any]] = []

    def steps(*_: Any, **options: Any) -> Iterator[Any]:
        seen.append({name: options.get(name) for name in ("mirror", "augment")})
        return iter(())

    monkeypatch.setattr(gan, "steps", steps)
    monkeypatch.setattr(gan, "promote", lambda *_: None)
    monkeypatch.setattr(Training, "finished_steps", lambda _: 10**9)

    def asked(**options: Any) -> list[dict[str, Any]]:
        monkeypatch.setitem(PLANS, "generator", {**PLANS["generator"], **options})
        seen.clear()
        gan.train(Training(domain_at(tmp_path), tmp_path, "generator"))
        return seen

    assert asked() == [{"mirror": True, "augment": "ada"}] * 2  # both sizes
    monkeypatch.setattr(gan, "FEW_IMAGES", TRAIN - VAL)
    assert asked() == [{"mirror": True, "augment": None}] * 2
    assert asked(augment="ada", mirror=False) == [{"mirror": False, "augment": "ada"}] * 2


def test_an_unknown_augmentation_is_refused(domain: Domain, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="augment is 'adda': null or ada is expected"):
        next(loop(domain, tmp_path, tmp_path / "x.pt", augment="adda"))


def loop(domain: Domain, root: Path, state: Path, **options: Any) -> Iterator[tuple[int, Any, Any]]:
    """Eight steps of a generator's training."""
    job = Training(domain, root, "generator")
    options = {"batch": BATCH, "mirror": True, "augment": "ada", **options}
    return gan.steps(job.plan.model, job.training_images(0), state, 8 * BATCH, **options)


def test_a_resumed_augmented_training_ends_with_the_same_bytes(
    domain: Domain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(augment, "RANGE", 4 * BATCH * 5)
    monkeypatch.setattr(augment, "TARGET", -1.0)  # p rises with every decision
    monkeypatch.setattr(augment, "EVERY", 3)  # p does not change where states are saved
    whole, pieces = tmp_path / "whole.pt", tmp_path / "pieces.pt"
    chances = [metrics["augmented"] for _, metrics, _ in loop(domain, tmp_path, whole)]
    assert chances[0] == 0 and 0 < chances[3] < chances[7]
    for step in range(8):
        torch.manual_seed(step)  # what else the process drew must not matter
        list(loop(domain, tmp_path, pieces, seconds=0))
    one, other = torch.load(whole, weights_only=True), torch.load(pieces, weights_only=True)
    assert one["step"] == other["step"] == 8 and one["ada"] == other["ada"] and one["ada"]["batches"] == 2
    for part in ("g", "d", "ema"):
        assert all(torch.equal(one[part][key], other[part][key]) for key in one[part]), part
    for part in ("adam_g", "adam_d"):
        for number, slots in one[part]["state"].items():
            assert all(torch.equal(value, other[part]["state"][number][key]) for key, value in slots.items())


def test_augmentation_changes_the_losses_once_p_is_above_zero(
    domain: Domain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(augment, "RANGE", 4 * BATCH)
    monkeypatch.setattr(augment, "TARGET", -1.0)
    ends = [
        [m["loss_d"] for _, m, _ in loop(domain, tmp_path, tmp_path / f"{name}.pt", augment=name)]
        for name in (None, "ada")
    ]
    assert ends[0][:4] == ends[1][:4] and ends[0][4:] != ends[1][4:]


def test_full_size_starts_with_the_p_of_half_the_size(
    domain: Domain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(augment, "RANGE", 4 * BATCH * 10)
    monkeypatch.setattr(augment, "TARGET", -1.0)
    job = Training(domain, tmp_path, "generator")
    half, state = gan.halved(job.plan.model), tmp_path / "half.pt"
    list(gan.steps(half, job.training_images(0), state, 4 * BATCH, batch=BATCH, augment="ada"))
    _, metrics, _ = next(loop(domain, tmp_path, tmp_path / "whole.pt", smaller=state))
    assert metrics["augmented"] == pytest.approx(0.1)


# ---------------------------------------------------------------- several processes

SHARED = """
import hashlib, sys
from pathlib import Path
from pipeline import training
from pipeline.storage import domains
from pretrain import augment, datasets, generator
from pretrain.common import Training

if __name__ == "__main__":
    root = Path(sys.argv[1])
    augment.RANGE, augment.TARGET, datasets.PHOTO_CHUNK = 8 * 10, -1.0, 7
    assert training.join("cpu") == "cpu"
    follow, publish, last = Training.follow, Training.publish, []

    def watched(job, steps, *rest, **more):
        def each():
            for done, metrics, network in steps:
                last[:] = [metrics["augmented"], network]
                yield done, metrics, network
        follow(job, each(), *rest, **more)

    def published(job, tensors, model, name=None, **more):
        with (root / "published.txt").open("a") as file:
            file.write((name or job.name) + "\\n")
        return publish(job, tensors, model, name, **more)

    Training.follow, Training.publish = watched, published
    generator.train(Training(domains.load("cats", root), root, "generator", images=64))
    chance, network = last
    content = hashlib.sha256(b"".join(value.numpy().tobytes() for value in network.state_dict().values())).hexdigest()
    (root / f"rank-{training.local_batch(8)[0]}.txt").write_text(f"{chance} {training.local_batch(8)[1]} {content}")
"""


@pytest.mark.slow
def test_two_processes_end_with_equal_weights_and_write_files_once(domain: Domain, tmp_path: Path) -> None:
    (tmp_path / "shared.py").write_text(SHARED)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    run = subprocess.run(
        [*command, str(tmp_path / "shared.py"), str(tmp_path)],
        env={**os.environ, "PYTHONPATH": str(tiny_project.ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    one, other = ((tmp_path / f"rank-{rank}.txt").read_text().split() for rank in range(2))
    assert one == other and float(one[0]) > 0 and one[1] == "4"
    assert state_of(tmp_path, "generator")["step"] == 8
    assert (tmp_path / "published.txt").read_text().split() == ["discriminator", "generator"]
    leftovers = [path.name for path in (tmp_path / "data").rglob("*") if "partial" in path.name]
    assert not leftovers
    output = [line for line in run.stdout.splitlines() if "images, test images included" in line]
    assert len(output) == 1
