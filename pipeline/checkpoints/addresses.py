"""Where published files are asked for, which other hosts may deliver them, and pages that come in their place."""

from __future__ import annotations

import re
import urllib.request
from contextlib import suppress
from html.parser import HTMLParser
from http.client import HTTPResponse
from typing import Any
from urllib.parse import urlencode, urljoin, urlsplit

from pipeline.runtime.errors import InputError

DRIVE = "https://drive.google.com/uc?export=download&confirm=t&id={}"
LOOPBACK = ("127.0.0.1", "::1", "localhost")
ELSEWHERE = {  # host of a source -> further hosts that deliver its files
    "drive.google.com": ("drive.usercontent.google.com",),
    "github.com": (
        "objects.githubusercontent.com",
        "release-assets.githubusercontent.com",
        "raw.githubusercontent.com",
    ),
}
PAGES = re.compile(r"https://(github\.com/[^/]+/[^/]+/?|drive\.google\.com/(drive|file)/.*)")
MOST_PAGE = 1_000_000  # bytes


def address(url: str) -> str:
    """Where `url` is asked for. InputError unless it is https://... or gdrive:ID (or http:// of this machine)."""
    if identity := _drive(url):
        return DRIVE.format(identity)
    if re.search(r"[^\x21-\x7e]", url) or not _sealed(url):
        raise InputError(f"'{shown(url)}' is no address to fetch from: https://... or gdrive:ID is expected")
    return url


def browsed(url: str) -> str:
    """The address for a person's browser."""
    identity = _drive(url)
    return f"https://drive.google.com/file/d/{identity}/view" if identity else url


def leads_to_page(url: str) -> bool:
    """Whether a person has to find the file there: the page of a repository or of a folder."""
    return bool(PAGES.fullmatch(url))


def _drive(url: str) -> str | None:
    found = re.fullmatch(r"gdrive:([A-Za-z0-9_-]{10,100})", url)
    return found[1] if found else None


def shown(text: object) -> str:
    """What others say, fit for one line."""
    return " ".join(str(text).encode("unicode_escape").decode().split())[:120]


# ---------------------------------------------------------------- redirects


def opener(source: str) -> urllib.request.OpenerDirector:
    """Asks for `source`; follows to where it may lead, and no further."""
    return urllib.request.build_opener(_Redirects(source))


def check_redirect(source: str, old: str, new: str) -> None:
    """InputError unless `new`, to which `old` leads, is as safe, and of a host that belongs to the source."""
    first = urlsplit(source).hostname or ""
    if not _sealed(new) or (urlsplit(old).scheme == "https" and urlsplit(new).scheme != "https"):
        raise InputError(f"{first} redirects to {shown(new)}, which is not encrypted: nothing was fetched")
    host = urlsplit(new).hostname or ""
    if host != first and host not in ELSEWHERE.get(first, ()):
        raise InputError(f"{first} redirects to {shown(host)}, which is not among its hosts: nothing was fetched")


def _sealed(url: str) -> bool:
    """Whether it is an https:// address, or one of this machine."""
    try:
        parts = urlsplit(url)
        host = parts.hostname
    except ValueError:
        return False
    return bool(host) and (parts.scheme == "https" or (parts.scheme == "http" and host in LOOPBACK))


class _Redirects(urllib.request.HTTPRedirectHandler):
    def __init__(self, source: str) -> None:
        self.source = source

    def http_error_302(self, req: Any, fp: Any, code: int, msg: str, headers: Any) -> Any:
        if location := headers.get("Location"):
            with suppress(ValueError):  # what is no address at all is refused as it stands
                location = urljoin(req.full_url, location)
            check_redirect(self.source, req.full_url, location)
        return super().http_error_302(req, fp, code, msg, headers)

    http_error_301 = http_error_303 = http_error_307 = http_error_308 = http_error_302


# ---------------------------------------------------------------- pages


def is_html(headers: Any) -> bool:
    """Whether an answer calls itself a page."""
    return headers.get_content_type() in ("text/html", "application/xhtml+xml")


def is_page(response: HTTPResponse) -> bool:
    """Whether a page is answered, by its type or by how it begins; the answer can still be read from its start."""
    start = response.peek(64).lstrip()[:14].lower()
    return is_html(response.headers) or start.startswith((b"<!doctype html", b"<html"))


def confirmed(response: HTTPResponse) -> str | None:
    """Where Drive's page about a large file leads when its button is pressed; None for any other page."""
    form = _Form()
    form.feed(response.read(MOST_PAGE).decode("utf-8", "replace"))
    if form.action is None or "confirm" not in form.fields:
        return None
    return f"{urljoin(response.url, form.action).partition('?')[0]}?{urlencode(form.fields)}"


class _Form(HTMLParser):
    """The first form of a page: too large to be scanned for viruses, download anyway?"""

    action: str | None = None

    def __init__(self) -> None:
        super().__init__()
        self.fields: dict[str, str] = {}

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = {name: value or "" for name, value in attrs}
        if tag == "form" and self.action is None:
            self.action = found.get("action")
        elif tag == "input" and self.action is not None and found.get("name"):
            self.fields[found["name"]] = found.get("value", "")
