"""A ragged batch: T tokens of one sequence and one token of each of n other sequences.

One pass through the model reads the weights once for all these tokens. Activations are [1, T + n,
D]: first the T tokens (the chunk), then one token of each other sequence. The states are a batch of
1 + n. An operation that combines the tokens of a sequence runs on the chunk and on the other tokens
separately. All other operations treat each token by itself, so they run on all tokens together.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rwkv_core.backends.tensor_ops import Array, TensorOps, WKVState


class RaggedOps:
    """A backend's operations on ragged batches. Those not defined here are the backend's own."""

    def __init__(self, ops: TensorOps) -> None:
        self._ops, self._xp = ops, ops.xp

    def __getattr__(self, name: str) -> Any:
        return getattr(self._ops, name)

    layers = TensorOps.layers

    def last(self, x: Array, state: Array) -> Array:
        chunk, others = self._apart(x, state)
        return self._xp.concat([chunk[:, -1:, :], others], axis=0)

    def token_shift(self, x: Array, last: Array) -> Array:
        chunk, _ = self._apart(x, last)
        return self._joined(self._ops.token_shift(chunk, last[:1, :]), last[1:, None, :])

    def wkv(
        self, k: Array, v: Array, decay: Array, first: Array, state: WKVState
    ) -> tuple[Array, WKVState]:
        def scan(k: Array, v: Array, *state: Array) -> tuple[Array, ...]:
            y, after = self._ops.wkv(k, v, decay, first, (state[0], state[1], state[2]))
            return y, *after

        y, aa, bb, pp = self._scanned(scan, [k, v], state)
        return y, (aa, bb, pp)

    def wkv6(
        self, r: Array, w: Array, k: Array, v: Array, bonus: Array, s: Array
    ) -> tuple[Array, Array]:
        def scan(r: Array, k: Array, v: Array, *more: Array) -> tuple[Array, ...]:
            decay = more[0] if w.ndim > 1 else w
            return self._ops.wkv6(r, decay, k, v, bonus, more[-1])

        y, s = self._scanned(scan, [r, k, v, *([w] if w.ndim > 1 else [])], (s,))
        return y, s

    def wkv7(
        self, r: Array, w: Array, k: Array, v: Array, kk: Array, b: Array, s: Array
    ) -> tuple[Array, Array]:
        y, s = self._scanned(self._ops.wkv7, [r, w, k, v, kk, b], (s,))
        return y, s

    def _scanned(
        self, scan: Callable[..., tuple[Array, ...]], inputs: list[Array], state: tuple[Array, ...]
    ) -> tuple[Array, ...]:
        """Scan the chunk, and the others: return y [1, T + n, D] and the state after it."""
        parts = zip(*(self._apart(x, state[0]) for x in inputs), strict=True)
        states = [part[:1, ...] for part in state], [part[1:, ...] for part in state]
        (y, *after), (others, *others_after) = (
            scan(*own, *before) for own, before in zip(parts, states, strict=True)
        )
        pairs = zip(after, others_after, strict=True)
        return self._joined(y, others), *(self._xp.concat(pair, axis=0) for pair in pairs)

    def _apart(self, x: Array, state: Array) -> tuple[Array, Array]:
        """Return the chunk [1, T, D], and the others' tokens as a batch [n, 1, D]."""
        n_chunk = x.shape[1] - (state.shape[0] - 1)
        others = self._xp.permute_dims(x[:, n_chunk:, :], (1, 0, 2))
        return x[:, :n_chunk, :], others

    def _joined(self, chunk: Array, others: Array) -> Array:
        return self._xp.concat([chunk, self._xp.permute_dims(others, (1, 0, 2))], axis=1)
