"""Keeps the prefix cache's entries in files, for the next run.

Each entry is a safetensors file with a checksum of the values, and is written atomically. A file
that is damaged or belongs to another model is not used. A separate thread writes the files.
"""

from __future__ import annotations

import hashlib
import json
import os
import queue
import threading
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from rwkv_core.errors import StateError
from rwkv_core.serving.prefix_cache import Entry
from rwkv_core.util.atomic_write import temporary_folder

if TYPE_CHECKING:
    from rwkv_core.model import Model
    from rwkv_core.tokenizer import Tokenizer

_FORMAT = "rwkv-core prefix 1"
_SUFFIX = ".prefix"


class DiskCache:
    """The entries of one model and tokenizer, in a subfolder of `folder`."""

    def __init__(
        self, folder: str | os.PathLike[str], model: Model, tokenizer: Tokenizer, max_bytes: int
    ) -> None:
        """Make the subfolder and start the thread. Raises StateError if making the folder fails.

        `max_bytes` limits the total size of the entries that `load` reads. The total size of the
        files is reduced to this limit when the next entry is written.
        """
        self._key = _key_of(model, tokenizer)
        self._folder = Path(folder) / self._key[:32]
        self._max_bytes, self._n_vocab = max_bytes, model.n_vocab
        empty = model.to_numpy(model.empty_state())
        self._shape, self._dtype = empty.shape, empty.dtype
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StateError(f"{folder}: cannot be written: {error.strerror or error}") from error
        # The entries that the prefix cache holds too, and the files that `load` did not read, the
        # oldest first. The cache bounds the former.
        self._held_bytes, self._unread = 0, dict[Path, int]()
        self._jobs: queue.SimpleQueue[tuple[str, Entry] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(
            target=self._work, name="rwkv-core prefix files", daemon=True
        )
        self._thread.start()

    def load(self) -> list[Entry]:
        """Read the most recently written entries, up to `max_bytes`; return the oldest first.

        Damaged files are removed. Files beyond `max_bytes` stay until new entries are written.
        """
        found: list[Entry] = []
        files = self._files()
        while files and self._held_bytes + files[-1][1] <= self._max_bytes:
            path, _ = files[-1]
            entry = self._read(path)
            if entry is None:
                with suppress(OSError):
                    path.unlink()
            # An entry can be larger than its file.
            elif self._held_bytes + entry.nbytes > self._max_bytes:
                break
            else:
                self._held_bytes += entry.nbytes
                found.append(entry)
            files.pop()
        self._unread = dict(files)
        return found[::-1]

    def save(self, entry: Entry) -> None:
        """Queue an entry to be written. If writing fails, as on a full disk, the entry is left out.

        To make room, the oldest of the files that `load` did not read are removed.
        """
        self._jobs.put(("save", entry))

    def remove(self, entry: Entry) -> None:
        """Queue the removal of an entry's file."""
        self._jobs.put(("remove", entry))

    def close(self) -> None:
        """Wait until the queue is done, and end the thread."""
        self._jobs.put(None)
        self._thread.join()

    def _work(self) -> None:
        # One temporary folder for all entries: making one searches the whole cache for the
        # temporary folders of killed processes.
        with ExitStack() as until_closed:
            temporary = None
            while (job := self._jobs.get()) is not None:
                action, entry = job
                with suppress(OSError):
                    if action == "remove":
                        self._held_bytes -= entry.nbytes
                        self._path_of(entry).unlink(missing_ok=True)
                        continue
                    self._make_room(entry)
                    if temporary is None:
                        temporary = until_closed.enter_context(temporary_folder(self._folder))
                    self._write(entry, temporary / "new")

    def _make_room(self, entry: Entry) -> None:
        """Count an entry, and remove the oldest unread files beyond the bound."""
        self._held_bytes += entry.nbytes
        self._unread.pop(self._path_of(entry), None)
        unread_bytes = sum(self._unread.values())
        while self._unread and self._held_bytes + unread_bytes > self._max_bytes:
            path = next(iter(self._unread))
            unread_bytes -= self._unread.pop(path)
            path.unlink(missing_ok=True)

    def _files(self) -> list[tuple[Path, int]]:
        """Return the files and their sizes in bytes, the most recently written last."""
        dated = []
        for path in self._folder.glob(f"*{_SUFFIX}"):
            with suppress(OSError):
                found = path.stat()
                dated.append((found.st_mtime_ns, path, found.st_size))
        return [(path, size) for _, path, size in sorted(dated)]

    def _path_of(self, entry: Entry) -> Path:
        name = hashlib.sha256(entry.root + entry.tokens.astype("<i8").tobytes()).hexdigest()[:40]
        return self._folder / f"{name}{_SUFFIX}"

    def _write(self, entry: Entry, beside: Path) -> None:
        from safetensors.numpy import save

        tensors = {"tokens": entry.tokens, "state": entry.state, "logits": entry.logits}
        about = {
            "format": _FORMAT,
            "key": self._key,
            "root": entry.root.hex(),
            "sha256": _checksum(entry.root, tensors),
        }
        beside.write_bytes(save(tensors, about))
        beside.replace(self._path_of(entry))

    def _read(self, path: Path) -> Entry | None:
        """Return the entry in a file; None if the file is damaged or of another model."""
        from safetensors import SafetensorError
        from safetensors.numpy import load

        try:
            data = path.read_bytes()
            length = int.from_bytes(data[:8], "little")
            about = json.loads(data[8 : 8 + length])["__metadata__"]
            tensors = load(data)
            root = bytes.fromhex(about["root"])
            entry = Entry(root, tensors["tokens"], tensors["state"], tensors["logits"])
            is_whole = about["sha256"] == _checksum(root, tensors)
            if not is_whole or (about["format"], about["key"]) != (_FORMAT, self._key):
                return None
        except (OSError, SafetensorError, ValueError, KeyError, TypeError, RecursionError):
            return None
        return entry if self._fits(entry) and self._path_of(entry) == path else None

    def _fits(self, entry: Entry) -> bool:
        found = [(array.shape, array.dtype.name) for array in (entry.state, entry.logits)]
        fits = [(self._shape, self._dtype.name), ((self._n_vocab,), "float32")]
        return found == fits and (entry.tokens.ndim, entry.tokens.dtype.name) == (1, "int64")


def _checksum(root: bytes, tensors: dict[str, NDArray[Any]]) -> str:
    digest = hashlib.sha256(root)
    for name in ("tokens", "state", "logits"):
        digest.update(np.ascontiguousarray(tensors[name]).tobytes())
    return digest.hexdigest()


def _key_of(model: Model, tokenizer: Tokenizer) -> str:
    """Return a digest of the model, how the backend computes it, and the tokenizer's vocabulary."""
    ops = model.ops
    sizes = sorted(model.config.sizes.items())
    about = [model.fingerprint, model.architecture, model.backend, ops.dtype, ops.runtime_dtype]
    # The fingerprint of a quantized model is that of the original. An option may quantize too.
    about += [model.quantization, repr(sorted(model.options.items()))]
    digest = hashlib.sha256(json.dumps([_FORMAT, about, sizes]).encode())
    for token in range(tokenizer.n_vocab):
        digest.update(len(tokenizer.token_bytes(token)).to_bytes(4, "little"))
        digest.update(tokenizer.token_bytes(token))
    return digest.hexdigest()
