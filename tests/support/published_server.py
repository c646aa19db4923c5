"""A web server on this machine that publishes files, and misbehaves as it is told."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class File:
    """What one address answers.

    etag: the name of its state; a list gives each further answer another one. ranges: whether parts are given;
    honest: whether only of the state that was asked for. drops: after how many bytes of the body each further answer
    breaks off, once `hold` is set. statuses: what further requests get first; to: where it redirects. tell False: no
    length is told, and the body is sent in a chunk, `times` over.
    """

    content: bytes = b""
    etag: str | list[str] | None = '"first"'
    ranges: bool = True
    honest: bool = True
    kind: str = "application/octet-stream"
    drops: list[int] = field(default_factory=list)
    statuses: list[int] = field(default_factory=list)
    status: int = 200
    to: str | None = None
    tell: bool = True
    times: int = 1
    hold: threading.Event | None = None

    def state(self) -> str | None:
        return self.etag.pop(0) if isinstance(self.etag, list) else self.etag


@dataclass
class Server:
    address: str
    files: dict[str, File] = field(default_factory=dict)
    requests: list[tuple[str, str | None]] = field(default_factory=list)  # path, Range

    def url(self, path: str) -> str:
        return f"{self.address}{path}"

    def ranges(self) -> list[str | None]:
        return [asked for _, asked in self.requests]


@contextmanager
def serving() -> Iterator[Server]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            server.requests.append((self.path, self.headers["Range"]))
            answer(self, server.files.get(self.path))

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as listener:
        server = Server(f"http://127.0.0.1:{listener.server_address[1]}")
        thread = threading.Thread(target=listener.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        try:
            yield server
        finally:
            listener.shutdown()
            thread.join()


def answer(to: BaseHTTPRequestHandler, file: File | None) -> None:
    to.close_connection = True
    if file is None:
        return to.send_error(404)
    status = file.statuses.pop(0) if file.statuses else file.status
    if file.to is not None:
        status = 302
    body, etag = file.content, file.state()
    start = range_of(to, file, etag) if status == 200 else 0
    if start >= len(body) > 0:
        to.send_response(416)
        to.send_header("Content-Range", f"bytes */{len(body)}")
        to.send_header("Content-Length", "0")
        return to.end_headers()
    to.send_response(206 if start else status)
    to.send_header("Content-Type", file.kind)
    if start:
        to.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
    if file.to is not None:
        to.send_header("Location", file.to)
    if etag is not None:
        to.send_header("ETag", etag)
    if file.tell:
        to.send_header("Content-Length", str(len(body) - start))
    else:
        to.send_header("Transfer-Encoding", "chunked")
    to.end_headers()
    rest = body[start:]
    if file.drops:
        rest = rest[: file.drops.pop(0)]
    try:
        if file.tell:
            to.wfile.write(rest)
            if file.hold is not None:
                file.hold.wait(20)
        else:
            for _ in range(file.times):
                to.wfile.write(b"%x\r\n%b\r\n" % (len(rest), rest))
            to.wfile.write(b"0\r\n\r\n")
    except ConnectionError:  # it was too much for whoever asked
        pass


def range_of(to: BaseHTTPRequestHandler, file: File, etag: str | None) -> int:
    """The first byte that is asked for, 0 when the whole file is to be given."""
    asked = re.fullmatch(r"bytes=(\d+)-", to.headers["Range"] or "")
    condition = to.headers["If-Range"]
    if not asked or not file.ranges or (file.honest and condition is not None and condition != etag):
        return 0
    return int(asked[1])
