"""Download one file over HTTP: resumed where it stopped, retried after dropped connections, verified at the end.

The request carries no cookies and no credentials. Redirects are followed within the hosts of the source.
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
from contextlib import closing, contextmanager, suppress
from http import HTTPStatus
from pathlib import Path
from typing import IO, Any
from urllib.parse import urljoin, urlsplit

from pipeline.checkpoints.catalogue import MB, PublishedFile, address, is_safe, one_line
from pipeline.runtime import files, progress
from pipeline.runtime.errors import InputError

ATTEMPTS = 5  # in a row that brought no new bytes
PAUSE = 1.0  # seconds before the second attempt, doubled before each further one
TIMEOUT = 30.0  # seconds of silence after which a connection counts as dropped
CHUNK = 1 << 16  # bytes
MAX_SIZE = 20_000 * MB  # of a file whose size is not known
RETRIED = (408, 429, 500, 502, 503, 504)
SIGN_IN = (401, 403, 429)  # with a web page: a question to a person
DELIVERY_HOSTS = {  # host of a source -> further hosts that deliver its files
    "github.com": tuple(f"{name}.githubusercontent.com" for name in ("objects", "release-assets", "raw")),
}


class WebPageError(InputError):
    """The answer is a web page instead of the file."""


def download(file: PublishedFile, path: Path, label: str) -> str:
    """Download into `path`; returns the sha256. Unfinished bytes stay beside it as .part, for the next call.

    label: name of the file in the progress line.

    Raises WebPageError for a web page, and InputError, one line, for every other failure: a status, a redirect to
    another host, other bytes or more of them than published, a full disk, no connection, a concurrent download.
    """
    source = address(file.url)
    with _locked_part(path, file) as part:
        for last in (False, True):
            _complete(part, file, source, label)
            digest = files.digest(part.path)
            if file.sha256 in (None, digest):
                with files.writing_to(path):
                    os.fsync(part.handle.fileno())
                    os.replace(part.path, path)
                return digest
            in_one_answer = not part.pieced
            part.restart()
            if in_one_answer or last:  # else the pieces may be of different states of the file: once more, in one go
                raise InputError(
                    f"{file.url} gives other bytes than published (sha256 {digest}, expected is {file.sha256}): "
                    "they were removed"
                )
    raise AssertionError("the second time is the last")


def check_redirect(source: str, old: str, new: str) -> None:
    """InputError unless `new`, to which `old` redirects, is encrypted and of a host that belongs to the source."""
    first = urlsplit(source).hostname or ""
    if not is_safe(new) or (urlsplit(old).scheme == "https" and urlsplit(new).scheme != "https"):
        raise InputError(f"{first} redirects to {one_line(new)}, which is not encrypted: nothing was fetched")
    host = urlsplit(new).hostname or ""
    if host != first and host not in DELIVERY_HOSTS.get(first, ()):
        raise InputError(f"{first} redirects to {one_line(host)}, which is not among its hosts: nothing was fetched")


class _Redirects(urllib.request.HTTPRedirectHandler):
    def __init__(self, source: str) -> None:
        self.source = source

    def http_error_302(self, req: Any, fp: Any, code: int, msg: str, headers: Any) -> Any:
        if location := headers.get("Location"):
            with suppress(ValueError):  # a malformed address is refused as it is
                location = urljoin(req.full_url, location)
            check_redirect(self.source, req.full_url, location)
        return super().http_error_302(req, fp, code, msg, headers)

    http_error_301 = http_error_303 = http_error_307 = http_error_308 = http_error_302


def _is_html(headers: Any) -> bool:
    return headers.get_content_type() in ("text/html", "application/xhtml+xml")


def _is_page(response: http.client.HTTPResponse) -> bool:
    """Whether the answer is a web page, by its type or its first bytes; nothing is consumed."""
    start = response.peek(64).lstrip()[:14].lower()
    return _is_html(response.headers) or start.startswith((b"<!doctype html", b"<html"))


# ---------------------------------------------------------------- the unfinished file


class _Part:
    """Bytes downloaded so far; their source and its state lie beside them as JSON."""

    def __init__(self, path: Path, handle: IO[bytes], file: PublishedFile) -> None:
        self.path, self.handle, self.url = path, handle, file.url
        self.about = path.with_name(f"{path.name}.json")
        self.size = handle.seek(0, os.SEEK_END)
        self.total = file.size
        self.pieced = self.size > 0  # the bytes come from more than one answer
        self.validator: str | None = None  # the server's name of this state of the file: its ETag, or its date
        same_source = self._read_about()
        unguarded = self.validator is None and file.sha256 is None  # a changed file would go unnoticed
        if self.size and (not same_source or unguarded or self.size > (file.size or MAX_SIZE)):
            self.restart()

    def _read_about(self) -> bool:
        """Whether the bytes are known to come from this source."""
        try:
            about = json.loads(self.about.read_bytes())
            self.validator = about["validator"]
            return about["url"] == self.url and isinstance(self.validator, str | None)
        except (OSError, ValueError, LookupError, TypeError):
            return False

    def restart(self, validator: str | None = None) -> None:
        """Begin with no bytes. The old ones go first, so that they never lie under another state's name."""
        with files.writing_to(self.path):
            self.handle.truncate(0)
            self.handle.seek(0)
        self.size, self.pieced, self.validator = 0, False, validator
        files.write_bytes(self.about, json.dumps({"url": self.url, "validator": validator}).encode())

    def add(self, data: bytes) -> None:
        rest = memoryview(data)
        with files.writing_to(self.path):
            while rest:
                count = self.handle.write(rest)
                self.size += count
                rest = rest[count:]


