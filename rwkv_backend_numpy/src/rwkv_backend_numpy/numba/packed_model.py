"""A model's parameters put together as `one_token` takes them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from rwkv_backend_numpy.numba.one_token import PHASES, Token, one_token
from rwkv_backend_numpy.numba.panels import ROWS, Matrix
from rwkv_core.architectures.rwkv4 import Parameters

Floats = NDArray[np.float32]


def packed_model(p: Parameters) -> PackedModel | None:
    """None if matrices are of several kinds, or those of a width of several forms."""
    wide = [m for block in p.blocks for m in (*block.time[5:], *block.channel[2:4])]
    deep = [block.channel.value for block in p.blocks]
    kinds = {matrix.kind.dtype for matrix in (*wide, p.head, *deep)}
    forms = [set(map(_form, matrices)) for matrices in ([*wide, p.head], deep)]
    return PackedModel(p) if all(len(found) == 1 for found in (kinds, *forms)) else None


def _form(matrix: Matrix) -> tuple[int, int, int]:
    """What `Token.wide` and `Token.deep` are of."""
    return matrix.depth, matrix.n_groups, matrix.panels.shape[1]


class PackedModel:
    """A model as `one_token` takes it."""

    def __init__(self, p: Parameters) -> None:
        matrices = [[*block.time[5:], *block.channel[2:]] for block in p.blocks]
        n_embd, n_ffn = len(p.ln0.weight), matrices[0][4].n_out
        self._n_vocab = p.head.n_out
        wide = -(-n_embd // ROWS) * ROWS
        deep = -(-n_ffn // ROWS) * ROWS
        self._constant = {
            "kind": p.head.kind,
            "wide": np.array(_form(p.head)),
            "deep": np.array(_form(matrices[0][6])),
            "vectors": np.array(
                [[*ln1, *time[:5], *ln2, *channel[:2]] for ln1, time, ln2, channel in p.blocks]
            ),
            "norms": np.array([*p.ln0, *p.ln_out]),
            "matrices": np.array([[m.panels.ctypes.data for m in row] for row in matrices]),
            "head": p.head.panels.ctypes.data,
            "n_ffn": n_ffn,
            "between": np.empty((len(matrices), 4 * wide + deep), np.float32),
        }

    def run(self, x: Floats, state: Floats) -> tuple[Floats, Floats]:
        """`recurrence.last_logits` of one token."""
        before, after = np.ascontiguousarray(state[0]), np.empty_like(state[0])
        logits = np.empty(-(-self._n_vocab // ROWS) * ROWS, np.float32)
        token = Token(**self._constant, x=x[0, 0], state=before, after=after, logits=logits)
        one_token(token, n_phases=PHASES * len(before) + 1)
        return logits[None, None, : self._n_vocab], after[None]
