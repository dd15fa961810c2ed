"""Model: parameters on a device, which map tokens and a state to logits and the next state."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rwkv_core import state as state_file
from rwkv_core.architectures.base import Config, leaves
from rwkv_core.architectures.head import all_logits, last_hidden, last_logits
from rwkv_core.backends.ragged import RaggedOps
from rwkv_core.backends.tensor_ops import Matrix, TensorOps
from rwkv_core.checkpoint.tuned_state import open_tuned_state, read_tuned_state
from rwkv_core.errors import OptionError, StateError
from rwkv_core.state import State, kind_of, short_repr
from rwkv_core.util import forks
from rwkv_core.util.progress import OnProgress

Tokens = Sequence[int] | Sequence[Sequence[int]] | NDArray[np.integer[Any]]


class Model:
    """An RWKV model on a backend; `load` makes one. It holds no running state.

    Attributes:
        n_layer, n_embd, n_vocab: the model's sizes; `config` has all of them.
        backend, device: names of the backend and the device that it runs on.
        options: the backend's options that were given to `load`.
        path: the file that the model was loaded from.
        quantization: dtype and group size of the file's quantized matrices, such as "int4 of 64";
            "" if no matrix in the file is quantized.
        fingerprint: 16 hex digits that identify the model, also in saved states; the same on every
            backend.
        ops: the backend's TensorOps.
        parameters: the architecture's named tuple of the backend's arrays and matrices.
    """

    def __init__(
        self,
        path: Path,
        backend: str,
        ops: TensorOps,
        config: Config,
        fingerprint: str,
        table: Any,
        parameters: Any,
        quantization: str,
        options: Mapping[str, Any],
    ) -> None:
        self.path, self.backend, self.ops, self.fingerprint = path, backend, ops, fingerprint
        self.n_layer, self.n_embd, self.n_vocab = config.n_layer, config.n_embd, config.n_vocab
        self.config = config
        self.quantization, self.options = quantization, options
        self.device = ops.device
        self._table, self.parameters = table, parameters
        empty = self.empty_state().array
        self._kind, self._state_shape = kind_of(empty), tuple(empty.shape)
        architecture = config.architecture
        self._all_logits, self._last_logits = (
            ops.compile(partial(logits, architecture, ops), architecture.name)
            for logits in (all_logits, last_logits)
        )
        self._last_hidden = ops.compile(partial(last_hidden, architecture, ops))
        ragged: Any = RaggedOps(ops)
        self._ragged_logits = ops.compile(partial(last_logits, architecture, ragged))

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
        on_progress: OnProgress | None = None,
    ) -> tuple[Any, State]:
        """Read tokens, continuing from `state` (None: from the empty state).

        Arguments:
            tokens: T token numbers, or B rows of T numbers each, with T >= 1.
            state: a single state for a list of tokens, a batch of B states for rows.
            all_logits: return logits after every token, not only after the last.
            on_progress: called with the number of tokens read so far and in all, at 0 and after
                each chunk.

        Returns (logits, state). The logits are a float32 array of the backend: [V], or [T, V] with
        all_logits; for rows [B, V] or [B, T, V]. The state is the one after the last token, with
        the logits after this token. Raises OptionError for tokens outside the vocabulary or of a
        wrong shape, and StateError for a state that does not fit.
        """
        run = self._all_logits if all_logits else self._last_logits
        logits, array = self._read(run, tokens, state, on_progress)
        last = logits[..., -1, :]
        # The state gets a copy: the caller may change the logits, or keep them for long.
        after = State(array, self.ops.xp.asarray(last, copy=True), model=self.fingerprint)
        return (logits if all_logits else last), after

    @np.errstate(all="ignore")
    def embed(self, tokens: Tokens, state: State | None = None) -> Any:
        """Read tokens, continuing from `state`, for an embedding of the text.

        Arguments and errors are those of `forward`. An embedding is the last layer's output for the
        last token, after the final norm. Returns a float32 array of the backend: [D], with a
        leading B for rows.
        """
        hidden, _ = self._read(self._last_hidden, tokens, state, None)
        return hidden[..., -1, :]

    @np.errstate(all="ignore")
    def forward_ragged(
        self, chunk: Sequence[int], state: State, column: Sequence[int], batch: State
    ) -> tuple[Any, State]:
        """Read tokens of one sequence, and one token of each of n others, in one pass.

        Arguments:
            chunk: T token numbers, which continue the single state `state`.
            column: n token numbers, which continue the batch `batch`, of n states.

        Returns (logits, state): the logits after the last token of each sequence, a float32 array
        of the backend [1 + n, V], and the states after these tokens, a batch of 1 + n states
        without logits. Row 0 of both belongs to the chunk, and the next rows to `column`. Raises
        the errors of `forward`. Only for a backend whose `ops.ragged` is True.
        """
        rows = self._rows([*chunk, *column])
        self.check_state(state)
        self.check_state(batch, len(column))
        xp = self.ops.xp
        array = xp.concat([xp.expand_dims(state.array, axis=0), batch.array], axis=0)
        x = self.ops.embed(self._table, rows[None])
        logits, array = self._ragged_logits(self.parameters, x, array)
        logits = xp.astype(logits[:, -1, :], xp.float32, copy=False)
        return logits, State(array, model=self.fingerprint)

    def _read(
        self,
        run: Callable[..., Any],
        tokens: Tokens,
        state: State | None,
        on_progress: OnProgress | None,
    ) -> tuple[Any, Any]:
        """Return the results of `run` for `tokens`, [T, n] or [B, T, n], and the state's array.

        `run` is a compiled function of `architectures.head`. If `run` computes a result for only
        the last token, T is 1 in the result's shape.
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
        pieces, start, total = [], 0, rows.shape[1]
        if on_progress is not None:
            on_progress(0, total)
        for length in self.ops.chunks(total):
            x = self.ops.embed(self._table, rows[:, start : start + length])
            found, array = run(self.parameters, x, array)
            pieces.append(found)
            start += length
            if on_progress is not None:
                self.ops.to_numpy(found[:, -1, :])  # waits for asynchronous computation
                on_progress(start, total)
        every = run is self._all_logits
        found = pieces[-1] if len(pieces) == 1 or not every else xp.concat(pieces, axis=1)
        found = xp.astype(found, xp.float32, copy=False)
        return (found[0, ...], array[0, ...]) if single else (found, array)

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
        """Return a NumPy copy of logits or of a state's array, in the same shape and dtype."""
        return np.array(self.ops.to_numpy(array.array if isinstance(array, State) else array))

    @property
    def architecture(self) -> str:
        """RWKV version, such as "rwkv4"."""
        return self.config.architecture.name

    def matrices(self) -> dict[str, Matrix]:
        """Return the backend's matrices by the names of their tensors, in the order of use."""
        weights = self.config.weights()
        del weights[self.config.architecture.embedding.name]
        values = (value for _, value in leaves(self.parameters))
        found = zip(weights.items(), values, strict=True)
        return {name: value for (name, weight), value in found if weight.role == "matrix"}

    def empty_state(self, n_batch: int | None = None) -> State:
        """Return the initial state, [n_layer, rows, n_embd]; a batch of `n_batch` if given."""
        forks.check_threads(self.ops.threaded_library)
        array = self.config.empty_state()
        if n_batch is not None:
            array = np.tile(array, (n_batch, 1, 1, 1))
        return State(self.ops.vector(array), model=self.fingerprint)

    def check_state(self, state: State, n_batch: int | None = None) -> None:
        """Raise StateError unless `state` fits this model, and is a batch of `n_batch` if given."""
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
        expected = self._state_shape if n_batch is None else (n_batch, *self._state_shape)
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
        """Return B single states as one batch, [B, n_layer, rows, n_embd].

        Logits are stacked too if all states have them. A batch has no `pending` bytes: a caller who
        decodes text must keep those of each state. Raises StateError for a state that does not fit.
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
        """Return the single states of a batch. Raises StateError if it is not a batch."""
        n_batch = batch.array.shape[0] if isinstance(batch, State) else 0
        if isinstance(batch, State) and len(batch.array.shape) != 4:
            raise StateError("state: found a single one, expected a batch")
        self.check_state(batch, n_batch)
        xp = self.ops.xp

        # Copies, so that one kept state does not keep the whole batch in memory.
        def row(array: Any, i: int) -> Any:
            return None if array is None else xp.asarray(array[i, ...], copy=True)

        return [
            State(row(batch.array, i), row(batch.logits, i), model=self.fingerprint)
            for i in range(n_batch)
        ]

    def save_state(self, path: str | os.PathLike[str], single: State, transcript: str = "") -> None:
        """Write a single state to a file that this model loads on any backend.

        `transcript` is any text to save with the state; `state.load_transcript` reads this text.
        Raises StateError if the file cannot be written, or the state does not fit the model.
        """
        self.check_state(single)
        logits = None if single.logits is None else self.to_numpy(single.logits)
        on_host = State(self.to_numpy(single), logits, single.pending, self.fingerprint)
        state_file.save_state(path, on_host, transcript, self.architecture)

    @np.errstate(all="ignore")
    def load_state(self, path: str | os.PathLike[str]) -> State:
        """Read a state that `save_state` wrote, or a state-tuned file (`blocks.N.att.time_state`).

        Raises StateError if the file is damaged, or is of another model.
        """
        tuned = open_tuned_state(path)
        if tuned is not None:
            with tuned:
                array = read_tuned_state(tuned, self.config)
            return State(self.ops.vector(array), model=self.fingerprint)
        found = state_file.load_state(path, self.architecture)
        if found.model != self.fingerprint:
            raise StateError(
                f"{path}: this state is of model {found.model}, the model loaded here is "
                f"{self.fingerprint}; load the model that the state was saved with"
            )
        shape_fits = found.array.shape == self._state_shape
        if shape_fits and not self.config.architecture.is_state(found.array):
            raise StateError(
                f"{path}: damaged: these are no values of a state of {self.architecture}; "
                "save it again"
            )
        logits = found.logits
        if logits is not None:
            xp = self.ops.xp
            logits = xp.astype(self.ops.vector(logits), xp.float32, copy=False)
        loaded = State(self.ops.vector(found.array), logits, found.pending, found.model)
        self.check_state(loaded)
        return loaded
