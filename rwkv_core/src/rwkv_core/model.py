"""Model: parameters on a device; tokens and a state in, logits and the next state out."""

from __future__ import annotations

import hashlib
import math
import os
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rwkv_core import plugins
from rwkv_core import state as state_file
from rwkv_core.architectures import rwkv4
from rwkv_core.backends.tensor_ops import TensorOps
from rwkv_core.checkpoint import Checkpoint, diagnose
from rwkv_core.checkpoint.dtype_range import check_range
from rwkv_core.checkpoint.validation import Shape, check_tensor
from rwkv_core.errors import OptionError, StateError
from rwkv_core.loading import open_model
from rwkv_core.state import State, kind_of, short_repr
from rwkv_core.util import forks
from rwkv_core.util.malloc import keep_freed_memory

# Channels of a larger time_decay forget each token at once, as exp(-exp(40)) is 0 in every type.
# From 89 on, exp(time_decay) would be infinite in float32, and 0 times that NaN.
LARGEST_TIME_DECAY = 40.0

Tokens = Sequence[int] | Sequence[Sequence[int]] | NDArray[np.integer[Any]]
OnCount = Callable[[int, int], object]


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
    # Before anything is fetched.
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


class Model:
    """An RWKV-4 model on a backend; `load` makes one. It holds no running state.

    Attributes:
        n_layer, n_embd, n_vocab: the model's dimensions.
        backend, device: where it runs.
        path: the file it came from.
        fingerprint: 16 hex digits that saved states carry; the same on every backend.
        ops: the backend's TensorOps.
    """

    def __init__(
        self,
        path: Path,
        backend: str,
        ops: TensorOps,
        shape: Shape,
        fingerprint: str,
        table: Any,
        parameters: rwkv4.Parameters,
    ) -> None:
        self.path, self.backend, self.ops, self.fingerprint = path, backend, ops, fingerprint
        self.n_layer, self.n_embd, self.n_vocab = shape.n_layer, shape.n_embd, shape.n_vocab
        self.device = ops.device
        self._table, self._parameters = table, parameters
        self._kind = kind_of(self.empty_state().array)
        self._all_logits = ops.compile(partial(rwkv4.all_logits, ops))
        self._last_logits = ops.compile(partial(rwkv4.last_logits, ops))

    def __repr__(self) -> str:
        return (
            f"Model({short_repr(self.path.name)}: {self.n_layer} layers, {self.n_embd} wide, "
            f"{self.n_vocab} tokens; {self.backend} on {self.device:.40})"
        )

    @np.errstate(all="ignore")
    def forward(
        self,
        tokens: Tokens,
        state: State | None = None,
        all_logits: bool = False,
        on_progress: OnCount | None = None,
    ) -> tuple[Any, State]:
        """Read tokens, continuing from `state` (None: from nothing).

        Arguments:
            tokens: T token numbers, or B rows of T each, with T >= 1.
            state: a single state for single tokens, a batch of B for rows.
            all_logits: logits after every token and not only after the last.
            on_progress: called with the tokens read so far and in all, at 0 and after each chunk.

        Returns logits, float32 arrays of the backend: [V], with all_logits [T, V], and with a
        leading B for rows; and the state after the last token, with the last token's logits.
        Raises OptionError for unusable tokens, StateError for a state that does not fit.
        """
        rows = self._rows(tokens)
        single = rows.ndim == 1
        if state is None:
            state = self.empty_state(None if single else rows.shape[0])
        self.check_state(state, None if single else rows.shape[0])
        xp = self.ops.xp
        array = state.array
        if single:
            rows, array = rows[None], xp.expand_dims(array, axis=0)
        run = self._all_logits if all_logits else self._last_logits
        pieces, start, total = [], 0, rows.shape[1]
        if on_progress is not None:
            on_progress(0, total)
        for length in self.ops.chunks(total):
            x = self.ops.embed(self._table, rows[:, start : start + length])
            logits, array = run(self._parameters, x, array)
            pieces.append(logits)
            start += length
            if on_progress is not None:
                self.ops.to_numpy(logits[:, -1, :])  # waits for what is computed in the background
                on_progress(start, total)
        logits = pieces[-1] if len(pieces) == 1 or not all_logits else xp.concat(pieces, axis=1)
        logits = xp.astype(logits, xp.float32, copy=False)
        if single:
            logits, array = logits[0, ...], array[0, ...]
        last = logits[..., -1, :]
        # A copy for the state: the caller may change the logits, or keep them for long.
        after = State(array, xp.asarray(last, copy=True), model=self.fingerprint)
        return (logits if all_logits else last), after

    def _rows(self, tokens: Tokens) -> NDArray[np.int64]:
        try:
            rows = np.asarray(tokens)
        except ValueError:
            raise OptionError("tokens: rows of one batch must have equal lengths") from None
        if rows.ndim not in (1, 2) or rows.size == 0:
            raise OptionError(
                f"tokens: found an array of shape {list(rows.shape)}, expected at least one token "
                "as [T], or rows of equal length as [B, T]"
            )
        if rows.dtype.kind not in "iu":
            raise OptionError(f"tokens: found {rows.dtype} values, expected whole numbers")
        low, high = int(rows.min()), int(rows.max())
        if low < 0 or high >= self.n_vocab:
            raise OptionError(
                f"tokens: found {low if low < 0 else high}, expected 0 to {self.n_vocab - 1}: "
                "is this the tokenizer that the model was trained with?"
            )
        return rows.astype(np.int64)

    def to_numpy(self, array: Any) -> NDArray[Any]:
        """A copy of an array of this model's (logits, a state) as NumPy, of its shape and dtype."""
        return np.array(self.ops.to_numpy(array.array if isinstance(array, State) else array))

    def empty_state(self, n_batch: int | None = None) -> State:
        """The state of having read nothing; of `n_batch` sequences if given."""
        forks.check_threads(self.ops.threaded_library)
        array = np.zeros((self.n_layer, rwkv4.STATE_ROWS, self.n_embd))
        array[:, rwkv4.PP] = rwkv4.EMPTY_PP
        if n_batch is not None:
            array = np.tile(array, (n_batch, 1, 1, 1))
        return State(self.ops.vector(array), model=self.fingerprint)

    def check_state(self, state: State, n_batch: int | None = None) -> None:
        """Raise StateError unless `state` fits this model, as a batch of `n_batch` if given."""
        forks.check_threads(self.ops.threaded_library)
        if not isinstance(state, State):
            raise StateError(f"state: found a {type(state).__name__}, expected a State or None")
        if state.model not in ("", self.fingerprint):
            raise StateError(
                f"state: found one of model {state.model}, this model is {self.fingerprint}"
            )
        if kind_of(state.array) != self._kind:
            raise StateError(
                f"state: found an array of {kind_of(state.array)}, expected {self._kind}: to carry "
                "a state to another backend or dtype, save it there and load it here"
            )
        expected = (self.n_layer, rwkv4.STATE_ROWS, self.n_embd)
        if n_batch is not None:
            expected = (n_batch, *expected)  # type: ignore[assignment]
        found = tuple(state.array.shape)
        if found != expected:
            raise StateError(
                f"state: found shape {list(found)}, expected {list(expected)} for this model "
                "and these tokens"
            )
        if state.logits is not None and state.logits.shape[-1] != self.n_vocab:
            raise StateError(
                f"state: found logits of {state.logits.shape[-1]} tokens, expected {self.n_vocab}: "
                "it is of a model with another vocabulary"
            )

    def stack_states(self, states: Sequence[State]) -> State:
        """B single states as one batch; their logits too, where all have them.

        A batch has no `pending` bytes: a caller who decodes text keeps each row's.
        """
        if not isinstance(states, Sequence) or not states:
            raise StateError(f"states: found {states!r:.40}, expected a list of at least one State")
        for one in states:
            self.check_state(one)
        stack = self.ops.xp.stack
        logits = [one.logits for one in states]
        return State(
            stack([one.array for one in states]),
            None if any(row is None for row in logits) else stack(logits),
            model=self.fingerprint,
        )

    def unstack_state(self, batch: State) -> list[State]:
        """The single states of a batch."""
        n_batch = batch.array.shape[0] if isinstance(batch, State) else 0
        if isinstance(batch, State) and len(batch.array.shape) != 4:
            raise StateError("state: found a single one, expected a batch")
        self.check_state(batch, n_batch)
        xp = self.ops.xp

        # Copies, so that to keep one is not to keep the batch.
        def row(array: Any, i: int) -> Any:
            return None if array is None else xp.asarray(array[i, ...], copy=True)

        return [
            State(row(batch.array, i), row(batch.logits, i), model=self.fingerprint)
            for i in range(n_batch)
        ]

    def save_state(self, path: str | os.PathLike[str], single: State, transcript: str = "") -> None:
        """Write a state to a file that this model loads on any backend. Raises StateError.

        `transcript` is any text to keep with it; `state.load_transcript` reads it.
        """
        self.check_state(single)
        logits = None if single.logits is None else self.to_numpy(single.logits)
        on_host = State(self.to_numpy(single), logits, single.pending, self.fingerprint)
        state_file.save_state(path, on_host, transcript)

    @np.errstate(all="ignore")
    def load_state(self, path: str | os.PathLike[str]) -> State:
        """Read a state that `save_state` wrote. Raises StateError, of another model's too."""
        found = state_file.load_state(path)
        if found.model != self.fingerprint:
            raise StateError(
                f"{path}: this state is of model {found.model}, the model loaded here is "
                f"{self.fingerprint}; load the model that the state was saved with"
            )
        logits = found.logits
        if logits is not None:
            xp = self.ops.xp
            logits = xp.astype(self.ops.vector(logits), xp.float32, copy=False)
        loaded = State(self.ops.vector(found.array), logits, found.pending, found.model)
        self.check_state(loaded)
        return loaded
