"""Images, and a server to download them from."""

import dataclasses
import email.utils
import io
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
from PIL import Image

from dfganext.settings import Download


def encoded(seed: int = 0, side: int = 32, kind: str = "PNG") -> bytes:
    """An image of random pixels, different for each seed."""
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


@pytest.fixture
def picture() -> Callable[..., bytes]:
    return encoded


@pytest.fixture
def download() -> Callable[..., Download]:
    """The section `download` of the settings, with some values changed."""
    shipped = Download("data", "owner/name", None, None, None, None, max_megapixels=1.0, min_side=16)
    return lambda **changes: dataclasses.replace(shipped, **changes)


class FileServer(ThreadingHTTPServer):
    """Serves `body` at every path. Other attributes cause faults; `requests` holds (path, Range header) of every request."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.body = b""
        self.etag: str | None = '"v1"'
        self.modified: float | None = None
        self.ranges = True
        self.break_after: list[int] = []  # bytes to send in each of the next responses before the connection breaks
        self.statuses: list[int] = []  # of the next responses, if not 200
        self.answers: dict[str, tuple[int, dict[str, str], bytes]] = {}  # responses by path, which come first
        self.requests: list[tuple[str, str | None]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    server: FileServer
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        server, wanted = self.server, self.headers.get("Range")
        server.requests.append((self.path, wanted))
        answer = server.answers.get(self.path.split("?")[0])
        if answer:
            return self.reply(*answer)
        if server.statuses:
            return self.reply(server.statuses.pop(0), {}, b"")
        version = server.etag or (email.utils.formatdate(server.modified, usegmt=True) if server.modified else None)
        headers = {"ETag" if server.etag else "Last-Modified": version} if version else {}
        if not (wanted and server.ranges and self.headers.get("If-Range") in (None, version)):
            return self.reply(200, headers, server.body)
        start = int(wanted.removeprefix("bytes=").removesuffix("-"))
        if start >= len(server.body):
            return self.reply(416, headers | {"Content-Range": f"bytes */{len(server.body)}"}, b"")
        stated = f"bytes {start}-{len(server.body) - 1}/{len(server.body)}"
        return self.reply(206, headers | {"Content-Range": stated}, server.body[start:])

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.do_GET()

    def do_HEAD(self) -> None:
        self.do_GET()

    def reply(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.send_response(status)
        for key, value in ({"Content-Length": str(len(body))} | headers).items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        if status in (200, 206) and self.server.break_after:
            self.wfile.write(body[: self.server.break_after.pop(0)])
            self.wfile.flush()
            self.close_connection = True
        else:
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server():
    with FileServer() as running:
        threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        yield running
        running.shutdown()
