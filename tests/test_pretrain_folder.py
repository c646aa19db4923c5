"""A folder of pictures and nothing else: what is learnt from it, what stays unseen, and trainings that go on."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_project
import torch
import yaml
from PIL import Image
from torch import Tensor

from pipeline import domains, weights
from pipeline.backbones import Backbones
from pipeline.domains import Domain
from pipeline.values import InputError
from pretrain import ada, encoder, photographs, session
from pretrain import generator as gan
from pretrain.photographs import Photographs
from stages import app

R, D, BATCH, COUNT = tiny_project.R, tiny_project.D, 8, 30
TRAIN, VAL, TEST = 24, 4, 5  # 20 to learn from, 4 for validation, 5 to test on; one is left over
PLANS: dict[str, dict[str, Any]] = {
    "generator": {
        "model": {
            "size": R,
            "style_dim": D,
            "n_mlp": 2,
            "widths": {4: 8, 8: 7, 16: 6},
            "discriminator": {16: 4, 8: 6, 4: 9},
        },
        "images": 2 * BATCH,
        "images_half_size": BATCH,
        "batch": BATCH,
    },
    "encoder": {
        "model": {"resolution": R, "widths": [6, 8, 12, 16], "rows": 6, "style_dim": D},
        "images": 2 * BATCH,
        "batch": BATCH,
        "progressive": [8, 8],
    },
    "denoiser": {
        "model": {"channels": 8, "mult": [1, 2], "attention": [], "time_dim": 16, "style_dim": 12},
        "images": 2 * BATCH,
        "batch": BATCH,
    },
}


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DELTASPACE_ROOT", str(tmp_path))
    monkeypatch.setenv("DELTASPACE_WORKERS", "1")
    monkeypatch.setattr(photographs, "CHUNK", 7)


def shade(place: int) -> int:
    return 8 * place


def photos(folder: Path, count: int = COUNT) -> Path:
    """Grey pictures that are told apart by their shade, of several sizes."""
    folder.mkdir(exist_ok=True)
    for place in range(count):
        Image.new("RGB", (R + place % 3, R + 4), (shade(place),) * 3).save(folder / f"{place:03}.png")
    return folder


def domain_at(root: Path, source: str | None = "photos", **sizes: Any) -> Domain:
    """A project with one domain, of photographs."""
    params = {"prepare": {"source": None, "train": None, "val": None, "test": None, "test_start": 100, "shard": 8}}
    (root / "params.yaml").write_text(yaml.safe_dump(params))
    (root / "domains").mkdir(exist_ok=True)
    prepare = {"source": source, "train": TRAIN, "val": VAL, "test": TEST, **sizes}
    content = {"resolution": R, "neutral": "cat", "level_split": [2, 4]}
    content |= {"defaults": {"prepare": prepare, "pretrain": PLANS}}
    (root / "domains/cats.yaml").write_text(yaml.safe_dump(content))
    return domains.load("cats", root)


@pytest.fixture
def domain(tmp_path: Path) -> Domain:
    photos(tmp_path / "photos")
    return domain_at(tmp_path)


def shades(images: Tensor) -> list[int]:
    assert (images == images[:, :1, :1, :1]).all()
    return ((images[:, 0, 0, 0] + 1) * 127.5).round().int().tolist()


# ---------------------------------------------------------------- the pictures


def test_only_training_rows_are_learnt_from_in_the_order_of_the_names(domain: Domain, tmp_path: Path) -> None:
    data = session.pictures(domain, tmp_path, 0)
    assert len(data) == TRAIN - VAL and len(data.chunks) == 3  # of seven each, the last one smaller
    rows = torch.tensor([0, 6, 7, 19, 13, 14, 0])
    assert shades(data.images(rows)) == [shade(row) for row in rows.tolist()]
    assert data.images(rows).shape == (7, 3, R, R)
    assert shades(session.unseen(domain, tmp_path)) == [shade(row) for row in range(TRAIN - VAL, TRAIN)]


def test_training_rows_are_those_of_the_stage_that_prepares_the_dataset(domain: Domain, tmp_path: Path) -> None:
    from pipeline import collection, params

    sizes = params.section(collection.PrepareParams, tmp_path, "prepare", domain=domain)
    listing = collection.photographs(sizes.source, tmp_path, 1)
    (tmp_path / "photos/002.png").write_bytes(b"no picture")
    seen = [collection.examine(listing.path, member, False) for member in listing.members]
    prepared = collection.chosen(listing, seen, sizes, R)
    train = [place for place, (_, split) in enumerate(prepared.rows) if split == "train"]
    data = session.pictures(domain, tmp_path, 0)
    assert len(data) == len(train)
    for row in (0, 1, 2, 3, 19):
        from pipeline import images

        assert torch.equal(data.images(torch.tensor([row]))[0], images.decode_png(prepared(train[row]).image))


def test_pictures_stay_on_the_disk_and_are_looked_up_there(domain: Domain, tmp_path: Path) -> None:
    data = session.pictures(domain, tmp_path, 0)
    assert all(isinstance(chunk, np.memmap) and chunk.dtype == np.uint8 for chunk in data.chunks)


def test_what_was_read_is_not_read_again(domain: Domain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    session.pictures(domain, tmp_path, 0)
    monkeypatch.setattr(photographs.collection, "looked_at", None)
    assert len(session.pictures(domain, tmp_path, 0)) == TRAIN - VAL


def test_a_changed_folder_is_noticed_and_a_running_training_is_not_disturbed(domain: Domain, tmp_path: Path) -> None:
    before = session.pictures(domain, tmp_path, 0)
    Image.new("RGB", (R, R), (255, 255, 255)).save(tmp_path / "photos/000.png")
    after = session.pictures(domain, tmp_path, 0)
    before.refresh()
    assert shades(before.images(torch.tensor([0, 1]))) == [shade(0), shade(1)]
    assert shades(after.images(torch.tensor([0, 1]))) == [255, shade(1)]


def test_another_share_for_validation_is_noticed(domain: Domain, tmp_path: Path) -> None:
    session.pictures(domain, tmp_path, 0)
    fewer = session.pictures(domain_at(tmp_path, val=10), tmp_path, 0)
    assert len(fewer) == TRAIN - 10
    assert shades(session.unseen(domain_at(tmp_path, val=10), tmp_path, 3)) == [shade(14), shade(15), shade(16)]


def test_without_validation_the_last_pictures_are_measured_with(tmp_path: Path) -> None:
    photos(tmp_path / "photos")
    domain = domain_at(tmp_path, val=0)
    assert len(session.unseen(domain, tmp_path)) == TRAIN == len(Photographs(domain, tmp_path))


def test_what_cannot_be_used_is_left_out_and_named(
    domain: Domain, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "photos/003.png").write_bytes(b"no picture")
    data = session.pictures(domain, tmp_path, 0)
    assert shade(3) not in shades(data.images(torch.arange(len(data))))
    assert "skipped 1, such as 003.png" in capsys.readouterr().out


@pytest.mark.parametrize("part", ["generator", "encoder", "denoiser"])
def test_without_a_source_one_line_says_where_to_put_it(
    part: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    domain_at(tmp_path, source=None)
    shutil.copytree(tiny_project.make(tmp_path / "made") / "data/pretrained/tiny", tmp_path / "data/pretrained/cats")
    assert app.run(["pretrain", "cats", part]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "into domains/cats.yaml, defaults.prepare.source" in line
    assert not (tmp_path / "data/pretraining").exists()


def test_a_killed_reading_goes_on(domain: Domain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written, write = [], photographs.write

    def stopped(job: photographs.Job, path: Path) -> None:
        if len(written) == 2:
            raise KeyboardInterrupt
        written.append(path)
        write(job, path)

    monkeypatch.setattr(photographs, "write", stopped)
    with pytest.raises(KeyboardInterrupt):
        session.pictures(domain, tmp_path, 0)
    assert not photographs.folder(domain, tmp_path).exists()
    written.clear()
    monkeypatch.setattr(photographs, "write", lambda job, path: (written.append(path), write(job, path)))
    assert len(session.pictures(domain, tmp_path, 0)) == TRAIN - VAL
    assert len(written) == 2  # the third chunk, and those that stay unseen


def test_reading_leaves_the_training_its_threads(domain: Domain, tmp_path: Path) -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        session.pictures(domain, tmp_path, 0)
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


# ---------------------------------------------------------------- the trainings


def state_of(root: Path, name: str) -> dict[str, Any]:
    return torch.load(root / f"data/pretraining/cats/{name}.pt", weights_only=True)


def test_out_of_time_before_the_first_weights_nothing_is_called_done_and_no_later_part_begins(
    domain: Domain, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "domains/cats.yaml"
    file.write_text(file.read_text().replace("images_half_size: 8", "images_half_size: 16"))
    assert app.run(["pretrain", "cats", "--minutes", "1e-9"]) == 0
    told = capsys.readouterr().out
    assert "generator: out of time" in told and "done" not in told and "encoder" not in told
    assert app.run(["pretrain", "cats"]) == 0
    assert "generator: done" in capsys.readouterr().out


def test_one_command_trains_what_the_domain_lacks_and_can_have(
    domain: Domain, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert app.run(["pretrain", "cats"]) == 0
    told = capsys.readouterr().out.splitlines()
    for name in ("generator", "encoder", "denoiser"):
        assert f"{name}: done, in data/pretrained/cats/{name}.safetensors" in told
        assert state_of(tmp_path, name)["step"] == 2
    for name in ("clip", "identity", "oracle"):
        (line,) = [line for line in told if line.startswith(f"{name}: left out")]
        assert name == "oracle" or f"deltaspace import-{name} FILE --domain cats" in line
        assert not (tmp_path / f"data/pretrained/cats/{name}.safetensors").exists()
    networks = Backbones(domain, tmp_path)
    with torch.no_grad():
        pictures = networks.generator(networks.encoder(session.unseen(domain, tmp_path)))
    assert pictures.shape == (VAL, 3, R, R) and torch.isfinite(pictures).all()
    assert weights.read_meta(networks.path("encoder"))["far_error"] > 0
    assert networks.denoiser.spec["resolution"] == R

    files = {path: path.read_bytes() for path in (tmp_path / "data/pretrained/cats").iterdir()}
    assert app.run(["pretrain", "cats"]) == 0  # all was finished
    assert {path: path.read_bytes() for path in files} == files


def test_an_imported_network_is_not_trained_again(
    domain: Domain, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = tiny_project.make(tmp_path / "made") / "data/pretrained/tiny"
    (tmp_path / "data/pretrained/cats").mkdir(parents=True)
    for name in ("generator", "clip", "encoder"):
        shutil.copy(made / f"{name}.safetensors", tmp_path / "data/pretrained/cats")
    before = (tmp_path / "data/pretrained/cats/generator.safetensors").read_bytes()
    assert app.run(["pretrain", "cats"]) == 0
    told = capsys.readouterr().out
    for name in ("generator", "clip", "encoder"):
        assert f"{name}: left out, imported before, in data/pretrained/cats/{name}.safetensors" in told
    assert (tmp_path / "data/pretrained/cats/generator.safetensors").read_bytes() == before
    assert state_of(tmp_path, "denoiser")["step"] == 2


def test_an_encoder_is_trained_for_a_generator_that_comes_with_nothing_else(domain: Domain, tmp_path: Path) -> None:
    made = tiny_project.make(tmp_path / "made") / "data/pretrained/tiny"
    (tmp_path / "data/pretrained/cats").mkdir(parents=True)
    shutil.copy(made / "generator.safetensors", tmp_path / "data/pretrained/cats")
    content = yaml.safe_load((tmp_path / "domains/cats.yaml").read_text())
    del content["defaults"]["pretrain"]["generator"]
    (tmp_path / "domains/cats.yaml").write_text(yaml.safe_dump(content))
    domain = domains.load("cats", tmp_path)
    assert encoder.judge(domain, tmp_path).state_dict().keys()
    one, other = (encoder.judge(domain, tmp_path).state_dict() for _ in range(2))
    assert all(torch.equal(one[key], other[key]) for key in one)  # in every process, after every restart
    encoder.train(domain, tmp_path)
    assert state_of(tmp_path, "encoder")["step"] == 2


def test_few_photographs_are_augmented_many_are_not_and_the_plan_has_the_last_word(
    domain: Domain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[dict[str, Any]] = []

    def steps(*_: Any, **options: Any) -> Iterator[Any]:
        seen.append({name: options.get(name) for name in ("mirror", "augment")})
        return iter(())

    monkeypatch.setattr(gan, "steps", steps)
    monkeypatch.setattr(gan, "promote", lambda *_: None)
    monkeypatch.setattr(session, "progress_of", lambda _: 10**9)

    def asked(**options: Any) -> list[dict[str, Any]]:
        monkeypatch.setitem(PLANS, "generator", {**PLANS["generator"], **options})
        seen.clear()
        gan.train(domain_at(tmp_path), tmp_path)
        return seen

    assert asked() == [{"mirror": True, "augment": "ada"}] * 2  # both sizes
    monkeypatch.setattr(gan, "FEW", TRAIN - VAL)
    assert asked() == [{"mirror": True, "augment": None}] * 2
    assert asked(augment="ada", mirror=False) == [{"mirror": False, "augment": "ada"}] * 2


def test_another_word_for_augmentation_is_refused(domain: Domain, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="augment is 'adda': null or ada is expected"):
        next(loop(domain, tmp_path, tmp_path / "x.pt", augment="adda"))


def loop(domain: Domain, root: Path, state: Path, **options: Any) -> Iterator[tuple[int, Any, Any]]:
    """Eight steps of a generator's training."""
    plan = session.plan(domain, "generator")
    data = session.pictures(domain, root, 0)
    options = {"batch": BATCH, "mirror": True, "augment": "ada", **options}
    return gan.steps(plan.model, data, state, 8 * BATCH, **options)


