"""Files on the Hugging Face hub, downloaded by huggingface_hub into its own cache."""

from __future__ import annotations

import os
import queue
import re
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import unquote, urlsplit

from rwkv_core.errors import DownloadError
from rwkv_core.sources.cache_file import digest_of
from rwkv_core.util.addresses import shown
from rwkv_core.util.printable import one_line

if TYPE_CHECKING:
    from huggingface_hub import HfFileMetadata

_HOSTS = ("huggingface.co", "www.huggingface.co", "hf.co")
_EXPECTED = "expected hf://owner/repo/file or hf://owner/repo@revision/file"
# Revisions with a slash that the hub's own addresses do not encode.
_REVISION = r"(refs/(?:pr|convert)/[^/]+|[^/]+)"
_HF = re.compile(rf"([^/@]+/[^/@]+)(?:@{_REVISION})?/(.+)")
_PAGE = re.compile(rf"([^/]+/[^/]+)/(?:resolve|blob|raw)/{_REVISION}/(.+)")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_ETAG = re.compile(r"[0-9A-Fa-f]{32,128}")
TIMEOUT = 3.5
"""Seconds to wait for the hub's description of a file."""
_REMEMBER = 10.0
_silent: dict[str, float] = {}
"""When each hub last gave no answer in time; for the next 10 s it is not asked again."""
# Characters and parts that git does not allow in a name.
_NO_REVISION = re.compile(r"[ ~^:?*\[]|\.\.|@\{|\.lock(/|$)|(^|/)\.")
_LOG_IN = "log in with `hf auth login`, or set HF_TOKEN"


class HubFile(NamedTuple):
    """A file in a model repository. `folder` is a cache to use instead of the client's own."""

    repo: str
    path: str
    revision: str = "main"
    folder: Path | None = None

    def beside(self, name: str) -> HubFile:
        """Return the file `name` in the same folder."""
        return self._replace(path="/".join([*self.path.split("/")[:-1], name]))

    def __str__(self) -> str:
        return shown(f"hf://{self.repo}@{self.revision}/{self.path}")


class NotInRepository(DownloadError):
    """The repository exists, but the file is not in it."""


class Unreachable(DownloadError):
    """The hub does not answer."""


def parse(address: str) -> HubFile | None:
    """Return the file that an address names; None if it is not an address of the hub.

    Raises DownloadError for an address of the hub that names no file of a model repository.
    """
    if address[:5].lower() == "hf://":
        if "?" in unquote(address):
            raise DownloadError(
                f"{shown(address)}: an hf:// address has no query; {_EXPECTED}, and {_LOG_IN}"
            )
        found = _HF.fullmatch(address[5:])
        if not found or found[1].startswith(("datasets/", "spaces/")):
            raise DownloadError(f"{shown(address)}: {_EXPECTED}")
        return _checked(address, HubFile(found[1], found[3], unquote(found[2] or "main")))
    path = _path_on_hub(address)
    if path is None:
        return None
    found = _PAGE.fullmatch(path)
    if not found:
        raise DownloadError(f"{shown(address)}: names no file of a model repository; {_EXPECTED}")
    return _checked(address, HubFile(unquote(found[1]), unquote(found[3]), unquote(found[2])))


def _checked(address: str, place: HubFile) -> HubFile:
    """Return `place`, after checking that no part of it leads outside the client's cache."""
    # Decoded a second time too, as some servers and proxies do.
    parts = (place.repo, place.path, unquote(place.repo), unquote(place.path))
    if place.repo.count("/") != 1 or any(map(_leaves, parts)):
        raise DownloadError(f"{shown(address)}: names no file of a model repository; {_EXPECTED}")
    if _leaves(place.revision) or _NO_REVISION.search(place.revision):
        raise DownloadError(f"{shown(address)}: no revision has such a name; {_EXPECTED}")
    return place


def _leaves(path: str) -> bool:
    """Return whether a path may lead outside its folder, on any system."""
    odd = any(not one.isprintable() for one in path) or "\\" in path
    drive = re.search(r"(^|/)[A-Za-z]:", path)
    return odd or bool(drive) or not {"", ".", ".."}.isdisjoint(path.split("/"))


def _endpoint() -> str:
    # Read now; the client reads the variable when it is imported.
    return os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")


