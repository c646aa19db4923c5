"""Addresses: which redirects a download follows, and what Google Drive asks in between."""

from __future__ import annotations

from pathlib import Path

import published_model
import pytest
from published_model import CONTENT, Get, left
from published_server import File, Server

from pipeline.checkpoints import addresses
from pipeline.checkpoints.download import Page
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
    monkeypatch.setitem(addresses.ELSEWHERE, "127.0.0.1", ("localhost",))
    server.files["/old"] = File(to=server.url("/model.pt").replace("127.0.0.1", "localhost"))
    assert get("/old").read_bytes() == CONTENT


@pytest.mark.parametrize("to", ["http://example.org/x", "ftp://127.0.0.1/x", "file:///etc/passwd", "https://[bad/x"])
def test_a_redirect_to_what_is_not_encrypted_is_refused(get: Get, server: Server, to: str) -> None:
    server.files["/old"] = File(to=to)
    with pytest.raises(InputError, match="not encrypted"):
        get("/old")


def test_an_encrypted_address_never_leads_to_plain_http_even_here() -> None:
    with pytest.raises(InputError, match="not encrypted"):
        addresses.check_redirect("https://localhost/x", "https://localhost/x", "http://localhost/x")
    addresses.check_redirect("https://a.org/x", "https://a.org/x", "https://a.org/y")


def test_a_redirect_loop_ends(get: Get, server: Server) -> None:
    server.files["/a"], server.files["/b"] = File(to="/b"), File(to="/a")
    with pytest.raises(InputError, match="redirects in a circle"):
        get("/a")
    assert len(server.requests) < 30


# ---------------------------------------------------------------- Google Drive

DRIVE_PAGE = b"""<!DOCTYPE html><html><head><title>Google Drive - Virus scan warning</title></head>
<body><a href="/open">x</a>
<form id="download-form" action="%s" method="get"><input type="submit" value="Download anyway"/>
<input type="hidden" name="id" value="1EM87UquaoQmk17Q8d5kYIAHqu0dkYqdT"><input type="hidden" name="confirm" value="t">
<input type="hidden" name="uuid" value="a-b c"></form></body></html>"""
DRIVE_ID = "gdrive:1EM87UquaoQmk17Q8d5kYIAHqu0dkYqdT"


def test_drive_is_asked_for_the_file_itself() -> None:
    found = addresses.address(DRIVE_ID)
    assert found.startswith("https://drive.google.com/uc?") and "id=1EM87UquaoQmk17Q8d5kYIAHqu0dkYqdT" in found
    assert "confirm=t" in found
    addresses.check_redirect(found, found, "https://drive.usercontent.google.com/download?id=1")
    with pytest.raises(InputError, match=r"redirects to accounts\.google\.com"):
        addresses.check_redirect(found, found, "https://accounts.google.com/signin")


def test_drives_question_about_large_files_is_answered(
    get: Get, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(addresses, "DRIVE", server.url("/uc?id={}"))
    page = DRIVE_PAGE % server.url("/download").encode()
    server.files["/uc?id=1EM87UquaoQmk17Q8d5kYIAHqu0dkYqdT"] = File(page, kind="text/html; charset=utf-8", ranges=False)
    answered = "/download?id=1EM87UquaoQmk17Q8d5kYIAHqu0dkYqdT&confirm=t&uuid=a-b+c"
    server.files[answered] = File(CONTENT, drops=[50_000])
    assert get(DRIVE_ID).read_bytes() == CONTENT
    assert server.requests[-1] == (answered, "bytes=50000-")


def test_drives_question_leads_to_no_other_host(get: Get, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(addresses, "DRIVE", server.url("/uc?id={}"))
    page = DRIVE_PAGE % b"https://elsewhere.org/download"
    server.files["/uc?id=1EM87UquaoQmk17Q8d5kYIAHqu0dkYqdT"] = File(page, kind="text/html")
    with pytest.raises(InputError, match=r"redirects to elsewhere\.org"):
        get(DRIVE_ID)


SIGN_IN = b'<html><form action="/model.pt"><input name="Email"></form>'


@pytest.mark.parametrize("page", [b"<html>Too many users have viewed", DRIVE_PAGE % b"/uc?id=1", SIGN_IN])
def test_any_other_page_of_drives_is_a_page(
    get: Get, server: Server, monkeypatch: pytest.MonkeyPatch, page: bytes
) -> None:
    monkeypatch.setattr(addresses, "DRIVE", server.url("/uc?id={}"))
    server.files["/uc?id=1EM87UquaoQmk17Q8d5kYIAHqu0dkYqdT"] = File(page, kind="text/html")
    server.files["/uc?id=1EM87UquaoQmk17Q8d5kYIAHqu0dkYqdT&confirm=t&uuid=a-b+c"] = File(page, kind="text/html")
    server.files["/model.pt?Email="] = server.files["/model.pt"]  # no form is filled in but the one that is known
    with pytest.raises(Page):
        get(DRIVE_ID)
