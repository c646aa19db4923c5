"""Paths and loading of a domain's networks, and the errors for missing, broken and foreign files."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
import yaml

from pipeline.networks import MADE_BY_DVC, Networks
from pipeline.runtime.errors import InputError
from pipeline.storage import domains, weights

ROOT = Path(__file__).resolve().parents[2]
NETWORKS = ("generator", "encoder", "clip", "identity", "oracle", "denoiser")


@pytest.fixture
def project(tiny: Path, tmp_path: Path) -> Path:
    root = tmp_path / "project"
    for folder in ("domains", "data/pretrained"):
        shutil.copytree(tiny / folder, root / folder)
    shutil.copy(tiny / "params.yaml", root)
    return root


def at(root: Path) -> Networks:
    return Networks(domains.load("tiny", root), root)


def shipped(root: Path, name: str) -> Path:
    return root / f"data/pretrained/tiny/{name}.safetensors"


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_is_loaded_once_frozen_and_in_evaluation_mode(name: str, project: Path) -> None:
    networks = at(project)
    network = getattr(networks, name)
    assert getattr(networks, name) is network
    assert not network.training and not any(parameter.requires_grad for parameter in network.parameters())
    tensors, _ = weights.load(shipped(project, name))
    state = network.state_dict()
    assert state.keys() == tensors.keys() - {"w_mean"}
    assert all(torch.equal(state[key], tensors[key].to(state[key].dtype)) for key in state)


def test_the_generator_gets_its_mean_w_and_level_split(project: Path) -> None:
    tensors, meta = weights.load(shipped(project, "generator"))
    tensors["w_mean"] = torch.linspace(0, 1, 12)
    weights.save(shipped(project, "generator"), tensors, meta, half=False)
    generator = at(project).generator
    assert torch.equal(generator.w_mean, tensors["w_mean"])
    assert list(generator.layout.split) == meta["model"]["split"]


def test_clip_has_the_vocabulary_of_the_file_and_the_normalisation_of_the_domain(project: Path) -> None:
    _, meta = weights.load(shipped(project, "clip"))
    assert at(project).clip.vocabulary == frozenset(meta["vocabulary"])
    for normalise in (True, False):
        content = yaml.safe_load((project / "domains/tiny.yaml").read_text())
        (project / "domains/tiny.yaml").write_text(yaml.safe_dump({**content, "clip_normalise": normalise}))
        assert at(project).clip.normalise is normalise


@pytest.mark.parametrize("name", MADE_BY_DVC)
def test_outputs_of_dvc_take_precedence_over_shipped_files(name: str, project: Path) -> None:
    networks = at(project)
    assert networks.path(name) == shipped(project, name)
    made = project / f"data/tiny/{MADE_BY_DVC[name]}.safetensors"
    made.parent.mkdir(exist_ok=True)
    made.write_bytes(b"")
    assert networks.path(name) == made


@pytest.mark.parametrize("name", ["generator", "encoder", "clip", "identity", "oracle"])
def test_other_networks_are_only_read_from_the_shipped_files(name: str, project: Path) -> None:
    made = project / f"data/tiny/{name}.safetensors"
    made.parent.mkdir()
    made.write_bytes(b"")
    assert at(project).path(name) == shipped(project, name)


def commands(root: Path, name: str) -> str:
    """Message of the error for a missing file."""
    shipped(root, name).unlink(missing_ok=True)
    with pytest.raises(InputError, match="is missing") as error:
        getattr(at(root), name)
    assert "\n" not in str(error.value)
    return str(error.value)


def maker(name: str) -> str:
    """Command that makes a network; the tiny domain has no size for a CLIP to train, so one is imported."""
    return "deltaspace import clip FILE --domain tiny" if name == "clip" else f"deltaspace pretrain tiny {name}"


@pytest.mark.parametrize("name", NETWORKS)
def test_a_missing_network_names_the_command_that_makes_it(name: str, project: Path) -> None:
    message = commands(project, name)
    assert message.endswith(f"run `{maker(name)}`") and str(shipped(project, name)) in message


def test_a_clip_is_trained_where_the_domain_says_how_large(project: Path) -> None:
    path = project / "domains/tiny.yaml"
    domain = yaml.safe_load(path.read_text())
    domain["defaults"]["pretrain"]["clip"] = {"model": {}, "images": 1}
    path.write_text(yaml.safe_dump(domain))
    assert commands(project, "clip").endswith("run `deltaspace pretrain tiny clip`")


@pytest.mark.parametrize(("name", "stage"), [(name, name) for name in ("mapper", "mapper_wplus", "relevance")])
def test_a_missing_artefact_names_the_stage_that_makes_it(name: str, stage: str, project: Path) -> None:
    assert commands(project, name).endswith(f"run `dvc repro {stage}@tiny`")
    outputs = yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"][stage]["outs"]
    assert [out for out in outputs if Path(str(out)).name == f"{name}.safetensors"]


@pytest.mark.parametrize("name", NETWORKS)
def test_a_file_cut_short_is_refused_by_name(name: str, project: Path) -> None:
    file = shipped(project, name)
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(InputError, match=rf"{name}.safetensors is broken or cut short .*{maker(name)}"):
        getattr(at(project), name)


@pytest.mark.parametrize("name", NETWORKS)
def test_another_networks_file_is_refused_by_name(name: str, project: Path) -> None:
    other = NETWORKS[NETWORKS.index(name) - 1]
    shutil.copy(shipped(project, other), shipped(project, name))
    with pytest.raises(
        InputError, match=rf"{name}.safetensors does not hold (a|this domain.s) {name} .*{maker(name)}`$"
    ) as error:
        getattr(at(project), name)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", [*NETWORKS, "mapper", "mapper_wplus", "relevance", "s_stats"])
def test_a_file_of_unknown_origin_is_refused_by_name(name: str, project: Path) -> None:
    weights.save(shipped(project, name), {"x": torch.zeros(2)}, {})
    with pytest.raises(InputError, match=rf"{name}.safetensors does not hold"):
        getattr(at(project), name)
