"""Packs an RWKV-4's parameters for the kernel in `rwkv4_token`."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from rwkv_backend_numpy.numba.panels import ROWS, Matrix
from rwkv_backend_numpy.numba.rwkv4_token import (
    CHANNEL_KEY,
    CHANNEL_VALUE,
    PHASES,
    Token,
    one_token,
)
from rwkv_core.architectures.rwkv4 import Block, Parameters

Floats = NDArray[np.float32]


def packed_model(p: Parameters, state: Floats) -> PackedModel | None:
    """Pack a model's arrays for the kernel that reads one token. Return None if it does not fit.

    It fits if all matrices are stored in the same type, and all matrices with the same number of
    columns in the same form. `state` is not used: only the kernels of versions with heads read the
    head size from its shape.
    """
    rows = [_matrices(block) for block in p.blocks]
    wide = [p.head, *(matrix for row in rows for matrix in row[:CHANNEL_VALUE])]
    deep = [row[CHANNEL_VALUE] for row in rows]
    kinds = {matrix.kind.dtype for matrix in (*wide, *deep)}
    forms = [set(map(_form, matrices)) for matrices in (wide, deep)]
    return PackedModel(p) if all(len(found) == 1 for found in (kinds, *forms)) else None


def _matrices(block: Block) -> list[Matrix]:
    """Return a row of `Token.matrices`."""
    time, channel = block.time, block.channel
    attention = [time.key, time.value, time.receptance, time.output]
    return [*attention, channel.key, channel.receptance, channel.value]


def _vectors(block: Block) -> list[Floats]:
    """Return a row of `Token.vectors`."""
    ln1, time, ln2, channel = block
    scan = [time.mix_k, time.mix_v, time.mix_r, time.decay, time.first]
    return [*ln1, *scan, *ln2, channel.mix_k, channel.mix_r]


def _form(matrix: Matrix) -> tuple[int, int, int]:
    """Return a matrix's form, for `Token.wide` and `Token.deep`."""
    return matrix.depth, matrix.n_groups, matrix.panels.shape[1]


class PackedModel:
    """A model in the form for `one_token`."""

    def __init__(self, p: Parameters) -> None:
        matrices = list(map(_matrices, p.blocks))
        n_embd, n_ffn = len(p.ln0.weight), matrices[0][CHANNEL_KEY].n_out
        self._n_vocab = p.head.n_out
        wide = -(-n_embd // ROWS) * ROWS
        deep = -(-n_ffn // ROWS) * ROWS
        self._constant = {
            "kind": p.head.kind,
            "wide": np.array(_form(p.head)),
            "deep": np.array(_form(matrices[0][CHANNEL_VALUE])),
            "vectors": np.array(list(map(_vectors, p.blocks))),
            "norms": np.array([*p.ln0, *p.ln_out]),
            "matrices": np.array([[m.panels.ctypes.data for m in row] for row in matrices]),
            "head": p.head.panels.ctypes.data,
            "n_ffn": n_ffn,
            "between": np.empty((len(matrices), 4 * wide + deep), np.float32),
        }

    def run(self, x: Floats, state: Floats) -> tuple[Floats, Floats]:
        """Return logits [1, 1, V] and the state [1, L, 5, D] after one embedding `x` [1, 1, D]."""
        before, after = np.ascontiguousarray(state[0]), np.empty_like(state[0])
        logits = np.empty(-(-self._n_vocab // ROWS) * ROWS, np.float32)
        token = Token(**self._constant, x=x[0, 0], state=before, after=after, logits=logits)
        one_token(token, n_phases=PHASES * len(before) + 1)
        return logits[None, None, : self._n_vocab], after[None]
