"""One file over HTTP: resumed where it stopped, tried again when the connection drops, verified before it has its name.

Nothing is sent but the request: no cookies, no credentials.
"""

from __future__ import annotations

import http.client
import json
import os
import re
import shutil
import ssl
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import IO
from urllib.parse import urlsplit

from pipeline.checkpoints import addresses
from pipeline.checkpoints.addresses import shown
from pipeline.runtime import files, progress
from pipeline.runtime.errors import InputError

TRIES = 5  # in a row that brought nothing
PAUSE = 1.0  # seconds before the second try, doubled before each further one
TIMEOUT = 30.0  # seconds of silence after which a connection counts as dropped
CHUNK = 1 << 16  # bytes
MB = 1_000_000
LARGEST = 20_000 * MB  # of a file whose size nobody says
AGAIN = (408, 429, 500, 502, 503, 504)  # a server that answers so may answer otherwise in a moment
CLOSED = (401, 403, 429)  # with a page, they ask a person for something


@dataclass(frozen=True)
class Wanted:
    """A published file. url: https://... or gdrive:ID; size in bytes and sha256 are None where nobody says."""

    url: str
    size: int | None = None
    sha256: str | None = None


class Page(InputError):
    """What came back is a page for people instead of the file."""


def download(wanted: Wanted, path: Path, label: str) -> str:
    """Fetch into `path`; returns the sha256. What is unfinished lies beside it as .part, for the next time.

    Raises Page for a web page, and InputError, one line, for whatever else prevents it: a status, a redirect to
    elsewhere, other bytes or more of them than published, a full disk, no connection, another process at it.
    """
    source = addresses.address(wanted.url)
    with _held(path, wanted) as part:
        for last in (False, True):
            _fill(part, wanted, source, label)
            found = files.digest(part.path)
            if wanted.sha256 in (None, found):
                part.finish(path)
                return found
            whole = not part.pieced
            part.restart()
            if whole or last:  # else they may be pieces of different contents: once more, at one go
                raise InputError(
                    f"{wanted.url} gives other bytes than published (sha256 {found}, expected is {wanted.sha256}): "
                    "nothing of them was kept"
                )
    raise AssertionError("the second time is the last")


# ---------------------------------------------------------------- what is here


class _Part:
    """The bytes that are here so far; beside them, as JSON, the source they come from and the state it was in."""

    def __init__(self, path: Path, handle: IO[bytes], wanted: Wanted) -> None:
        self.path, self.handle, self.url = path, handle, wanted.url
        self.about = path.with_name(f"{path.name}.json")
        self.have = handle.seek(0, os.SEEK_END)
        self.total = wanted.size
        self.pieced = self.have > 0  # the bytes come from more than one answer
        self.validator: str | None = None  # what the server calls this state of the file: its ETag, or its date
        known = self._remembered()
        unguarded = self.validator is None and wanted.sha256 is None  # nothing would tell that the file changed
        if self.have and (not known or unguarded or self.have > (wanted.size or LARGEST)):
            self.restart()

    def _remembered(self) -> bool:
        """Whether the bytes are known to come from this source."""
        try:
            about = json.loads(self.about.read_bytes())
            self.validator = about["validator"]
            return about["url"] == self.url and isinstance(self.validator, str | None)
        except (OSError, ValueError, LookupError, TypeError):
            return False

    def restart(self, validator: str | None = None) -> None:
        """Begin with nothing. The old bytes go first, so that they never lie under a wrong state."""
        with files.writing_to(self.path):
            self.handle.truncate(0)
            self.handle.seek(0)
        self.have, self.pieced, self.validator = 0, False, validator
        files.write_bytes(self.about, json.dumps({"url": self.url, "validator": validator}).encode())

    def add(self, data: bytes) -> None:
        rest = memoryview(data)
        with files.writing_to(self.path):
            while rest:
                count = self.handle.write(rest)
                self.have += count
                rest = rest[count:]

    def finish(self, path: Path) -> None:
        """Give the whole file its name."""
        with files.writing_to(path):
            os.fsync(self.handle.fileno())
            os.replace(self.path, path)

    def tidy(self) -> None:
        """Remove what is of no use for another try."""
        if not self.have or not self.path.exists():
            files.remove(self.path)
            files.remove(self.about)


@contextmanager
def _held(path: Path, wanted: Wanted) -> Iterator[_Part]:
    """The part of `path`, for this process alone."""
    from filelock import FileLock, Timeout

    place = path.with_name(f"{path.name}.part")
    with files.writing_to(place):
        place.parent.mkdir(parents=True, exist_ok=True)
        try:
            lock = FileLock(path.with_name(f".{path.name}.lock")).acquire(timeout=0)
        except Timeout:
            raise InputError(f"another process is fetching {path}: wait for it") from None
    with lock:
        with files.writing_to(place):
            handle = os.fdopen(os.open(place, os.O_RDWR | os.O_CREAT, 0o644), "r+b", buffering=0)
        with handle:
            part = _Part(place, handle, wanted)
            try:
                yield part
            finally:
                part.tidy()


# ---------------------------------------------------------------- what comes


