"""Redirects that a download follows or refuses, and addresses of Google Drive."""

from __future__ import annotations

from pathlib import Path

import published_model
import pytest
from published_model import CONTENT, Get, left
from published_server import File, Server

from pipeline.checkpoints import catalogue, download
from pipeline.checkpoints.download import WebPageError
from pipeline.runtime.errors import InputError

server, get = published_model.server, published_model.get  # fixtures


# ---------------------------------------------------------------- redirects


def test_redirects_on_the_same_host_are_followed_parts_included(get: Get, server: Server, tmp_path: Path) -> None:
    server.files["/old"] = File(to="/middle")
    server.files["/middle"] = File(to=server.url("/model.pt"))
    server.files["/model.pt"].drops = [100_000]
    assert get("/old").read_bytes() == CONTENT
    assert server.requests[-1] == ("/model.pt", "bytes=100000-")


def test_a_redirect_to_another_host_is_refused_by_name(get: Get, server: Server, tmp_path: Path) -> None:
    server.files["/old"] = File(to=server.url("/model.pt").replace("127.0.0.1", "localhost"))
    with pytest.raises(InputError, match=r"127\.0\.0\.1 redirects to localhost, which is not among its hosts"):
        get("/old")
    assert left(tmp_path) == [] and len(server.requests) == 1


def test_a_redirect_to_a_host_of_the_source_is_followed(
    get: Get, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(download.DELIVERY_HOSTS, "127.0.0.1", ("localhost",))
    server.files["/old"] = File(to=server.url("/model.pt").replace("127.0.0.1", "localhost"))
    assert get("/old").read_bytes() == CONTENT


@pytest.mark.parametrize("to", ["http://example.org/x", "ftp://127.0.0.1/x", "file:///etc/passwd", "https://[bad/x"])
def test_a_redirect_to_what_is_not_encrypted_is_refused(get: Get, server: Server, to: str) -> None:
    server.files["/old"] = File(to=to)
    with pytest.raises(InputError, match="not encrypted"):
        get("/old")


def test_an_encrypted_address_never_leads_to_plain_http_even_here() -> None:
    with pytest.raises(InputError, match="not encrypted"):
        download.check_redirect("https://localhost/x", "https://localhost/x", "http://localhost/x")
    download.check_redirect("https://a.org/x", "https://a.org/x", "https://a.org/y")


def test_a_redirect_loop_ends(get: Get, server: Server) -> None:
    server.files["/a"], server.files["/b"] = File(to="/b"), File(to="/a")
    with pytest.raises(InputError, match="redirects in a circle"):
        get("/a")
    assert len(server.requests) < 30


# ---------------------------------------------------------------- Google Drive

DRIVE_ID = "gdrive:1EM87UquaoQmk17Q8d5kYIAHqu0dkYqdT"


def test_a_drive_id_is_requested_without_drives_warning_page() -> None:
    found = catalogue.address(DRIVE_ID)
    assert found.startswith("https://drive.usercontent.google.com/download?")
    assert "id=1EM87UquaoQmk17Q8d5kYIAHqu0dkYqdT" in found and "confirm=t" in found
    download.check_redirect(found, found, "https://drive.usercontent.google.com/download?id=1")
    with pytest.raises(InputError, match=r"redirects to accounts\.google\.com"):
        download.check_redirect(found, found, "https://accounts.google.com/signin")


@pytest.mark.parametrize("page", [b"<html>Too many users have viewed", b"<!DOCTYPE html><title>Virus scan warning"])
def test_a_page_of_drive_is_no_file(get: Get, server: Server, monkeypatch: pytest.MonkeyPatch, page: bytes) -> None:
    monkeypatch.setattr(catalogue, "DRIVE", server.url("/uc?id={}"))
    server.files["/uc?id=1EM87UquaoQmk17Q8d5kYIAHqu0dkYqdT"] = File(page, kind="text/html")
    with pytest.raises(WebPageError):
        get(DRIVE_ID)
