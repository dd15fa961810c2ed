"""One GET over http(s): the headers that describe a file, and the stream of its bytes.

This uses the standard library's client: pooch and fsspec's http do not resume, and
huggingface_hub's `http_get` appends a part without checking that it is of the same version of the
file (it sends no If-Range and ignores Content-Range).
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
from typing import IO, NamedTuple
from urllib.parse import quote

from rwkv_core.sources.cache_file import open_own
from rwkv_core.util.printable import one_line, printable

_STRONG = re.compile(r'"[!#-~\x80-\xff]*"')
_MAX_DESCRIPTION = 1 << 16
TIMEOUT = 10.0
"""Seconds without data after which a connection counts as broken."""
_CHUNK = 1 << 20


class Broken(Exception):
    """The connection failed or the server is busy. `hopeless` says that a retry is useless."""

    def __init__(self, reason: str, hopeless: bool = False) -> None:
        super().__init__(reason)
        self.hopeless = hopeless


class About(NamedTuple):
    """The server's description of a file. It is saved beside the file, to ask later for changes."""

    etag: str | None
    modified: str | None
    size: int | None
    digests: dict[str, str]
    stamp: tuple[int, ...] = ()
    """Stamp of the downloaded file; see `stamp_of`."""

    @classmethod
    def of(cls, headers: http.client.HTTPMessage, size: int | None) -> About:
        return cls(headers["ETag"], headers["Last-Modified"], size, _digests(headers))

    @classmethod
    def read(cls, path: Path) -> About | None:
        """Read a description that `write` wrote; None if there is none or it is malformed."""
        try:
            with open_own(path, "rb") as file:
                about = cls(**json.loads(file.read(_MAX_DESCRIPTION)))
            about = about._replace(stamp=tuple(about.stamp))
            texts = [about.etag, about.modified, *about.digests.values()]
            numbers = [about.size, *about.stamp]
            sound = all(one is None or _is_header(one) for one in texts) and all(
                one is None or isinstance(one, int) for one in numbers
            )
            return about if sound else None
        except (OSError, ValueError, TypeError, AttributeError, RecursionError):
            return None

    def write(self, path: Path) -> None:
        with open_own(path, "wb") as file:
            file.write(json.dumps(self._asdict()).encode())

    @property
    def validator(self) -> str | None:
        """Return the value for If-Range: a strong ETag; None if there is none.

        Last-Modified is not used, since two versions within a second share it.
        """
        return self.etag if self.etag and _STRONG.fullmatch(self.etag) else None


def _is_header(value: object) -> bool:
    return isinstance(value, str) and value.isascii() and value.isprintable()


def _digests(headers: http.client.HTTPMessage) -> dict[str, str]:
    """Return checksums of the whole file by algorithm, in hex (RFC 9530, 3230 and 1864)."""
    found = {}
    for name, pattern in (("Repr-Digest", r"sha-256=:([^:]+):"), ("Digest", r"sha-256=([^,\s]+)")):
        if match := re.search(pattern, headers.get(name, ""), re.IGNORECASE):
            found["sha256"] = match[1]
    # In a partial response this checksum is that of the part, and not used.
    if "Content-MD5" in headers and "Content-Range" not in headers:
        found["md5"] = headers["Content-MD5"]
    return {name: _hex(value) for name, value in found.items() if _hex(value)}


def _hex(written: str) -> str:
    try:
        return base64.b64decode(written.strip(), validate=True).hex()
    except ValueError:
        return ""


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects, but not from https to http, where anyone could change the file."""

    def redirect_request(
        self,
        req: urllib.request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: http.client.HTTPMessage,
        newurl: str,
    ) -> urllib.request.Request | None:
        if req.type == "https" and not newurl.lower().startswith("https:"):
            raise Broken("the server redirects from https to http", hopeless=True)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def get(address: str, headers: dict[str, str]) -> http.client.HTTPResponse:
    """Send a GET request and return the response. Raises HTTPError, Broken.

    Redirects are followed only within http(s).
    """
    request = urllib.request.Request(quote(address, safe="!#$%&'()*+,/:;=?@[]~"), headers=headers)
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler, urllib.request.HTTPHandler, urllib.request.HTTPSHandler,
        urllib.request.HTTPDefaultErrorHandler, _Redirects,
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
        # No such host, connection refused, no network, a wrong certificate: a retry does not help.
        passing = isinstance(reason, TimeoutError | ConnectionResetError | ConnectionAbortedError)
        raise Broken(text, hopeless=not passing) from None
    except (ValueError, http.client.InvalidURL):
        # The errors' texts quote parts of an address, such as its password.
        raise Broken("the address, or one it is redirected to, is not valid", True) from None
    except (OSError, http.client.HTTPException) as error:
        raise Broken(one_line(error), hopeless=isinstance(error, ssl.SSLError)) from None


def chunks(response: http.client.HTTPResponse) -> Iterator[bytes]:
    """Yield the body in chunks as it arrives. Raises Broken."""
    while True:
        try:
            chunk = response.read1(_CHUNK)
        except (OSError, http.client.HTTPException) as error:
            raise Broken(one_line(error)) from None
        if not chunk:
            return
        yield chunk


def length_of(response: http.client.HTTPResponse) -> int | None:
    """Return the length of the body in bytes; None if the server does not tell. Raises Broken."""
    lengths = set(response.headers.get_all("Content-Length") or ())
    if not lengths or "Transfer-Encoding" in response.headers:
        return None
    length = lengths.pop().strip()
    if lengths or not re.fullmatch(r"[0-9]{1,18}", length):
        raise Broken("the server does not give the file's length as one number", hopeless=True)
    return int(length)
