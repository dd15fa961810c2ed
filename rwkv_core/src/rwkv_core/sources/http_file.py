"""One GET over http(s): what the server says of a file, and its bytes as they arrive.

By the standard library's client: the hub's own brings another one along, but has changed it twice.
"""

from __future__ import annotations

import base64
import http.client
import json
import re
import ssl
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

from rwkv_core.printable import one_line, printable

TIMEOUT = 10.0
"""Seconds without a byte after which a connection counts as broken."""
_CHUNK = 1 << 20


class Broken(Exception):
    """The connection failed or the server is busy; `hopeless` if trying again is of no use."""

    def __init__(self, reason: str, hopeless: bool = False) -> None:
        super().__init__(reason)
        self.hopeless = hopeless


class About(NamedTuple):
    """What the server said of a file; kept beside it to ask whether it has changed since."""

    etag: str | None
    modified: str | None
    size: int | None
    digests: dict[str, str]

    @classmethod
    def of(cls, headers: http.client.HTTPMessage, size: int | None) -> About:
        return cls(headers["ETag"], headers["Last-Modified"], size, _digests(headers))

    @classmethod
    def read(cls, path: Path) -> About | None:
        try:
            return cls(**json.loads(path.read_text()))
        except (OSError, ValueError, TypeError):
            return None

    def write(self, path: Path) -> None:
        path.write_text(json.dumps(self._asdict()))

    @property
    def strong(self) -> str | None:
        """What a later part is asked for by: that it is of the same bytes."""
        weak = self.etag is None or self.etag.startswith("W/")
        return self.modified if weak else self.etag


def _digests(headers: http.client.HTTPMessage) -> dict[str, str]:
    """Checksums of the whole file by algorithm, in hex. Source: RFC 9530, 3230 and 1864."""
    found = {}
    for name, pattern in (("Repr-Digest", r"sha-256=:([^:]+):"), ("Digest", r"sha-256=([^,\s]+)")):
        if match := re.search(pattern, headers.get(name, ""), re.IGNORECASE):
            found["sha256"] = match[1]
    # Of a part, in an answer that is one: of no use here.
    if "Content-MD5" in headers and "Content-Range" not in headers:
        found["md5"] = headers["Content-MD5"]
    return {name: _hex(value) for name, value in found.items() if _hex(value)}


def _hex(written: str) -> str:
    try:
        return base64.b64decode(written.strip(), validate=True).hex()
    except ValueError:
        return ""


def get(address: str, headers: dict[str, str]) -> http.client.HTTPResponse:
    """GET, following redirects within http(s) alone. Raises HTTPError, Broken."""
    request = urllib.request.Request(quote(address, safe="!#$%&'()*+,/:;=?@[]~"), headers=headers)
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler, urllib.request.HTTPHandler, urllib.request.HTTPSHandler,
        urllib.request.HTTPDefaultErrorHandler, urllib.request.HTTPRedirectHandler,
        urllib.request.HTTPErrorProcessor, urllib.request.UnknownHandler,
    ):  # fmt: skip
        opener.add_handler(handler())
    try:
        response: http.client.HTTPResponse = opener.open(request, timeout=TIMEOUT)
        return response
    except urllib.error.HTTPError:
        raise
    except urllib.error.URLError as error:
        reason = error.reason
        text = one_line(reason) if isinstance(reason, BaseException) else printable(str(reason))
        # No such host, nobody who listens there, no network, no trust: soon found out, and to stay.
        passing = isinstance(reason, TimeoutError | ConnectionResetError | ConnectionAbortedError)
        raise Broken(text, hopeless=not passing) from None
    except (OSError, http.client.HTTPException, ValueError) as error:
        refused = isinstance(error, ValueError | ssl.SSLError | http.client.InvalidURL)
        raise Broken(one_line(error), hopeless=refused) from None


def chunks(response: http.client.HTTPResponse) -> Iterator[bytes]:
    """The body as it arrives. Raises Broken."""
    while True:
        try:
            chunk = response.read1(_CHUNK)
        except (OSError, http.client.HTTPException) as error:
            raise Broken(one_line(error)) from None
        if not chunk:
            return
        yield chunk


def length_of(response: http.client.HTTPResponse) -> int | None:
    length = response.headers.get("Content-Length", "")
    return int(length) if re.fullmatch(r"[0-9]{1,18}", length) else None
