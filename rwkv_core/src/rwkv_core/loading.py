"""Loads a model file onto a backend, one tensor at a time."""

from __future__ import annotations

import hashlib
import math
import os
import traceback
from collections.abc import Callable
from concurrent.futures import Executor, ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rwkv_core import plugins
from rwkv_core.architectures import rwkv4
from rwkv_core.backends.tensor_ops import TensorOps
from rwkv_core.checkpoint import Checkpoint, diagnose
from rwkv_core.checkpoint.dtype_range import check_range
from rwkv_core.checkpoint.validation import check_tensor
from rwkv_core.config import Shape
from rwkv_core.model import Model, OnCount
from rwkv_core.model_file import open_model
from rwkv_core.util import forks
from rwkv_core.util.addresses import scheme_of
from rwkv_core.util.malloc import keep_freed_memory

# Channels of a larger time_decay forget each token at once, as exp(-exp(40)) is 0 in every type.
# From 89 on, exp(time_decay) would be infinite in float32, and 0 times that NaN.
LARGEST_TIME_DECAY = 40.0


def load(
    model: str | os.PathLike[str],
    backend: str | None = None,
    on_progress: OnCount | None = None,
    lora: str | os.PathLike[str] | None = None,
    lora_alpha: float | None = None,
    **options: Any,
) -> Model:
    """Load a model file onto a backend.

    Arguments:
        model: a checkpoint (.pth, .pqth, .safetensors, rwkv.cpp .bin: told from the content): its
            path, its address (hf://owner/repo/file, http or https), or "prose" for the small model
            that ships with rwkv-core.
        backend: a name from `list_backends()`; None takes the best one ready on this machine for
            a model of this size, and with a warning the next one where that fails to start.
        on_progress: called with the bytes read so far and in all, after each tensor.
        lora: LoRA weights to merge into the model: a file of RWKV-LM-LoRA's, or PEFT's file or
            folder.
        lora_alpha: the alpha that they were trained with; PEFT keeps it in adapter_config.json,
            RWKV-LM-LoRA's file does not hold it. Without `lora` it merges the LoRA weights in the
            model's own file.
        options: the backend's own, such as dtype="bfloat16"; `list_backends()` describes them.

    Raises CheckpointError for the file, BackendError for the backend, OptionError for an option.
    """
    try:
        # The caller's np.seterr is for the caller's own arithmetic.
        with np.errstate(all="ignore"):
            return _load(model, backend, on_progress, lora, lora_alpha, options)
    except BaseException as error:
        # Whoever keeps the error would keep what its frames hold: the matrices loaded so far.
        traceback.clear_frames(error.__traceback__)
        raise


def _load(
    model: str | os.PathLike[str],
    backend: str | None,
    on_progress: OnCount | None,
    lora: str | os.PathLike[str] | None,
    lora_alpha: float | None,
    options: dict[str, Any],
) -> Model:
    if isinstance(model, str) and scheme_of(model):
        # Before gigabytes are fetched.
        plugins.check_backend(backend, options)
    keep_freed_memory()
    with open_model(model, lora, lora_alpha) as checkpoint, ThreadPoolExecutor(1) as pool:
        shape = diagnose(checkpoint)
        name, ops = plugins.start_backend(backend, options, sum(_sizes(checkpoint).values()))
        forks.check_threads(ops.threaded_library)
        forks.note_use(ops.threaded_library)
        ops.prepare(shape)
        reader = _Reader(checkpoint, ops, on_progress, pool)
        return Model(
            path=checkpoint.path,
            backend=name,
            ops=ops,
            shape=shape,
            fingerprint=fingerprint_of(checkpoint, shape),
            table=reader.embedding(),
            parameters=reader.parameters(shape.n_layer),
        )


def _sizes(checkpoint: Checkpoint) -> dict[str, int]:
    """Return the bytes of each tensor."""
    return {
        name: tensor.dtype.itemsize * math.prod(tensor.shape)
        for name, tensor in checkpoint.tensors.items()
    }


