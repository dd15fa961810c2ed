"""Downloads a file over http(s) into a cache. It resumes after a failure and leaves no half file.

No library is used, since no library resumes a download and also makes sure that all parts are of
one version: `http_get` of huggingface_hub 2.4 resumes without If-Range and compares only sizes;
pooch 1.9 and fsspec 2026.9 begin again from the first byte.
"""

from __future__ import annotations

import hashlib
import http.client
import os
import re
import shutil
import sys
import time
import urllib.error
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import SplitResult, quote, unquote, urlsplit

from rwkv_core.errors import DownloadError
from rwkv_core.sources.cache_file import cache_folder, digest_of, is_own, open_own, stamp_of
from rwkv_core.sources.http_file import About, Broken, chunks, get, length_of
from rwkv_core.util.addresses import shown
from rwkv_core.util.printable import printable

RETRIES = 5
"""Number of retries in a row without progress."""
PAUSE = 1.0
"""Seconds before the first retry; each further one waits twice as long."""
_RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\.|$)", re.IGNORECASE)
"""Names of devices on Windows."""
_BUSY = (408, 425, 429, 500, 502, 503, 504)


def fetch(address: str, sha256: str | None = None) -> Path:
    """Return the path in the cache of the file at an http(s) address; download it if necessary.

    With `sha256`, a copy in the cache is used without asking the server. Otherwise it is used if
    the server has no newer version or cannot be reached.

    Raises DownloadError if the address is malformed, the server sends no file, the file does not
    have the length or checksum given by the server or by `sha256`, or the disk is full. The part
    that has arrived is kept, so that the next call resumes, unless its checksum is wrong.
    """
    return _fetch(address, address, sha256, RETRIES)


def fetch_beside(address: str, name: str) -> Path | None:
    """Download the file `name` beside the file at `address`, into the folder of that file's copy.

    Returns its path; None if the server has no such file or sends something else. A copy in the
    cache is used without asking the server. Raises DownloadError for a malformed address, and
    Unreachable.
    """
    file = _folder(address) / name
    if file.is_file():
        return file
    try:
        return _fetch(_beside(address, name), address, None, 1)
    except Unreachable:
        raise
    except DownloadError:
        return None


def fetch_part(address: str, name: str) -> Path:
    """Download the file `name`, which the file at `address` needs beside it; see `fetch`."""
    return _fetch(_beside(address, name), address, None, RETRIES)


def _beside(address: str, name: str) -> str:
    parts = _split(address)
    return parts._replace(path=parts.path.rpartition("/")[0] + f"/{quote(name)}").geturl()


def _cache_name(path: str) -> str:
    """Return a file name, valid on every system, for the last part of an address's path."""
    # The part after an encoded question mark may be a secret, like a query.
    last = unquote(path.rpartition("/")[2]).partition("?")[0]
    name = re.sub(r"[^A-Za-z0-9_.+-]+", "_", last)[-100:].strip(".")
    return f"file-{name}" if not name or _RESERVED.match(name) else name


def _folder(address: str) -> Path:
    return cache_folder() / hashlib.sha256(address.encode()).hexdigest()[:16]


def _fetch(address: str, at: str, sha256: str | None, retries: int) -> Path:
    """Download `address` into the cache folder of the address `at`."""
    parts = _split(address)
    name = _cache_name(parts.path)
    folder = _folder(at)
    file = folder / name
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _only_one(folder / ".lock", address):
            download = _Download(address, file)
            if file.exists() and sha256 is not None:
                if digest_of(file, "sha256") == sha256:
                    return file
                download.forget()
            try:
                download.run(sha256, retries)
            except DownloadError:
                # A copy with another checksum must not be used instead.
                if sha256 is not None or not download.is_cached():
                    raise
            return file
    except OSError as error:
        raise DownloadError(
            f"{shown(address)}: cannot be kept in {folder}: {error.strerror or error}; "
            "RWKV_CACHE names another folder"
        ) from None


def _split(address: str) -> SplitResult:
    try:
        parts = urlsplit(address)
        _ = parts.port  # raises for one that is no number
    except ValueError:
        # The error's text may quote a part of a password.
        raise DownloadError(
            f"{shown(address)}: not an address: the host or port is malformed"
        ) from None
    if parts.username is not None or parts.password is not None:
        raise DownloadError(
            f"{shown(address)}: a name and password in an address "
            "are not supported; fetch the file by hand and give its path"
        )
    if not parts.hostname:
        raise DownloadError(f"{shown(address)}: not an address: it names no host")
    return parts