@contextmanager
def _locked_part(path: Path, file: PublishedFile) -> Iterator[_Part]:
    """The unfinished file of `path`, for this process alone."""
    from filelock import FileLock, Timeout

    part_path = path.with_name(f"{path.name}.part")
    with files.writing_to(part_path):
        part_path.parent.mkdir(parents=True, exist_ok=True)
        try:
            lock = FileLock(path.with_name(f".{path.name}.lock")).acquire(timeout=0)
        except Timeout:
            raise InputError(f"another process is fetching {path}: wait for it") from None
    with lock:
        with files.writing_to(part_path):
            handle = os.fdopen(os.open(part_path, os.O_RDWR | os.O_CREAT, 0o644), "r+b", buffering=0)
        with handle:
            part = _Part(part_path, handle, file)
            try:
                yield part
            finally:
                if not part.size or not part_path.exists():  # of no use for another attempt
                    files.remove(part_path)
                    files.remove(part.about)


# ---------------------------------------------------------------- requests


def _complete(part: _Part, file: PublishedFile, source: str, label: str) -> None:
    """Receive until the file is whole, with a progress bar."""
    with closing(_receive(part, file, source)) as stream:
        next(stream, None)  # the first answer says how much there is
        need = (part.total or 0) - part.size
        if need > (free := shutil.disk_usage(part.path.parent).free):
            raise InputError(f"{label} needs {need:,} bytes more, but only {free:,} are free: make room on the disk")
        total = part.total and -(-part.total // MB)
        for _ in progress.track(stream, total, label, done=part.size // MB, unit="MB"):
            pass


def _receive(part: _Part, file: PublishedFile, source: str) -> Generator[None, None, None]:
    """Yields at the first answer, and then for every megabyte."""
    failures, most, answered = 0, part.size, False
    while part.total is None or part.size < part.total:
        try:
            with _answer(part, file, source) as response:
                if not answered:
                    answered = True
                    yield
                yield from _copy(response, part)
            if part.total is None:
                return  # only the end of the answer says that it is whole
            reason = "the connection ended"
        except urllib.error.HTTPError as error:
            with error:
                reason = _refusal(error, part, file)
        except (OSError, http.client.HTTPException) as error:
            reason = _connection_failure(error, source)
        if part.size == part.total:
            return
        failures = 1 if part.size > most else failures + 1
        most = max(most, part.size)  # a server that makes us restart every time comes to an end, too
        amount = f"{part.size:,} bytes" if part.total is None else f"{part.size:,} of {part.total:,} bytes"
        if failures == ATTEMPTS:
            kept = f"{amount} are kept, run again to resume" if part.size else "try again later"
            raise InputError(f"{file.url}: {reason}, {ATTEMPTS} times one after another; {kept}")
        pause = PAUSE * 2 ** (failures - 1)
        print(f"{reason} after {amount}: trying again in {pause:g} s", file=sys.stderr, flush=True)
        time.sleep(pause)


def _copy(response: http.client.HTTPResponse, part: _Part) -> Iterator[None]:
    """The rest of an answer into `part`."""
    limit = MAX_SIZE if part.total is None else part.total
    while data := response.read1(CHUNK):
        if part.size + len(data) > limit:
            part.restart()
            raise InputError(f"{part.url} sends more than the {limit:,} bytes of the file: they were removed")
        before = part.size
        part.add(data)
        for _ in range(part.size // MB - before // MB):
            yield


@contextmanager
def _answer(part: _Part, file: PublishedFile, source: str) -> Iterator[http.client.HTTPResponse]:
    """The answer to a request for the missing bytes, with `part` made to fit it."""
    headers = {"User-Agent": "deltaspace"}
    if part.size:
        headers["Range"] = f"bytes={part.size}-"
        if part.validator:
            headers["If-Range"] = part.validator
    opener = urllib.request.build_opener(_Redirects(source))
    with opener.open(urllib.request.Request(source, headers=headers), timeout=TIMEOUT) as response:
        _match(part, file, response)
        yield response


def _match(part: _Part, file: PublishedFile, response: http.client.HTTPResponse) -> None:
    """Make `part` ready for the answer, the rest of the file or all of it; raises when it is neither."""
    if _is_page(response):
        raise WebPageError(f"{file.url} gives a web page instead of the file")
    etag = response.headers.get("ETag", "")
    validator = (None if etag.startswith("W/") else etag) or response.headers.get("Last-Modified")
    if response.status == HTTPStatus.PARTIAL_CONTENT:
        start, total = _content_range(response.headers)
        other = validator not in (None, part.validator) or (total is not None and part.total not in (None, total))
        if not part.size or start != part.size or other:
            part.restart()
            raise ConnectionError("the file changed meanwhile")
        part.pieced = True
    else:  # a server that does not resume, or another state of the file
        part.restart(validator)
        total = response.length
    if file.size is not None and total not in (None, file.size):
        raise InputError(f"{file.url} offers {total:,} bytes, {file.size:,} are published: it is another file")
    part.total = file.size or total


def _content_range(headers: Any) -> tuple[int | None, int | None]:
    """(first byte, bytes in all) of "bytes 5-9/10" or "bytes */10"; None for what it does not say."""
    pattern = r"bytes (?:(\d{1,15})-\d{1,15}|\*)/(\d{1,15}|\*)"
    match = re.fullmatch(pattern, headers.get("Content-Range", ""))
    start, total = match.groups() if match else (None, None)
    return (int(start) if start else None), (int(total) if total and total != "*" else None)


def _refusal(error: urllib.error.HTTPError, part: _Part, file: PublishedFile) -> str:
    """Reason of a status after which a retry may help; InputError for any other."""
    if error.code == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE and part.size:
        if _content_range(error.headers)[1] == part.size and file.size is None:
            part.total = part.size  # it was whole already
        else:
            part.restart()
        return "the file changed meanwhile"
    if error.code in SIGN_IN and _is_html(error.headers):
        raise WebPageError(f"{file.url} gives a web page instead of the file") from error
    answer = f"{error.code} ({one_line(error.reason)})"
    if error.code in RETRIED:
        return f"the server answers {answer}"
    if 300 <= error.code < 400:
        raise InputError(f"{file.url} redirects in a circle or to nowhere: nothing was fetched") from error
    raise InputError(f"{file.url} answers {answer}: nothing was fetched") from error


def _connection_failure(error: Exception, source: str) -> str:
    """Reason of a dropped connection; InputError when a retry would not help."""
    cause = error.reason if isinstance(error, urllib.error.URLError) else error
    if isinstance(cause, ssl.SSLCertVerificationError):
        raise InputError(f"{urlsplit(source).hostname} shows a certificate that is not trusted: nothing was fetched")
    if isinstance(cause, TimeoutError):
        return f"nothing came for {TIMEOUT:g} s"
    return one_line(getattr(cause, "strerror", None) or cause or type(cause).__name__)
