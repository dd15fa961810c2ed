"""A web server on loopback that answers like the Hugging Face hub, with faults on request.

Of the hub it has HEAD and GET of /OWNER/REPO/resolve/REVISION/FILE with the headers that the
client goes by. Anything else under / is a plain file with an ETag, parts and conditions.
"""

from __future__ import annotations

import hashlib
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import numpy as np

COMMIT = "c0ffee" * 6 + "c0ff"
DATA = np.random.default_rng(0).bytes(300_000)
SHA256 = hashlib.sha256(DATA).hexdigest()


@dataclass
class Faults:
    """Faults to simulate. Counts decrease to 0 as the faults occur."""

    breaks: int = 0
    """Bodies cut off half-way, by a connection that is closed."""
    stalls: int = 0
    """Bodies of which only the half comes, by a connection that stays open."""
    busy: int = 0
    """Answers of 503."""
    status: int = 0
    """Answer with this status alone."""
    headers: dict[str, str] = field(default_factory=dict)
    """Headers that replace the right ones; an empty one leaves the header out."""
    damage: bool = False
    """Send other bytes than the checksum is of."""
    parts: bool = True
    """Whether the server supports ranges."""
    new_etags: bool = False
    """Give another ETag each time, and parts whatever If-Range says."""
    second_length: str = ""
    """A second Content-Length beside the right one."""
    unasked_part: bool = False
    """Give the second half to whoever asks for the whole."""
    extra: bytes = b""
    """Bytes sent after the body, without a Content-Length."""
    slow: float = 0.0
    """Seconds before the second half of a body."""


class Hub:
    """The files it serves, by path, its faults, and the requests it got."""

    def __init__(self) -> None:
        self.files = {"/file.bin": DATA}
        self.repositories = {"owner/repo": {"model.pth": DATA, "sub/a b.pth": DATA[:10]}}
        self.tokens: dict[str, str] = {}
        self.faults = Faults()
        self.requests: list[tuple[str, str, dict[str, str]]] = []
        self.address = ""
        self.ended = threading.Event()

    def gets(self, path: str = "") -> list[dict[str, str]]:
        """Return the headers of each GET request for a path with this ending."""
        return [h for method, p, h in self.requests if method == "GET" and p.endswith(path)]


@contextmanager
def serve() -> Iterator[Hub]:
    hub = Hub()

    class Handler(_Handler):
        pass

    Handler.hub = hub
    server = _Server(("127.0.0.1", 0), Handler)
    hub.address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield hub
    finally:
        hub.ended.set()
        server.shutdown()
        thread.join()
        server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_: object) -> None:
        """Clients go away in the middle here: that is what is tested."""


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, body: bool) -> None:
        path = unquote(urlsplit(self.path).path)
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.hub.requests.append((self.command, path, headers))
        faults = self.hub.faults
        if faults.busy:
            faults.busy -= 1
            return self._refuse(503)
        if faults.status:
            return self._refuse(faults.status)
        found = re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path)
        if found:
            repo, revision, name = found.groups()
            if repo not in self.hub.repositories:
                return self._refuse(401, "RepoNotFound")
            token = self.hub.tokens.get(repo)
            if token and headers.get("authorization") != f"Bearer {token}":
                return self._refuse(401, "GatedRepo")
            if revision not in ("main", COMMIT):
                return self._refuse(404, "RevisionNotFound")
            data = self.hub.repositories[repo].get(name)
            if data is None:
                return self._refuse(404, "EntryNotFound")
            digest = hashlib.sha256(data).hexdigest()
            extra = {"X-Repo-Commit": COMMIT, "X-Linked-Etag": f'"{digest}"'}
            extra["X-Linked-Size"] = str(len(data))
        elif path == "/moved":
            self.send_response(302)
            self.send_header("Location", "/file.bin")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return None
        elif path in self.hub.files:
            data, extra = self.hub.files[path], {}
        else:
            return self._refuse(404)
        return self._give(data, headers, extra, body)

    def _give(self, data: bytes, asked: dict[str, str], extra: dict[str, str], body: bool) -> None:
        faults = self.hub.faults
        version = str(len(self.hub.requests)).encode() if faults.new_etags else b""
        etag = f'"{hashlib.md5(data + version).hexdigest()}"'
        headers = {"ETag": etag, "Content-Type": "application/octet-stream", **extra}
        if asked.get("if-none-match") == etag and "ETag" not in faults.headers:
            return self._refuse(304)
        start, status = 0, 200
        part = re.fullmatch(r"bytes=(\d+)-", asked.get("range", ""))
        unchanged = faults.new_etags or asked.get("if-range", etag) == etag
        if part and faults.parts and unchanged:
            start, status = int(part[1]), 206
            if start >= len(data):
                return self._refuse(416)
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        if faults.unasked_part and not part:
            start, status = len(data) // 2, 206
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        sent = data[start:] + faults.extra
        headers["Content-Length"] = str(len(sent))
        if faults.extra:
            headers["Content-Length"] = ""
            self.close_connection = True
        headers |= faults.headers
        self.send_response(status)
        for name, value in headers.items():
            if value:
                self.send_header(name, value)
        if faults.second_length:
            self.send_header("Content-Length", faults.second_length)
        self.end_headers()
        if body:
            self._send(bytes(len(sent)) if faults.damage else sent)
        return None

    def _send(self, data: bytes) -> None:
        faults, half = self.hub.faults, len(data) // 2
        self.wfile.write(data[:half])
        self.wfile.flush()
        if faults.breaks:
            faults.breaks -= 1
            self.close_connection = True
        elif faults.stalls:
            faults.stalls -= 1
            self.hub.ended.wait()
            self.close_connection = True
        else:
            self.hub.ended.wait(faults.slow)
            self.wfile.write(data[half:])

    def _refuse(self, status: int, code: str = "") -> None:
        self.send_response(status)
        if code:
            self.send_header("X-Error-Code", code)
            self.send_header("X-Repo-Commit", COMMIT)
        if status != 304:
            self.send_header("Content-Length", "0")
        self.end_headers()


def left_over(folder: Path) -> list[str]:
    """Return the partial files below a folder, in the cache of any client."""
    paths = folder.rglob("*")
    return [p.name for p in paths if "partial" in p.name or p.suffix == ".incomplete"]