def test_augmented_and_stopped_after_every_step_it_ends_with_the_bytes_of_an_undisturbed_run(
    domain: Domain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ada, "RANGE", 4 * BATCH * 5)
    monkeypatch.setattr(ada, "TARGET", -1.0)  # p rises with every decision
    monkeypatch.setattr(ada, "EVERY", 3)  # and decisions are not made where states are saved
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


def test_augmentation_changes_what_is_learnt_once_it_has_a_chance(
    domain: Domain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ada, "RANGE", 4 * BATCH)
    monkeypatch.setattr(ada, "TARGET", -1.0)
    ends = [
        [m["loss_d"] for _, m, _ in loop(domain, tmp_path, tmp_path / f"{name}.pt", augment=name)]
        for name in (None, "ada")
    ]
    assert ends[0][:4] == ends[1][:4] and ends[0][4:] != ends[1][4:]


def test_the_chance_that_half_the_size_came_to_is_gone_on_with(
    domain: Domain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ada, "RANGE", 4 * BATCH * 10)
    monkeypatch.setattr(ada, "TARGET", -1.0)
    plan, data = session.plan(domain, "generator"), session.pictures(domain, tmp_path, 0)
    half, state = gan.halved(plan.model), tmp_path / "half.pt"
    list(gan.steps(half, data, state, 4 * BATCH, batch=BATCH, augment="ada"))
    _, metrics, _ = next(loop(domain, tmp_path, tmp_path / "whole.pt", smaller=state))
    assert metrics["augmented"] == pytest.approx(0.1)


