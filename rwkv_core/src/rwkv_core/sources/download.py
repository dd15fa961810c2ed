"""Fetches a file over http(s) into a cache: resumed where it broke off, never left half-written.

Done here since no client that was looked at makes sure that the parts of a resumed file are of one
version: `http_get` of huggingface_hub 2.4 resumes without If-Range and compares sizes alone, and
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
from rwkv_core.sources.cache_file import digest_of, is_own, open_own, stamp_of
from rwkv_core.sources.http_file import About, Broken, chunks, get, length_of
from rwkv_core.util.addresses import shown
from rwkv_core.util.printable import printable

RETRIES = 5
"""How often in a row a download that gets no further is tried again."""
PAUSE = 1.0
"""Seconds before the first of these; each further one waits twice as long."""
_RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\.|$)", re.IGNORECASE)
"""Names that are devices on Windows."""
_BUSY = (408, 425, 429, 500, 502, 503, 504)


def cache_folder() -> Path:
    """Where fetched files are kept: RWKV_CACHE, or rwkv-core in the user's cache folder.

    Raises DownloadError for a user without a home folder.
    """
    if named := os.environ.get("RWKV_CACHE"):
        return Path(named)
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "rwkv-core"
    except RuntimeError:
        raise DownloadError(
            "this user has no home folder to keep files in; set RWKV_CACHE to another folder"
        ) from None


def fetch(address: str, sha256: str | None = None) -> Path:
    """The path in the cache of the file at an http(s) address, fetched if it is new or changed.

    A copy in the cache is used without a question if `sha256` is given, and otherwise unless the
    server gives a newer one: also where it cannot be reached.

    Raises DownloadError if the address is of another form, the server gives no file, what arrives
    has not the length or checksum that the server or `sha256` tells, or the disk is full. What has
    arrived by then is kept beside the file, to go on from, unless its checksum is wrong.
    """
    return _fetch(address, address, sha256, RETRIES)


def fetch_beside(address: str, name: str) -> Path | None:
    """The file `name` beside the one at `address`, in the folder of the latter's copy.

    One that is in the cache is used without a question. None if the server has none or gives
    something else. Raises DownloadError for the address, Unreachable.
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
    """As `fetch`, for the file `name` that the one at `address` needs beside it."""
    return _fetch(_beside(address, name), address, None, RETRIES)


def _beside(address: str, name: str) -> str:
    parts = _split(address)
    return parts._replace(path=parts.path.rpartition("/")[0] + f"/{quote(name)}").geturl()


def _cache_name(path: str) -> str:
    """A file name that every system takes, for the last part of an address's path."""
    # What follows an encoded question mark may be a secret as much as a query may.
    last = unquote(path.rpartition("/")[2]).partition("?")[0]
    name = re.sub(r"[^A-Za-z0-9_.+-]+", "_", last)[-100:].strip(".")
    return f"file-{name}" if not name or _RESERVED.match(name) else name


def _folder(address: str) -> Path:
    return cache_folder() / hashlib.sha256(address.encode()).hexdigest()[:16]


def _fetch(address: str, at: str, sha256: str | None, retries: int) -> Path:
    """Fetch `address` into the cache folder of the address `at`."""
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
                # A copy of other content than is asked for is no substitute.
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
        # Its text may quote a part of a password.
        raise DownloadError(f"{shown(address)}: not an address: no host or port is so") from None
    if parts.username is not None or parts.password is not None:
        raise DownloadError(
            f"{shown(address)}: a name and password in an address "
            "are not supported; fetch the file by hand and give its path"
        )
    if not parts.hostname:
        raise DownloadError(f"{shown(address)}: not an address: it names no host")
    return parts


class Unreachable(DownloadError):
    """The server does not answer, or breaks off each time."""


@contextmanager
def _only_one(lock_file: Path, address: str) -> Iterator[None]:
    """Holds a lock between processes; one that has to wait says so on a terminal."""
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
    """What has arrived so far is of no use: the file has changed, or the server gives no parts."""


class _Download:
    """One file on its way into the cache, in `file.partial` until it is whole."""

    def __init__(self, address: str, file: Path) -> None:
        self._address, self._shown, self._file = address, shown(address), file
        self._partial = file.with_name(file.name + ".partial")
        self._about_file = file.with_name(file.name + ".json")
        self._about_partial = file.with_name(file.name + ".partial.json")

    def forget(self) -> None:
        """Take the copy in the cache for outdated, whatever the server says."""
        self._about_file.unlink(missing_ok=True)

    def is_cached(self) -> bool:
        """Whether the cache has the file as it arrived; a damaged one is taken for missing."""
        return self._cached() is not None

    def _cached(self) -> About | None:
        about = About.read(self._about_file)
        if about is None or self._file.is_symlink() or not self._file.is_file():
            return None
        stamp = stamp_of(self._file)
        if list(stamp) == list(about.stamp):
            return about
        # Touched since: damaged, copied or restored. The checksum tells, and is taken just once.
        if stamp[0] != about.size or digest_of(self._file, "sha256") != about.digests.get("sha256"):
            return None
        about = about._replace(stamp=stamp)
        about.write(self._about_file)
        return about

    def run(self, sha256: str | None, retries: int) -> None:
        """Leave the file whole and current in its place. Raises DownloadError, OSError."""
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
            # A size reached before is no progress: a server that changes the file each time would
            # be asked for ever.
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
        """Ask for what is missing and take it in; None if the copy in the cache is current.

        Raises _Restart, Broken, DownloadError and, for the disk, OSError.
        """
        partial = About.read(self._about_partial)
        start = self._size() if partial is not None and partial.validator is not None else 0
        headers = {"Accept-Encoding": "identity", "User-Agent": "rwkv-core"}
        if partial is not None and partial.validator is not None and start:
            # The process ended between the last byte and the file's taking its place.
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
                # A server that knows no conditions sends all of it; what is known is not read.
                if cached is not None and self._same(about, cached):
                    return None
                # First, so that what is left of another version is never taken for one of this.
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
        """The file's description, once the part given is the one that was asked for."""
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
        """Write the answer's body behind the first `start` bytes."""
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
                    f"{self._shown}: what arrived has the {algorithm} {found}, expected "
                    f"{digest}: removed; if it was damaged on the way, run it again"
                )
        size = self._size()
        # In this order: after a crash in between, the description is of no file there is.
        self._partial.replace(self._file)
        about = about._replace(size=size, digests=about.digests | {"sha256": ours})
        about._replace(stamp=stamp_of(self._file)).write(self._about_file)
        self._about_partial.unlink(missing_ok=True)
