"""A file that a server on this machine publishes, and how a test downloads it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from published_server import File, Server, serving

from pipeline.checkpoints import download
from pipeline.checkpoints.catalogue import PublishedFile

CONTENT = np.random.default_rng(0).bytes(300_000)
SHA = hashlib.sha256(CONTENT).hexdigest()
Get = Callable[..., Path]


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(download, "PAUSE", 0.001)
    monkeypatch.setenv("no_proxy", "127.0.0.1,localhost")
    with serving() as found:
        found.files["/model.pt"] = File(CONTENT)
        yield found


@pytest.fixture
def get(server: Server, tmp_path: Path) -> Get:
    """Download /model.pt, or another address of the server."""

    def get(path: str = "/model.pt", size: int | None = len(CONTENT), sha256: str | None = SHA) -> Path:
        url = server.url(path) if path.startswith("/") else path
        download.download(PublishedFile(url, size, sha256), tmp_path / "model.pt", "model.pt")
        return tmp_path / "model.pt"

    return get


def left(folder: Path) -> list[str]:
    """What lies there, but for the lock."""
    return sorted(path.name for path in folder.iterdir() if not path.name.endswith(".lock"))