# ---------------------------------------------------------------- several processes

SHARED = """
import hashlib, sys
from pathlib import Path
from pipeline import domains, training
from pretrain import ada, generator, photographs, session

if __name__ == "__main__":
    root = Path(sys.argv[1])
    ada.RANGE, ada.TARGET, photographs.CHUNK = 8 * 10, -1.0, 7
    assert training.join("cpu") == "cpu"
    follow, publish, last = session.follow, session.publish, []

    def watched(steps, *rest):
        def each():
            for done, metrics, network in steps:
                last[:] = [metrics["augmented"], network]
                yield done, metrics, network
        follow(each(), *rest)

    def published(domain, root, name, *rest, **more):
        with (root / "published.txt").open("a") as file:
            file.write(name + "\\n")
        return publish(domain, root, name, *rest, **more)

    session.follow, session.publish = watched, published
    generator.train(domains.load("cats", root), root, images=64)
    chance, network = last
    content = hashlib.sha256(b"".join(value.numpy().tobytes() for value in network.state_dict().values())).hexdigest()
    (root / f"rank-{training.share(8)[0]}.txt").write_text(f"{chance} {training.share(8)[1]} {content}")
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
    told = [line for line in run.stdout.splitlines() if "pictures, test people and all" in line]
    assert len(told) == 1