def _path_on_hub(address: str) -> str | None:
    """Return the part of `address` after the hub's address, without a query; None if elsewhere."""
    bare = address.partition("?")[0]
    if bare.startswith(_endpoint() + "/"):
        return bare.removeprefix(_endpoint() + "/")
    try:
        parts = urlsplit(bare)
    except ValueError:
        return None
    return parts.path[1:] if parts.netloc.lower() in _HOSTS else None


def fetch(place: HubFile, sha256: str | None = None) -> Path:
    """Return the file's path in the hub client's cache; download it if it is new or changed.

    A download is checked against the hub's own checksum, and every file against `sha256` if given.
    If the hub cannot be reached, the revision's copy in the cache is used.

    Raises DownloadError, and its subclasses NotInRepository and Unreachable.
    """
    try:
        before, path = _fetch(place)
    except DownloadError:
        raise
    # The client also raises errors of its HTTP library, of Xet and of the disk, without a common
    # base class.
    except Exception as error:
        raise _explained(place, error) from None
    if before is None or before.resolve() != path.resolve():
        _check(place, path)
    if sha256 and digest_of(path, "sha256") != sha256:
        raise DownloadError(f"{place}: its SHA-256 is not the {sha256} that the address gives")
    return path


def _fetch(place: HubFile) -> tuple[Path | None, Path]:
    """Return the file's path in the cache before the download (None: not there), and after it."""
    from huggingface_hub import hf_hub_download, try_to_load_from_cache

    repo, path, revision, folder = place
    before = try_to_load_from_cache(repo, path, folder, revision)
    if not (isinstance(before, str) and _COMMIT.fullmatch(revision)):
        unreachable = _check_names(place)
        # The client would retry for half a minute and print lines of its own.
        if unreachable is not None:
            if not isinstance(before, str):
                raise Unreachable(
                    f"{place}: is not in the hub's cache, and {_endpoint()} cannot be reached: "
                    f"{one_line(unreachable)}"
                )
            return Path(before), Path(before)
    now = hf_hub_download(
        repo, path, revision=revision, cache_dir=folder, endpoint=_endpoint(),
        library_name="rwkv-core",
    )  # fmt: skip
    return (Path(before) if isinstance(before, str) else None), Path(now)


def _check_names(place: HubFile) -> Exception | None:
    """Raise DownloadError unless the commit and ETag in the hub's answer are hex digests.

    The client uses them unchecked as file names in its cache. Returns the error if the hub cannot
    be reached, else None.
    """
    from huggingface_hub import hf_hub_url
    from huggingface_hub.errors import OfflineModeIsEnabled

    url = hf_hub_url(place.repo, place.path, revision=place.revision, endpoint=_endpoint())
    try:
        about = _describe(url)
    # For an error status of the hub, the client will ask again, and knows the cache.
    except Exception as error:
        answered = getattr(error, "response", None) is not None
        return None if answered or isinstance(error, OfflineModeIsEnabled) else error
    if about.commit_hash is not None and not _COMMIT.fullmatch(about.commit_hash):
        raise DownloadError(f"{place}: {_endpoint()} gives no commit of 40 hex digits")
    if about.etag is not None and not _ETAG.fullmatch(about.etag):
        raise DownloadError(f"{place}: {_endpoint()} gives an ETag that is no hex digest")
    return None


def _describe(url: str) -> HfFileMetadata:
    """Return the hub's description of a file. Raises TimeoutError after `TIMEOUT`.

    huggingface_hub has a timeout of its own, but it does not include the time for resolving the
    hub's host name. Nor does it include the client's first request in a process, which may wait 3 s
    for a list of the programs that use the client.
    """
    from huggingface_hub import get_hf_file_metadata

    endpoint = _endpoint()
    answers: queue.SimpleQueue[HfFileMetadata | Exception] = queue.SimpleQueue()
    unanswered = TimeoutError(f"no answer within {TIMEOUT} s")
    if time.monotonic() < _silent.get(endpoint, -_REMEMBER) + _REMEMBER:
        raise unanswered

    def ask() -> None:
        try:
            answers.put(get_hf_file_metadata(url, timeout=TIMEOUT))
        except Exception as error:
            answers.put(error)

    threading.Thread(target=ask, daemon=True).start()
    try:
        answer = answers.get(timeout=TIMEOUT)
    except queue.Empty:
        _silent[endpoint] = time.monotonic()
        raise unanswered from None
    if isinstance(answer, Exception):
        raise answer
    return answer