class _Reader:
    """Hands the tensors of a checkpoint to a backend, one at a time.

    With `map`, as a comprehension over `self` would keep it, and the matrices, in the traceback of
    an error.
    """

    def __init__(
        self, checkpoint: Checkpoint, ops: TensorOps, on_progress: OnCount | None, pool: Executor
    ) -> None:
        self._checkpoint, self._ops, self._on_progress = checkpoint, ops, on_progress
        self._pool = pool
        self._sizes = _sizes(checkpoint)
        self._total, self._done = sum(self._sizes.values()), 0

    def _made(self, name: str, make: Callable[[NDArray[Any]], Any], dtype: str) -> Any:
        """What `make` makes of a tensor, which another thread looks through meanwhile."""
        array = self._checkpoint.read(name)
        checked = self._pool.submit(self._check, name, array, dtype)
        try:
            made = make(array)
        finally:
            # Of an error here and one that NaN has caused in the backend, this one is raised.
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

    def embedding(self) -> Any:
        return self._made("emb.weight", self._ops.embedding, self._ops.runtime_dtype)

    def row(self, name: str) -> NDArray[Any]:
        """A tensor as one row. The doctor has looked it through."""
        array = self._checkpoint.read(name).reshape(-1)
        self._count(name)
        return array

    def vector(self, name: str) -> Any:
        row = self.row(name)
        check_range(f"{name} of {self._checkpoint.path}", row, self._ops.runtime_dtype)
        return self._ops.vector(row)

    def matrix(self, name: str) -> Any:
        name += ".weight"
        quantized = self._checkpoint.read_quantized(name)
        if quantized is None:
            return self._made(name, self._ops.matrix, self._ops.dtype)
        for part in (quantized.scales, quantized.offsets, quantized.largest()):
            self._check(name, part, self._ops.dtype)
        self._count(name)
        return self._ops.quantized_matrix(quantized)

    def layer_norm(self, name: str) -> rwkv4.LayerNorm:
        return rwkv4.LayerNorm(self.vector(name + ".weight"), self.vector(name + ".bias"))

    def block(self, prefix: str) -> rwkv4.Block:
        att, ffn = prefix + "att.", prefix + "ffn."
        # In float64, so that a float64 backend gets the decay to its own precision.
        raw = self.row(att + "time_decay").astype(np.float64)
        decay = -np.exp(np.minimum(raw, LARGEST_TIME_DECAY))
        time = [
            *map(self.vector, [f"{att}time_mix_{name}" for name in "kvr"]),
            self._ops.vector(decay),
            self.vector(att + "time_first"),
            *map(self.matrix, [att + name for name in ("key", "value", "receptance", "output")]),
        ]
        channel = [
            *map(self.vector, [f"{ffn}time_mix_{name}" for name in "kr"]),
            *map(self.matrix, [ffn + name for name in ("key", "receptance", "value")]),
        ]
        return rwkv4.Block(
            self.layer_norm(prefix + "ln1"),
            rwkv4.TimeMixing._make(time),
            self.layer_norm(prefix + "ln2"),
            rwkv4.ChannelMixing._make(channel),
        )

    def parameters(self, n_layer: int) -> rwkv4.Parameters:
        return rwkv4.Parameters(
            self.layer_norm("blocks.0.ln0"),
            tuple(map(self.block, [f"blocks.{i}." for i in range(n_layer)])),
            self.layer_norm("ln_out"),
            self.matrix("head"),
        )


def fingerprint_of(checkpoint: Checkpoint, shape: Shape) -> str:
    """Sixteen hex digits over a sample of every tensor's values, whatever kind of file holds them.

    Without time_decay, which rwkv.cpp's files hold in another form, equal but for rounding. A
    prequantized file has that of the model it was made from.
    """
    if checkpoint.fingerprint is not None:
        return checkpoint.fingerprint
    digest = hashlib.sha256(repr(tuple(shape)).encode())
    for name in sorted(checkpoint.tensors):
        if not name.endswith("time_decay"):
            digest.update(checkpoint.sample(name).astype("<f4").tobytes())
    return digest.hexdigest()[:16]
