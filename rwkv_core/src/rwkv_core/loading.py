"""Loads a model file onto a backend, one tensor at a time."""

from __future__ import annotations

import math
import os
import traceback
from collections.abc import Callable
from concurrent.futures import Executor, ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rwkv_core import plugins
from rwkv_core.backends.tensor_ops import TensorOps
from rwkv_core.checkpoint import Checkpoint, diagnose
from rwkv_core.checkpoint.dtype_range import check_range
from rwkv_core.checkpoint.fingerprint import fingerprint_of
from rwkv_core.checkpoint.lora import Lora
from rwkv_core.checkpoint.validation import check_tensor
from rwkv_core.model import Model
from rwkv_core.model_file import known_versions, open_model
from rwkv_core.util import forks
from rwkv_core.util.addresses import scheme_of
from rwkv_core.util.malloc import keep_freed_memory
from rwkv_core.util.progress import OnProgress
from rwkv_core.weights import Weight


def load(
    model: str | os.PathLike[str],
    backend: str | None = None,
    on_progress: OnProgress | None = None,
    lora: Lora | str | os.PathLike[str] | None = None,
    **options: Any,
) -> Model:
    """Load a model file onto a backend.

    Arguments:
        model: a path, an address (hf://owner/repo/file or http(s)://...), or the name of a small
            bundled model: "prose" or "prose7". The file may be .pth, .pqth, .safetensors, .gguf or
            rwkv.cpp's .bin, and is recognized by its content.
        backend: a name from `list_backends()`. None takes the fastest available backend for a model
            of this size that has these options. If this backend fails to start, the next one is
            used, with a warning.
        on_progress: called with the bytes read so far and in all, after each tensor.
        lora: LoRA weights to merge into the model; a path stands for `Lora(path)`.
        options: the backend's options, such as dtype="bfloat16"; `list_backends()` describes them.

    Raises CheckpointError if the file is damaged or not a supported model, DownloadError if an
    address cannot be downloaded, BackendError if the backend is unknown or cannot start, and
    OptionError for a wrong option.
    """
    try:
        # The caller's np.seterr must not affect this code.
        with np.errstate(all="ignore"):
            return _load(model, backend, on_progress, lora, options)
    except BaseException as error:
        # A traceback's frames would keep the matrices loaded so far in memory.
        traceback.clear_frames(error.__traceback__)
        raise


def _load(
    model: str | os.PathLike[str],
    backend: str | None,
    on_progress: OnProgress | None,
    lora: Lora | str | os.PathLike[str] | None,
    options: dict[str, Any],
) -> Model:
    if isinstance(model, str) and scheme_of(model):
        # Checked before gigabytes are downloaded.
        plugins.check_backend(backend, options)
    keep_freed_memory()
    with open_model(model, lora) as checkpoint, ThreadPoolExecutor(1) as pool:
        config = diagnose(checkpoint, known_versions())
        name, ops = plugins.start_backend(backend, options, sum(_sizes(checkpoint).values()))
        forks.check_threads(ops.threaded_library)
        forks.note_use(ops.threaded_library)
        ops.prepare(list(config.weights().values()))
        reader = _Reader(checkpoint, ops, on_progress, pool)
        return Model(
            path=checkpoint.path,
            backend=name,
            ops=ops,
            config=config,
            fingerprint=fingerprint_of(checkpoint, config),
            table=reader.read(config.architecture.embedding),
            parameters=config.parameters(reader.read),
            quantization=", ".join(sorted(reader.quantizations)),
            options=dict(options),
        )


def _sizes(checkpoint: Checkpoint) -> dict[str, int]:
    """Return the bytes of each tensor."""
    return {
        name: tensor.dtype.itemsize * math.prod(tensor.shape)
        for name, tensor in checkpoint.tensors.items()
    }


class _Reader:
    """Reads the tensors of a checkpoint and gives them to a backend, one at a time.

    Attributes:
        quantizations: dtype and group size of the quantized matrices read so far: "int4 of 64".
    """

    def __init__(
        self, checkpoint: Checkpoint, ops: TensorOps, on_progress: OnProgress | None, pool: Executor
    ) -> None:
        self._checkpoint, self._ops, self._on_progress = checkpoint, ops, on_progress
        self._pool = pool
        self.quantizations: set[str] = set()
        self._sizes = _sizes(checkpoint)
        self._total, self._done = sum(self._sizes.values()), 0

    def _made(self, name: str, make: Callable[[NDArray[Any]], Any], dtype: str) -> Any:
        """Return `make(tensor)`, while another thread checks the tensor's values."""
        array = self._checkpoint.read(name)
        checked = self._pool.submit(self._check, name, array, dtype)
        try:
            made = make(array)
        finally:
            # This error comes before an error of the backend, which NaN may have caused.
            checked.result()
        self._count(name)
        return made

    def _check(self, name: str, array: NDArray[Any], dtype: str) -> None:
        check_tensor(self._checkpoint, name, array)
        check_range(f"{name} of {self._checkpoint.path}", array, dtype)

    def _count(self, name: str) -> None:
        self._done += self._sizes[name]
        if self._on_progress:
            self._on_progress(self._done, self._total)

    def read(self, weight: Weight) -> Any:
        """Return the tensor in the backend's form for its role."""
        make = {
            "table": self._table,
            "matrix": self._matrix,
            "low_rank": self._low_rank,
            "vector": self._vector,
        }
        return make[weight.role](weight)

    def _table(self, weight: Weight) -> Any:
        return self._made(weight.name, self._ops.embedding, self._ops.runtime_dtype)

    def _matrix(self, weight: Weight) -> Any:
        name = weight.name
        quantized = self._checkpoint.read_quantized(name)
        if quantized is None:
            return self._made(name, self._ops.matrix, self._ops.dtype)
        self.quantizations.add(f"{quantized.dtype} of {quantized.group_size}")
        for part in (quantized.scales, quantized.offsets, quantized.largest()):
            self._check(name, part, self._ops.dtype)
        self._count(name)
        return self._ops.quantized_matrix(quantized)

    def _low_rank(self, weight: Weight) -> Any:
        """Return the backend's matrix [out, in]; a tuple if the tensor holds several."""
        make = self._ops.low_rank_matrix
        if len(weight.shape) == 2:
            return self._made(weight.name, lambda array: make(array.T), self._ops.dtype)
        return self._made(
            weight.name, lambda array: tuple(make(one.T) for one in array), self._ops.dtype
        )

    def _vector(self, weight: Weight) -> Any:
        """Return the backend's vector, flattened. `diagnose` has checked its values."""
        row = self._checkpoint.read(weight.name).reshape(-1)
        if weight.transform is not None:
            # In float64, so that a float64 backend gets full precision.
            row = weight.transform(row.astype(np.float64))
        row = np.repeat(row, weight.repeat)
        check_range(f"{weight.name} of {self._checkpoint.path}", row, self._ops.runtime_dtype)
        self._count(weight.name)
        return self._ops.vector(row)