def _check(place: HubFile, path: Path) -> None:
    """Raise DownloadError, and remove the file, unless its content has the hub's checksum.

    The client compares only sizes. In its cache `path` is a link to a file whose name is the hub's
    ETag: the SHA-256 of a large file, git's SHA-1 of a small one.
    """
    if not path.is_symlink():
        return
    blob = path.parent / path.readlink()
    prefix = b"blob %d\0" % blob.stat().st_size
    if re.fullmatch(r"[0-9a-f]{64}", blob.name):
        sound = digest_of(blob, "sha256") == blob.name
    elif re.fullmatch(r"[0-9a-f]{40}", blob.name):
        sound = digest_of(blob, "sha1", prefix) == blob.name
    else:
        return
    if not sound:
        path.unlink(missing_ok=True)
        blob.unlink(missing_ok=True)
        raise DownloadError(
            f"{place}: the download does not have the hub's checksum ({blob.name}): "
            "damaged, and removed; run it again"
        )


def _explained(place: HubFile, error: Exception) -> DownloadError:
    """Return the client's error as a DownloadError of one line."""
    from huggingface_hub import constants, errors

    repo, path, revision, folder = place
    # The client wraps a connection error in an error that the file is not in the cache.
    wrapped = isinstance(error, errors.LocalEntryNotFoundError)
    cause = (wrapped and error.__cause__) or error
    status = getattr(getattr(cause, "response", None), "status_code", None)
    match cause:
        case errors.GatedRepoError():
            return DownloadError(
                f"{place}: gated: accept its terms at {_endpoint()}/{repo}, then {_LOG_IN}"
            )
        case errors.RepositoryNotFoundError():
            return DownloadError(
                f"{place}: no repository {repo}, or a private one; check the name, or {_LOG_IN}"
            )
        case errors.RevisionNotFoundError():
            return DownloadError(f"{place}: {repo} has no revision {revision}")
        case errors.OfflineModeIsEnabled():
            return DownloadError(f"{place}: is not in the hub's cache, and HF_HUB_OFFLINE is set")
        case errors.EntryNotFoundError() if not wrapped:
            return NotInRepository(
                f"{place}: {repo} has no file {path} at revision {revision}; "
                f"{_endpoint()}/{repo}/tree/{revision} lists them"
            )
        case _ if status in (401, 403):
            return DownloadError(f"{place}: access refused ({status}); {_LOG_IN}")
        case _ if status:
            return DownloadError(f"{place}: cannot be fetched: {_endpoint()} answers {status}")
        case RuntimeError() if constants.HF_HUB_CACHE.startswith("~"):
            return DownloadError(
                f"{place}: this user has no home folder; set HF_HOME to another folder"
            )
        case OSError(strerror=str(reason)):
            where = folder or constants.HF_HUB_CACHE
            return DownloadError(
                f"{place}: cannot be kept in {where}: {reason}; HF_HOME names another folder"
            )
        case OSError() if str(error).startswith("Consistency check failed"):
            return DownloadError(
                f"{place}: the download does not have the size that the hub gives; run it again"
            )
    if wrapped:
        return DownloadError(
            f"{place}: is not in the hub's cache, and {_endpoint()} cannot be reached: "
            f"{one_line(cause)}"
        )
    return DownloadError(f"{place}: {one_line(error)}")


def beside(path: Path, name: str) -> Path | None:
    """Download the file `name` beside `path`, a file in a hub client's cache, in the same commit.

    Returns its path; None if there is no such file, or `path` is not in such a cache. Raises
    DownloadError if the hub cannot be reached.
    """
    cached = _cached(path)
    if cached is None:
        return None
    place = cached.beside(name)
    from huggingface_hub import _CACHED_NO_EXIST, try_to_load_from_cache

    known = try_to_load_from_cache(place.repo, place.path, place.folder, place.revision)
    if known is _CACHED_NO_EXIST:
        return None
    try:
        return fetch(place)
    except NotInRepository:
        return None


def _cached(path: Path) -> HubFile | None:
    """Return the hub's file for `path` in a client's cache; None for another path.

    The client's documentation describes paths in its cache:
    CACHE/models--OWNER--REPO/snapshots/COMMIT/PATH.
    """
    found = re.fullmatch(
        r"(.*)/models--([^/]+?)--([^/]+)/snapshots/([0-9a-f]{40})/(.+)", path.absolute().as_posix()
    )
    if not found:
        return None
    folder, owner, repo, commit, inside = found.groups()
    return HubFile(f"{owner}/{repo}", inside, commit, Path(folder))
