"""Facts about this machine and this project for `deltaspace doctor`: device, kernels, weights, versions, disk."""

from __future__ import annotations

import os
import platform
import shutil
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.runtime import files
from pipeline.storage import domains
from pipeline.storage.domains import Domain

if TYPE_CHECKING:
    from pipeline.checkpoints.catalogue import Original

PACKAGES = ("deltaspace", "torch", "torchvision", "open_clip_torch", "diffusers", "safetensors", "numpy", "pillow")
PACKAGES += ("pyarrow", "polars", "dvc", "mlflow", "resvg-py")
SPACE_NEEDED = 4.0  # GB that one run of the whole workflow writes
BAD = ("changed", "broken")


def examine(root: Path) -> dict[str, Any]:
    """All facts as plain data; `problems` are one line each."""
    facts = {
        "versions": {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}},
        "device": device(),
        "kernels": kernels(),
        "project": project(root),
        "domains": {name: weights(domains.load(name, root), root) for name in domains.names(root)},
    }
    return {**facts, "problems": problems(facts)}


def version(package: str) -> str | None:
    """The installed version of a distribution, None when it is absent; nothing is imported."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def device() -> dict[str, Any]:
    """The default device of networks, and its properties."""
    import psutil
    import torch

    from pipeline.runtime import precision, processes

    cuda = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return {
        "default": processes.device(),
        "cuda": cuda,
        "cpu": platform.processor() or platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "threads": torch.get_num_threads(),
        "bfloat16": precision.low(processes.device()) == torch.bfloat16,
        "memory_gb": round(psutil.virtual_memory().total / 1e9, 1),
    }


def kernels() -> dict[str, dict[str, str]]:
    """Operation -> the implementation that runs here, and the reason."""
    from kernels import dispatch

    return {name: {"implementation": impl, "why": why} for name, (impl, why) in dispatch.describe().items()}


def project(root: Path) -> dict[str, Any]:
    """The project's folder, its disk, and the tools of the workflow."""
    main = files.main_checkout(root)
    database = main / "mlflow.db"
    beside = Path(sys.executable).parent / "dvc"
    return {
        "root": str(root),
        "free_gb": round(shutil.disk_usage(root).free / 1e9, 1),
        "dvc": {"repository": (root / ".dvc").is_dir(), "command": shutil.which("dvc") or _if_there(beside)},
        "mlflow": {"installed": version("mlflow") is not None, "database": _if_there(database)},
    }


def weights(domain: Domain, root: Path) -> dict[str, dict[str, Any]]:
    """Network -> state of its file, with advice, and state of the published original it is made of.

    "verified": its sha256 is the domain's; "present": no sha256 is known; "changed": another sha256; "broken": not
    readable; "missing"; of an original also "partial".
    """
    memory = files.main_checkout(root) / ".cache" / "digests.json"

    def digest(path: Path) -> str:
        return files.known_digest(path, memory)

    return {network: _state(domain, network, root, digest) for network in domain.networks}


def _state(domain: Domain, network: str, root: Path, digest: Callable[[Path], str]) -> dict[str, Any]:
    from pipeline.checkpoints import catalogue
    from pipeline.runtime.errors import InputError
    from pipeline.storage import domains, weights

    entry = domain.weights(network)
    path = root / entry.path
    facts: dict[str, Any] = {"path": entry.path, "licence": entry.licence}
    original = catalogue.of(domain, network, root)
    if original is not None:
        facts["original"] = {"path": original.place, "state": original.state(digest), "url": entry.url}
    if not path.is_file():
        advice = _advice(original, facts) if original else domains.how_to_get(domain, network)
        return facts | {"state": "missing", "advice": advice}
    facts |= {"sha256": digest(path), "megabytes": round(path.stat().st_size / 1e6, 1)}
    try:
        weights.read_meta(path)
    except InputError as error:
        return facts | {"state": "broken", "advice": str(error)}
    if entry.sha256 is None:
        return facts | {"state": "present", "advice": "no sha256 to compare with"}
    if entry.sha256 != facts["sha256"]:
        return facts | {"state": "changed", "advice": f"its sha256 is not the one in domains/{domain.name}.yaml"}
    return facts | {"state": "verified"}


def _advice(original: Original, facts: dict[str, Any]) -> str:
    """The next step to a network that is made of an original."""
    from pipeline.checkpoints.install import IMPORTERS

    state, command = facts["original"]["state"], original.command
    if state == "changed":
        return f"{original.place} is not the published file: remove it, then {command}"
    if state == "partial":
        return f"{original.fetched_mb():,} MB are fetched: {command} resumes"
    if state == "missing":
        return command
    if original.network not in IMPORTERS:
        return f"its original is here, {state}; nothing converts it yet"
    return f"its original is here, {state}: {command} converts it"


def problems(facts: dict[str, Any]) -> list[str]:
    """Problems that keep the workflow from running, or its results from being trusted."""
    lines = [f"{name} is not installed: run `make install`" for name, v in facts["versions"].items() if v is None]
    for domain, networks in facts["domains"].items():
        lines += [
            f"{domain}: {network} is {entry['state']}: {entry['advice']}"
            for network, entry in networks.items()
            if entry["state"] in BAD
        ]
    if facts["project"]["free_gb"] < SPACE_NEEDED:
        lines.append(f"only {facts['project']['free_gb']} GB are free, a whole run writes up to {SPACE_NEEDED:g} GB")
    if not facts["project"]["dvc"]["command"]:
        lines.append("the dvc command is not on PATH: use `make repro`, or put .venv/bin on PATH")
    return lines


def _original_state(entry: dict[str, Any]) -> str:
    """State of the original of weights that are there; for missing weights the advice covers it."""
    state = entry.get("original", {}).get("state", "missing")
    return "" if entry["state"] == "missing" or state == "missing" else f"; original {state}"


def _if_there(path: Path) -> str | None:
    return str(path) if path.exists() else None


def lines(facts: dict[str, Any]) -> list[str]:
    """Facts of `examine` as text for a terminal."""
    device, project = facts["device"], facts["project"]
    gpus = ", ".join(device["cuda"]) or "no CUDA device"
    dvc, mlflow = project["dvc"], project["mlflow"]
    text = [
        f"device    {device['default']} ({gpus}; {device['cores']} cores, {device['threads']} threads, "
        f"{device['memory_gb']:g} GB memory)",
        f"bfloat16  {'multiplied in' if device['bfloat16'] else 'slower here than float32, which is used instead'}",
        f"project   {project['root']}, {project['free_gb']:g} GB free",
        f"dvc       {dvc['command'] or 'not on PATH'}, {'' if dvc['repository'] else 'no '}repository here",
        f"mlflow    {'installed' if mlflow['installed'] else 'not installed'}, "
        f"{mlflow['database'] or 'no runs recorded yet'}",
    ]
    for name, kernel in facts["kernels"].items():
        text.append(f"kernel    {name}: {kernel['implementation']} ({kernel['why']})")
    for domain, networks in facts["domains"].items():
        for name, entry in networks.items():
            advice = f" ({entry['advice']})" if "advice" in entry else ""
            text.append(f"weights   {domain} {name}: {entry['state']}{advice}{_original_state(entry)}")
    text.append("versions  " + ", ".join(f"{name} {number or 'absent'}" for name, number in facts["versions"].items()))
    text += [f"PROBLEM   {problem}" for problem in facts["problems"]] or ["all is well"]
    return text
