"""What this machine and this checkout have: for `deltaspace doctor`, and for a report of a problem."""

from __future__ import annotations

import os
import platform
import shutil
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

from pipeline import domains, files, params
from pipeline.domains import Domain

PACKAGES = ("deltaspace", "torch", "torchvision", "open_clip_torch", "diffusers", "safetensors", "numpy", "pillow")
PACKAGES += ("pyarrow", "polars", "dvc", "mlflow", "resvg-py")
SPACE_NEEDED = 4.0  # GB that one run of the whole workflow writes
BAD = ("changed", "broken")


def examine(root: Path) -> dict[str, Any]:
    """Everything as plain data; `problems` lists, in one line each, what has to be mended."""
    found = {
        "versions": {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}},
        "device": device(),
        "kernels": kernels(),
        "project": project(root),
        "domains": {name: weights(domains.load(name, root), root) for name in domains.names(root)},
    }
    return {**found, "problems": problems(found)}


def version(package: str) -> str | None:
    """The installed version of a distribution, None when it is absent; nothing is imported."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def device() -> dict[str, Any]:
    """Where networks run by default, and what with."""
    import psutil
    import torch

    from pipeline import workers

    cuda = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return {
        "default": workers.device(),
        "cuda": cuda,
        "cpu": platform.processor() or platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "threads": torch.get_num_threads(),
        "memory_gb": round(psutil.virtual_memory().total / 1e9, 1),
    }


def kernels() -> dict[str, dict[str, str]]:
    """Operation -> the implementation it takes here, and why."""
    from kernels import build

    return {name: {"implementation": impl, "why": why} for name, (impl, why) in build.describe().items()}


def project(root: Path) -> dict[str, Any]:
    """The checkout, the disk below it, and the tools of the workflow."""
    main = params.main_root(root)
    database = main / "mlflow.db"
    beside = Path(sys.executable).parent / "dvc"
    return {
        "root": str(root),
        "free_gb": round(shutil.disk_usage(root).free / 1e9, 1),
        "dvc": {"repository": (root / ".dvc").is_dir(), "command": shutil.which("dvc") or _if_there(beside)},
        "mlflow": {"installed": version("mlflow") is not None, "database": _if_there(database)},
    }


def weights(domain: Domain, root: Path) -> dict[str, dict[str, Any]]:
    """Network -> state of its file, with what to do about it.

    "verified": as the domain's yaml says; "present": there, no digest known; "changed": another digest; "broken": not
    readable; "missing".
    """
    return {network: _state(domain, network, root) for network in domain.networks}


def _state(domain: Domain, network: str, root: Path) -> dict[str, Any]:
    from pipeline import weights
    from pipeline.values import InputError

    entry = domain.weights(network)
    path = root / entry.path
    facts = {"path": entry.path, "licence": entry.licence}
    if not path.is_file():
        source = f"`deltaspace pretrain {domain.name} {network}`" if entry.url is None else f"from {entry.url}"
        return facts | {"state": "missing", "advice": f"made by {source}" if entry.url is None else source}
    facts |= {"sha256": files.digest(path), "megabytes": round(path.stat().st_size / 1e6, 1)}
    try:
        weights.read_meta(path)
    except InputError as error:
        return facts | {"state": "broken", "advice": str(error)}
    if entry.sha256 is None:
        return facts | {"state": "present", "advice": "no sha256 to compare with"}
    if entry.sha256 != facts["sha256"]:
        return facts | {"state": "changed", "advice": f"its sha256 is not the one in domains/{domain.name}.yaml"}
    return facts | {"state": "verified"}


def problems(found: dict[str, Any]) -> list[str]:
    """What must be mended before the workflow can be trusted here."""
    lines = [f"{name} is not installed: run `make install`" for name, v in found["versions"].items() if v is None]
    for domain, networks in found["domains"].items():
        lines += [
            f"{domain}: {network} is {entry['state']}: {entry['advice']}"
            for network, entry in networks.items()
            if entry["state"] in BAD
        ]
    if found["project"]["free_gb"] < SPACE_NEEDED:
        lines.append(f"only {found['project']['free_gb']} GB are free, a whole run writes up to {SPACE_NEEDED:g} GB")
    if not found["project"]["dvc"]["command"]:
        lines.append("the dvc command is not on PATH: use `make repro`, or put .venv/bin on PATH")
    return lines


def _if_there(path: Path) -> str | None:
    return str(path) if path.exists() else None


def lines(found: dict[str, Any]) -> list[str]:
    """`examine`'s findings as text for a terminal."""
    device, project = found["device"], found["project"]
    gpus = ", ".join(device["cuda"]) or "no CUDA device"
    dvc, mlflow = project["dvc"], project["mlflow"]
    text = [
        f"device    {device['default']} ({gpus}; {device['cores']} cores, {device['threads']} threads, "
        f"{device['memory_gb']:g} GB memory)",
        f"project   {project['root']}, {project['free_gb']:g} GB free",
        f"dvc       {dvc['command'] or 'not on PATH'}, {'' if dvc['repository'] else 'no '}repository here",
        f"mlflow    {'installed' if mlflow['installed'] else 'not installed'}, "
        f"{mlflow['database'] or 'no runs recorded yet'}",
    ]
    for name, kernel in found["kernels"].items():
        text.append(f"kernel    {name}: {kernel['implementation']} ({kernel['why']})")
    for domain, networks in found["domains"].items():
        for name, entry in networks.items():
            advice = f" ({entry['advice']})" if "advice" in entry else ""
            text.append(f"weights   {domain} {name}: {entry['state']}{advice}")
    text.append("versions  " + ", ".join(f"{name} {number or 'absent'}" for name, number in found["versions"].items()))
    text += [f"PROBLEM   {problem}" for problem in found["problems"]] or ["all is well"]
    return text