class Unreachable(DownloadError):
    """The server does not answer, or the connection breaks each time."""


@contextmanager
def _only_one(lock_file: Path, address: str) -> Iterator[None]:
    """Hold a lock between processes; a process that waits prints a line on a terminal."""
    from filelock import FileLock, Timeout

    if lock_file.is_symlink():
        lock_file.unlink()
    lock = FileLock(lock_file)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        if sys.stderr.isatty():
            print(f"waiting for another process that fetches {shown(address)}", file=sys.stderr)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


class _Restart(Exception):
    """The part so far cannot be used: the file has changed, or the server sends no ranges."""


class _Download:
    """Download of one file into the cache, in `file.partial` until it is complete."""

    def __init__(self, address: str, file: Path) -> None:
        self._address, self._shown, self._file = address, shown(address), file
        self._partial = file.with_name(file.name + ".partial")
        self._about_file = file.with_name(file.name + ".json")
        self._about_partial = file.with_name(file.name + ".partial.json")

    def forget(self) -> None:
        """Treat the copy in the cache as outdated, without asking the server."""
        self._about_file.unlink(missing_ok=True)

    def is_cached(self) -> bool:
        """Return whether the cache has the file, unchanged since its download."""
        return self._cached() is not None

    def _cached(self) -> About | None:
        about = About.read(self._about_file)
        if about is None or self._file.is_symlink() or not self._file.is_file():
            return None
        stamp = stamp_of(self._file)
        if list(stamp) == list(about.stamp):
            return about
        # The stamp has changed: the file was damaged, copied or restored. The checksum decides.
        if stamp[0] != about.size or digest_of(self._file, "sha256") != about.digests.get("sha256"):
            return None
        about = about._replace(stamp=stamp)
        about.write(self._about_file)
        return about

    def run(self, sha256: str | None, retries: int) -> None:
        """Make the file complete and current in the cache. Raises DownloadError, OSError."""
        tries, furthest = 0, self._size()
        while True:
            try:
                about = self._request()
                break
            except _Restart:
                self._discard()
                reason, hopeless = "the server sends other parts than it is asked for", False
            except Broken as error:
                reason, hopeless = str(error), error.hopeless
            # Only a new largest size is progress: otherwise a server that changes the file on each
            # request would be asked forever.
            tries = 1 if self._size() > furthest else tries + 1
            furthest = max(furthest, self._size())
            if hopeless or tries > retries:
                raise Unreachable(f"{self._shown}: cannot be fetched: {reason}")
            time.sleep(PAUSE * 2 ** (tries - 1))
        if about is not None:
            self._finish(about, sha256)

    def _size(self) -> int:
        return self._partial.stat().st_size if is_own(self._partial) else 0

    def _discard(self) -> None:
        self._partial.unlink(missing_ok=True)
        self._about_partial.unlink(missing_ok=True)

    def _request(self) -> About | None:
        """Request and write the missing part; return None if the copy in the cache is current.

        Raises _Restart, Broken, DownloadError and, for the disk, OSError.
        """
        partial = About.read(self._about_partial)
        start = self._size() if partial is not None and partial.validator is not None else 0
        headers = {"Accept-Encoding": "identity", "User-Agent": "rwkv-core"}
        if partial is not None and partial.validator is not None and start:
            # An earlier process ended after the last byte, before the file was renamed.
            if start == partial.size:
                return partial
            headers |= {"Range": f"bytes={start}-", "If-Range": partial.validator}
        cached = self._cached()
        if cached is not None and not start:
            if cached.etag is not None:
                headers["If-None-Match"] = cached.etag
            elif cached.modified is not None:
                headers["If-Modified-Since"] = cached.modified
        try:
            response = get(self._address, headers)
        except urllib.error.HTTPError as error:
            with error:
                if error.code == 304 and cached is not None:
                    return None
                if start and error.code in (412, 416):
                    raise _Restart from None
                raise self._refusal(error) from None
        with response:
            self._check_kind(response)
            if response.status == 206:
                if not start:
                    raise _Restart
                about = self._about_part(response, partial, start)
            else:
                start, about = 0, About.of(response.headers, length_of(response))
                # A server that ignores conditions sends the whole file; it is not read again.
                if cached is not None and self._same(about, cached):
                    return None
                # Written first, so that an old part is never taken for a part of this version.
                self._discard()
                about.write(self._about_partial)
            self._take(response, start, about)
            return about

    @staticmethod
    def _same(now: About, cached: About) -> bool:
        known = now.etag is not None or now.modified is not None
        return known and now[:3] == cached[:3]

    def _refusal(self, error: urllib.error.HTTPError) -> Exception:
        said = f"{error.code} {printable(str(error.reason))}".strip()
        if error.code in _BUSY:
            return Broken(f"the server answers {said}")
        if error.code in (404, 410):
            return DownloadError(f"{self._shown}: no such file there ({said}); check the address")
        if error.code in (401, 403, 407):
            return DownloadError(
                f"{self._shown}: access refused ({said}); fetch it by hand and give its path"
            )
        return DownloadError(f"{self._shown}: cannot be fetched: the server answers {said}")

    def _check_kind(self, response: http.client.HTTPResponse) -> None:
        if response.status not in (200, 206):
            raise DownloadError(
                f"{self._shown}: the server answers {response.status}, expected a file (200)"
            )
        kind = response.headers.get_content_type()
        encoding = response.headers.get("Content-Encoding", "identity")
        if kind == "text/html":
            raise DownloadError(
                f"{self._shown}: found a web page, expected a file; give the address that the "
                "page's download link has"
            )
        if encoding != "identity":
            raise DownloadError(
                f"{self._shown}: the server packs the file ({printable(encoding)}) though asked "
                "not to; fetch it by hand and give its path"
            )

    def _about_part(
        self, response: http.client.HTTPResponse, partial: About | None, start: int
    ) -> About:
        """Return the file's description, after checking that the server sent the requested part."""
        given = response.headers.get("Content-Range", "")
        found = re.fullmatch(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18}|\*)", given)
        if partial is None or found is None or int(found[1]) != start:
            raise _Restart
        total = None if found[3] == "*" else int(found[3])
        length = length_of(response)
        if length is not None and length != int(found[2]) + 1 - start:
            raise _Restart
        now = About.of(response.headers, total)
        for was, is_now in zip(partial[:3], now[:3], strict=True):
            if was is not None and is_now is not None and was != is_now:
                raise _Restart
        return partial._replace(size=total if partial.size is None else partial.size)

    def _take(self, response: http.client.HTTPResponse, start: int, about: About) -> None:
        """Write the response's body after the first `start` bytes."""
        missing = None if about.size is None else about.size - start
        free = shutil.disk_usage(self._file.parent).free
        if missing is not None and missing > free:
            raise DownloadError(
                f"{self._shown}: needs {missing:,} bytes, {self._file.parent} has {free:,} free; "
                "free some, or name another folder with RWKV_CACHE"
            )
        from tqdm.auto import tqdm

        bar = tqdm(
            desc=self._file.name, total=about.size, initial=start, unit="B", unit_scale=True,
            disable=None,
        )  # fmt: skip
        with bar, open_own(self._partial, "ab") as file:
            file.truncate(start)
            for chunk in chunks(response):
                if about.size is not None and file.tell() + len(chunk) > about.size:
                    break
                file.write(chunk)
                bar.update(len(chunk))
            else:
                chunk = b""
            file.flush()
            os.fsync(file.fileno())
        if chunk:
            self._discard()
            raise DownloadError(
                f"{self._shown}: the server sends more than the {about.size:,} bytes that it "
                "announces: removed; fetch it by other means and give its path"
            )
        found = self._size()
        if about.size is not None and found < about.size:
            raise Broken(f"it broke off after {found:,} of {about.size:,} bytes")

    def _finish(self, about: About, sha256: str | None) -> None:
        expected = about.digests | ({"sha256": sha256} if sha256 else {})
        ours = digest_of(self._partial, "sha256")
        for algorithm, digest in expected.items():
            found = ours if algorithm == "sha256" else digest_of(self._partial, algorithm)
            if found != digest:
                self._discard()
                raise DownloadError(
                    f"{self._shown}: the download has the {algorithm} {found}, expected "
                    f"{digest}: removed; if it was damaged in transit, run it again"
                )
        size = self._size()
        # In this order: after a crash in between, no file has the description of another.
        self._partial.replace(self._file)
        about = about._replace(size=size, digests=about.digests | {"sha256": ours})
        about._replace(stamp=stamp_of(self._file)).write(self._about_file)
        self._about_partial.unlink(missing_ok=True)