def _fill(part: _Part, wanted: Wanted, source: str, label: str) -> None:
    """Receive until the file is whole, showing how far it is."""
    with closing(_receive(part, wanted, source)) as stream:
        next(stream, None)  # from the first answer on it is known how much there is
        need = (part.total or 0) - part.have
        if need > (free := shutil.disk_usage(part.path.parent).free):
            raise InputError(f"{label} needs {need:,} bytes more, but only {free:,} are free: make room on the disk")
        total = None if part.total is None else -(-part.total // MB)
        for _ in progress.track(stream, total, label, done=part.have // MB, unit="MB"):
            pass


def _receive(part: _Part, wanted: Wanted, source: str) -> Generator[None, None, None]:
    """Yields with the first answer, and then for every megabyte that has come."""
    failures, most, answered = 0, part.have, False
    while part.total is None or part.have < part.total:
        try:
            with _answer(part, wanted, source) as response:
                if not answered:
                    answered = True
                    yield
                yield from _copy(response, part)
            if part.total is None:
                return  # only its end says that it is whole
            reason = "the connection ended"
        except urllib.error.HTTPError as error:
            with error:
                reason = _refusal(error, part, wanted)
        except (OSError, http.client.HTTPException) as error:
            reason = _reason(error, source)
        if part.have == part.total:
            return
        failures = 1 if part.have > most else failures + 1
        most = max(most, part.have)  # so that a server that makes us begin again and again comes to an end
        amount = f"{part.have:,} bytes" if part.total is None else f"{part.have:,} of {part.total:,} bytes"
        if failures == TRIES:
            kept = f"{amount} are kept, run again to go on" if part.have else "try again later"
            raise InputError(f"{wanted.url}: {reason}, {TRIES} times one after another; {kept}")
        pause = PAUSE * 2 ** (failures - 1)
        print(f"{reason} after {amount}: trying again in {pause:g} s", file=sys.stderr, flush=True)
        time.sleep(pause)


def _copy(response: http.client.HTTPResponse, part: _Part) -> Iterator[None]:
    """The rest of an answer into `part`."""
    most = LARGEST if part.total is None else part.total
    while data := response.read1(CHUNK):
        if part.have + len(data) > most:
            part.restart()
            raise InputError(f"{part.url} sends more than the {most:,} bytes of the file: nothing of it was kept")
        before = part.have
        part.add(data)
        for _ in range(part.have // MB - before // MB):
            yield


@contextmanager
def _answer(part: _Part, wanted: Wanted, source: str) -> Iterator[http.client.HTTPResponse]:
    """The answer to a request for what is missing, and `part` made to fit it."""
    headers = {"User-Agent": "deltaspace"}
    if part.have:
        headers["Range"] = f"bytes={part.have}-"
        if part.validator:
            headers["If-Range"] = part.validator
    opener = addresses.opener(source)
    with opener.open(urllib.request.Request(source, headers=headers), timeout=TIMEOUT) as response:
        asked = wanted.url.startswith("gdrive:") and addresses.is_page(response)
        further = addresses.confirmed(response) if asked else None
        if further is None:
            _fit(part, wanted, response)
            yield response
            return
    addresses.check_redirect(source, response.url, further)
    with opener.open(urllib.request.Request(further, headers=headers), timeout=TIMEOUT) as response:
        _fit(part, wanted, response)
        yield response


def _fit(part: _Part, wanted: Wanted, response: http.client.HTTPResponse) -> None:
    """Make `part` ready for what follows: the rest of the file, or all of it; raises when it is neither."""
    if addresses.is_page(response):
        raise Page(f"{wanted.url} gives a web page instead of the file")
    etag = response.headers.get("ETag", "")
    validator = (None if etag.startswith("W/") else etag) or response.headers.get("Last-Modified")
    if response.status == HTTPStatus.PARTIAL_CONTENT:
        start, total = _range(response.headers.get("Content-Range", ""))
        other = validator not in (None, part.validator) or (total is not None and part.total not in (None, total))
        if not part.have or start != part.have or other:
            part.restart()
            raise ConnectionError("the file changed meanwhile")
        part.pieced = True
    else:  # a server that does not resume, or another state of the file
        part.restart(validator)
        total = response.length
    if wanted.size is not None and total not in (None, wanted.size):
        raise InputError(f"{wanted.url} offers {total:,} bytes, {wanted.size:,} are published: it is another file")
    part.total = wanted.size or total


def _range(text: str) -> tuple[int | None, int | None]:
    """(first byte, bytes in all) of "bytes 5-9/10" or "bytes */10"; None for what it does not say."""
    found = re.fullmatch(r"bytes (?:(\d{1,15})-\d{1,15}|\*)/(\d{1,15}|\*)", text)
    start, total = found.groups() if found else (None, None)
    return (int(start) if start else None), (int(total) if total and total != "*" else None)


def _refusal(error: urllib.error.HTTPError, part: _Part, wanted: Wanted) -> str:
    """Why the server says no, when trying again may help; InputError when it will not."""
    if error.code == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE and part.have:
        if _range(error.headers.get("Content-Range", ""))[1] == part.have and wanted.size is None:
            part.total = part.have  # all of it was here, and nobody knew
        else:
            part.restart()
        return "the file changed meanwhile"
    if error.code in CLOSED and addresses.is_html(error.headers):
        raise Page(f"{wanted.url} gives a web page instead of the file") from error
    phrase = next((status.phrase for status in HTTPStatus if status == error.code), "an unknown status")
    if error.code in AGAIN:
        return f"the server answers {error.code} ({phrase})"
    if 300 <= error.code < 400:
        raise InputError(f"{wanted.url} redirects in a circle or to nowhere: nothing was fetched") from error
    raise InputError(f"{wanted.url} answers {error.code} ({phrase}): nothing was fetched") from error


def _reason(error: Exception, source: str) -> str:
    """What happened to a connection; InputError when it would happen again."""
    cause = error.reason if isinstance(error, urllib.error.URLError) else error
    if isinstance(cause, ssl.SSLCertVerificationError):
        raise InputError(f"{urlsplit(source).hostname} shows a certificate that is not trusted: nothing was fetched")
    if isinstance(cause, TimeoutError):
        return f"nothing came for {TIMEOUT:g} s"
    return shown(getattr(cause, "strerror", None) or cause or type(cause).__name__)
