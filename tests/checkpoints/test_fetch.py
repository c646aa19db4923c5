"""`deltaspace fetch`: from what a domain's file names to weights that work; and what the doctor says of it."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import foreign_files
import numpy as np
import pytest
import tiny_project
import torch
import yaml
from full_disk import full_after
from published_server import File, Server, serving

from deltaspace import doctor
from deltaspace.cli import app
from pipeline.checkpoints import catalogue, download, install
from pipeline.delta_mapper import DeltaMapper
from pipeline.models.stylegan2 import Generator
from pipeline.networks import Networks
from pipeline.runtime import files
from pipeline.runtime.errors import InputError
from pipeline.storage import domains, weights

NVIDIA = "NVIDIA Source Code License: non-commercial use only"
PAGE = "https://github.com/someone/something"
FOLDER = "data/pretrained/theirs"
E = 20


class Project:
    """A project with a domain `theirs`, what a server publishes for it, and the command line."""

    def __init__(self, root: Path, server: Server, capsys: pytest.CaptureFixture[str]) -> None:
        self.root, self.server, self.capsys = root, server, capsys
        self.generator = foreign_files.generator()
        self.domain: dict[str, Any] = {"resolution": foreign_files.R, "neutral": "face", "clip_normalise": False}
        (root / "domains").mkdir(parents=True)
        (root / "params.yaml").write_text(yaml.safe_dump(tiny_project.PARAMS), encoding="utf-8")
        torch.save({"g_ema": self.generator.state_dict(), "latent_avg": self.generator.w_mean}, root / "theirs.pt")
        self.publish("generator", "theirs.pt", NVIDIA)

    def publish(self, network: str, name: str, licence: str = "MIT", **entry: Any) -> None:
        """Put a file of the project's folder on the server, and into the domain's file."""
        file = self.root / name
        self.server.files[f"/{name}"] = File(file.read_bytes())
        told = {"original_size": file.stat().st_size, "original_sha256": files.digest(file)}
        self.domain[network] = {
            "path": f"{FOLDER}/{network}.safetensors",
            "licence": licence,
            "url": self.server.url(f"/{name}"),
            "original": name,
            **told,
            **entry,
        }
        self.write()

    def write(self) -> None:
        (self.root / "domains/theirs.yaml").write_text(yaml.safe_dump(self.domain), encoding="utf-8")

    def run(self, *arguments: str) -> tuple[int, str, str]:
        self.capsys.readouterr()
        code = app.run(arguments)
        return code, *self.capsys.readouterr()

    def fetch(self, *arguments: str) -> tuple[int, str, str]:
        return self.run("fetch", "theirs", "--accept-licence", *arguments)

    def doctor(self, network: str) -> dict[str, Any]:
        return doctor.weights(domains.load("theirs", self.root), self.root)[network]

    def at(self, name: str) -> Path:
        return self.root / FOLDER / name

    def works(self) -> bool:
        """Whether the generator of the domain draws what the published one draws."""
        ours: Generator = Networks(domains.load("theirs", self.root), self.root).generator
        z = torch.randn(2, foreign_files.D, generator=torch.Generator().manual_seed(1))
        with torch.no_grad():
            pictures = [g(g.repeat(g.truncate(g.mapping(z), 0.7))) for g in (ours, self.generator)]
        return torch.equal(*pictures)


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Project]:
    monkeypatch.setattr(download, "PAUSE", 0.001)
    monkeypatch.setenv("no_proxy", "127.0.0.1,localhost")
    monkeypatch.setenv("DELTASPACE_ROOT", str(tmp_path / "project"))
    with serving() as server:
        yield Project(tmp_path / "project", server, capsys)


def one_line(outcome: tuple[int, str, str], words: str) -> None:
    code, _, err = outcome
    assert code == 2 and len(err.splitlines()) == 1, err
    assert words in err


# ---------------------------------------------------------------- from address to weights


def test_a_published_generator_becomes_weights_that_draw_its_pictures(project: Project) -> None:
    project.server.files["/theirs.pt"].drops = [10_000]
    code, out, err = project.fetch()
    assert code == 0 and "trying again" in err
    assert f"generator: fetched {FOLDER}/originals/theirs.pt" in out and "verified" in out
    assert f"generator: wrote {FOLDER}/generator.safetensors" in out
    assert project.works() and project.at("generator.png").is_file()
    meta = weights.read_meta(project.at("generator.safetensors"))
    assert meta["licence"] == NVIDIA and meta["original"]["sha256"] == files.digest(project.root / "theirs.pt")


def test_a_second_fetch_has_nothing_to_do_even_without_the_original(project: Project) -> None:
    assert project.fetch()[0] == 0
    before, asked = project.at("generator.safetensors").stat().st_mtime_ns, len(project.server.requests)
    for _ in range(2):
        code, out, err = project.run("fetch", "theirs")
        assert (code, err) == (0, "") and "generator.safetensors is there, made of theirs.pt" in out
        project.at("originals/theirs.pt").unlink(missing_ok=True)
    assert project.at("generator.safetensors").stat().st_mtime_ns == before
    assert len(project.server.requests) == asked


def test_an_original_that_is_there_is_verified_and_converted_without_asking_anyone(project: Project) -> None:
    project.at("originals").mkdir(parents=True)
    project.at("originals/theirs.pt").write_bytes((project.root / "theirs.pt").read_bytes())
    code, _, err = project.run("fetch", "theirs", "generator")
    assert (code, err) == (0, "") and project.works() and project.server.requests == []


def test_weights_of_another_origin_stay_unless_forced(project: Project) -> None:
    weights.save(project.at("generator.safetensors"), {"x": torch.ones(2)}, {"model": {}})
    code, out, _ = project.fetch()
    assert code == 0 and "made of something else; --force" in out and project.server.requests == []
    assert project.fetch("--force")[0] == 0 and project.works()


def test_mapper_and_relevance_follow_their_generator(project: Project) -> None:
    layout = project.generator.layout
    with weights.Unfilled():
        mapper = DeltaMapper(layout, E)
    torch.save({key: torch.randn(value.shape) for key, value in mapper.state_dict().items()}, project.root / "net.pth")
    rows = torch.nn.functional.normalize(torch.randn(layout.size, E), dim=1)
    np.save(project.root / "fs3.npy", rows.numpy())
    project.publish("mapper", "net.pth", "none stated: all rights reserved")
    project.publish("relevance", "fs3.npy")
    one_line(project.fetch("relevance"), "import the generator of theirs first")
    code, out, _ = project.fetch()
    assert code == 0 and "not published, trained here: encoder, clip, identity, oracle, denoiser" in out
    found = Networks(domains.load("theirs", project.root), project.root)
    assert torch.equal(found.relevance, rows)
    assert found.mapper(torch.randn(2, layout.size), torch.randn(2, 2 * E)).shape == (2, layout.size)


def test_what_no_importer_reads_stays_verified(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(install.IMPORTERS, "generator")
    code, out, _ = project.fetch()
    assert code == 0 and "originals/theirs.pt is here; nothing converts it yet" in out
    assert not project.at("generator.safetensors").exists()
    assert "nothing converts it yet" in project.doctor("generator")["advice"]


@pytest.mark.parametrize("network", sorted(install.IMPORTERS))
def test_every_importer_of_the_table_exists(network: str) -> None:
    assert network in domains.NETWORKS and callable(install.importer(network))


def test_one_network_is_fetched_by_name_and_a_wrong_name_refused(project: Project) -> None:
    project.publish("clip", "theirs.pt")
    assert project.fetch("generator")[0] == 0 and len(project.server.requests) == 1
    one_line(project.fetch("generater"), "did you mean 'generator'")
    one_line(
        project.fetch("oracle"), "nothing is published as oracle of theirs: run `deltaspace pretrain theirs oracle`"
    )
    one_line(project.run("fetch", "thiers"), "unknown domain")


def test_a_domain_of_our_own_needs_nothing(project: Project) -> None:
    del project.domain["generator"]
    project.write()
    for network in domains.NETWORKS:
        weights.save(project.at(f"{network}.safetensors"), {"x": torch.ones(2)}, {})
    assert project.run("fetch", "theirs")[1] == "nothing is published for theirs, and nothing is missing\n"


def test_the_same_original_serves_two_networks(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    project.publish("encoder", "theirs.pt", NVIDIA)
    monkeypatch.setitem(install.IMPORTERS, "encoder", "pipeline.checkpoints.install:install_generator")
    assert project.fetch()[0] == 0 and len(project.server.requests) == 1


def test_a_file_that_another_domain_has_is_not_fetched_again(project: Project) -> None:
    assert project.fetch()[0] == 0
    project.domain["generator"]["path"] = "data/pretrained/others/generator.safetensors"
    (project.root / "domains/others.yaml").write_text(yaml.safe_dump(project.domain), encoding="utf-8")
    code, out, _ = project.run("fetch", "others", "--accept-licence")
    assert code == 0 and f"is the same file as {FOLDER}/originals/theirs.pt, verified" in out
    assert len(project.server.requests) == 1
    assert (project.root / "data/pretrained/others/generator.safetensors").is_file()


# ---------------------------------------------------------------- what goes wrong


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (None, "404 (Not Found)"),
        (File(b"other bytes"), "offers 11 bytes"),
        (File(to="http://localhost:1/x"), "redirects to localhost"),
    ],
)
def test_a_failure_is_one_line_and_the_next_network_is_fetched(
    project: Project, answer: File | None, words: str
) -> None:
    project.publish("relevance", "theirs.pt")
    (project.root / "broken.pt").write_bytes(b"x" * 5000)
    project.publish("clip", "broken.pt")
    project.server.files["/broken.pt"] = answer  # type: ignore[assignment]
    code, out, err = project.fetch("clip", "generator")
    assert code == 2 and len(err.splitlines()) == 1 and err.startswith("deltaspace: clip: ") and words in err
    assert "generator: wrote" in out and project.works()


def test_an_original_that_cannot_be_imported_is_one_line_and_stays(project: Project) -> None:
    torch.save({"x": torch.ones(2)}, project.root / "theirs.pt")
    project.publish("generator", "theirs.pt")
    one_line(project.fetch(), "holds no StyleGAN2 generator")
    assert project.at("originals/theirs.pt").is_file() and not project.at("generator.safetensors").exists()


def test_another_file_put_there_by_hand_is_refused_and_stays(project: Project) -> None:
    project.at("originals").mkdir(parents=True)
    size = project.domain["generator"]["original_size"]
    for content, words in (
        (b"short", f"it has 5 bytes, {size:,} are published"),
        (bytes(size), "its sha256 is another"),
    ):
        project.at("originals/theirs.pt").write_bytes(content)
        one_line(project.fetch(), words)
        assert project.at("originals/theirs.pt").read_bytes() == content and project.server.requests == []
        assert "is not the published file: remove it" in project.doctor("generator")["advice"]


def test_a_full_disk_is_one_line_and_the_next_fetch_goes_on(project: Project) -> None:
    with full_after(20_000):
        one_line(project.fetch(), "File too large; free or fix the disk there and run again")
    found = project.doctor("generator")
    assert found["original"]["state"] == "partial" and "MB are fetched" in found["advice"]
    assert project.fetch()[0] == 0 and project.works()
    assert project.server.ranges() == [None, "bytes=20000-"]


@pytest.mark.parametrize("original", ["../../../x.pt", "/tmp/x.pt", "a\\b", ""])
def test_an_original_lies_in_its_folder(project: Project, original: str) -> None:
    project.domain["generator"]["original"] = original
    project.write()
    one_line(project.fetch(), "no file name")


def test_an_original_without_digest_is_kept_and_its_digest_printed(project: Project) -> None:
    digest = project.domain["generator"].pop("original_sha256")
    project.write()
    code, out, _ = project.fetch()
    assert code == 0 and f"write original_sha256: {digest} into domains/theirs.yaml" in out and project.works()
    assert project.doctor("generator")["original"]["state"] == "present"


# ---------------------------------------------------------------- by hand


def by_hand(project: Project, url: str, outcome: tuple[int, str, str]) -> None:
    code, out, err = outcome
    assert code == 2 and len(err.splitlines()) == 1
    size = project.domain["generator"]["original_size"]
    assert out.splitlines()[:4] == [
        "generator, by hand:",
        f"  1. open {url} in a browser and download theirs.pt ({size:,} bytes)",
        f"  2. put it at {FOLDER}/originals/theirs.pt",
        "  3. run `deltaspace fetch theirs generator` again: it verifies and converts the file",
    ]
    place = project.root / FOLDER / "originals/theirs.pt"
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_bytes((project.root / "theirs.pt").read_bytes())
    assert project.fetch()[0] == 0 and project.works()


def test_the_page_of_a_repository_is_not_asked_but_named(project: Project) -> None:
    project.publish("generator", "theirs.pt", NVIDIA, url=PAGE)
    by_hand(project, PAGE, project.run("fetch", "theirs"))
    assert project.server.requests == []


def test_a_page_instead_of_weights_ends_in_steps_by_hand(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.checkpoints.catalogue.DRIVE", project.server.url("/uc?id={}"))
    project.publish("generator", "theirs.pt", NVIDIA, url="gdrive:1EM87UquaoQmk17Q8d5kYIAHqu0dkYqdT")
    project.server.files["/uc?id=1EM87UquaoQmk17Q8d5kYIAHqu0dkYqdT"] = File(b"<html>Quota exceeded", kind="text/html")
    outcome = project.fetch()
    assert "gives a web page instead of the file" in outcome[2]
    by_hand(project, "https://drive.google.com/file/d/1EM87UquaoQmk17Q8d5kYIAHqu0dkYqdT/view", outcome)


# ---------------------------------------------------------------- licences


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_without_a_terminal_a_licence_that_restricts_is_a_refusal(project: Project) -> None:
    one_line(project.run("fetch", "theirs"), f"then give --accept-licence: generator (theirs.pt): {NVIDIA}")
    assert project.server.requests == [] and not project.at("originals").exists()


def test_a_free_licence_is_not_asked_about(project: Project) -> None:
    project.publish("generator", "theirs.pt", "MIT")
    assert project.run("fetch", "theirs")[0] == 0


def test_a_person_is_asked_once_for_each_licence(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    project.publish("encoder", "theirs.pt", NVIDIA)
    project.publish("clip", "theirs.pt", "ask its authors")
    monkeypatch.setattr(sys, "stdin", Terminal("y\nn\n"))
    code, out, err = project.run("fetch", "theirs")
    assert code == 2 and project.works() and "clip: not fetched, its licence is not accepted" in out
    assert f"generator (theirs.pt), encoder (theirs.pt): {NVIDIA}" in err and err.count("Do you accept") == 2


def test_all_that_restricts_use_in_the_shipped_domains_is_asked_about() -> None:
    root = tiny_project.ROOT
    for name in ("cat", "church", "ffhq", "horse"):
        domain = domains.load(name, root)
        found = [original for network in domains.NETWORKS if (original := catalogue.of(domain, network, root))]
        assert {original.network for original in found if not original.restricted} <= {"clip", "inception", "relevance"}


# ---------------------------------------------------------------- the doctor


def test_the_doctor_names_the_command_and_then_what_is_verified(project: Project) -> None:
    assert project.doctor("generator")["advice"] == "`deltaspace fetch theirs generator`"
    assert project.doctor("denoiser")["advice"] == "run `deltaspace pretrain theirs denoiser`"
    assert project.fetch()[0] == 0
    found = project.doctor("generator")
    assert found["state"] == "present" and found["original"]["state"] == "verified"
    project.domain["generator"]["sha256"] = weights.digest(project.at("generator.safetensors"))
    project.write()
    assert project.doctor("generator")["state"] == "verified"
    line = next(line for line in project.run("doctor")[1].splitlines() if "theirs generator" in line)
    assert line == "weights   theirs generator: verified; original verified"
    assert "theirs: generator" not in project.run("doctor")[1]


def test_the_doctor_reads_a_file_once_until_it_changes(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    assert project.fetch()[0] == 0
    for path in (project.at("generator.safetensors"), project.at("originals/theirs.pt")):
        stat = path.stat()  # old enough for its time to tell a change
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns - 10**10))
    project.doctor("generator")
    read: list[Path] = []
    whole = files.digest

    def digest(path: Path) -> str:
        read.append(path)
        return whole(path)

    monkeypatch.setattr(files, "digest", digest)
    project.doctor("generator")
    assert read == []
    with project.at("originals/theirs.pt").open("r+b") as file:
        file.write(b"changed")
    assert project.doctor("generator")["original"]["state"] == "changed" and len(read) == 1


@pytest.mark.parametrize("memory", ["{", "[1]", '{"x": 1}', '{"%s": [1]}', '{"%s": null}'])
def test_a_damaged_memory_of_digests_costs_time_only(tmp_path: Path, memory: str) -> None:
    (tmp_path / "file").write_bytes(b"content")
    (tmp_path / "memory.json").write_text(memory.replace("%s", str(tmp_path / "file")))
    assert files.known_digest(tmp_path / "file", tmp_path / "memory.json") == files.digest(tmp_path / "file")


def test_missing_weights_name_the_command_that_gets_them(project: Project) -> None:
    with pytest.raises(InputError, match="missing: run `deltaspace fetch theirs generator`"):
        _ = Networks(domains.load("theirs", project.root), project.root).generator


def test_originals_are_never_committed() -> None:
    names = [
        f"data/pretrained/{domain}/originals/{name}" for domain in ("ffhq", "portraits") for name in ("a.pt", "b/c")
    ]
    done = subprocess.run(["git", "check-ignore", *names], cwd=tiny_project.ROOT, capture_output=True, text=True)
    assert done.stdout.split() == names
    assert "data/pretrained/*/originals" in (tiny_project.ROOT / ".dvcignore").read_text().split()
