"""Packs an RWKV-7's parameters for the kernel in `rwkv7_token`."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from rwkv_backend_numpy.numba.panels import ROWS, Matrix
from rwkv_backend_numpy.numba.rwkv7_token import (
    CHANNEL_KEY,
    CHANNEL_VALUE,
    N_LOW_RANK,
    PHASES,
    Token,
    one_token,
)
from rwkv_core.architectures.matrix_state import FIRST_OF_S
from rwkv_core.architectures.rwkv7 import Block, Parameters

Floats = NDArray[np.float32]


def packed_model(p: Parameters, state: Floats) -> PackedModel | None:
    """Pack a model's arrays for the kernel that reads one token. Return None if it does not fit.

    It fits if the head size is a multiple of 16 (the rows of a panel), all matrices are stored in
    one type, all low-rank matrices are stored in one type, and all matrices for the same vector, or
    with the same place in a layer, have the same form.
    """
    rows = [_matrices(block) for block in p.blocks]
    wide = [p.head, *(matrix for row in rows for matrix in row[:CHANNEL_VALUE])]
    deep = [row[CHANNEL_VALUE] for row in rows]
    low = [_low_rank(block) for block in p.blocks]
    groups = [wide, deep, *([row[i] for row in low if row[i] is not None] for i in range(8))]
    kinds = [{m.kind.dtype for m in wide + deep}, {m.kind.dtype for row in low for m in row if m}]
    alike = all(len(set(map(_form, matrices))) <= 1 for matrices in groups)
    head_size = state.shape[2] - FIRST_OF_S
    fits = all(len(found) == 1 for found in kinds) and alike and head_size % ROWS == 0
    return PackedModel(p) if fits else None


def _matrices(block: Block) -> list[Matrix]:
    """Return a row of `Token.matrices`."""
    time, channel = block.time, block.channel
    return [
        *(time.receptance, time.key, time.value, time.output),
        *(channel.key, channel.value),
    ]


def _low_rank(block: Block) -> list[Matrix | None]:
    """Return a row of `Token.low_rank`; layer 0 lacks those of v."""
    t = block.time
    found = [t.w1, t.a1, t.v1, t.g1, t.w2, t.a2, t.v2, t.g2]
    return [matrix if isinstance(matrix, Matrix) else None for matrix in found]


def _vectors(block: Block) -> list[Floats]:
    """Return a row of `Token.vectors`."""
    t = block.time
    v0 = t.v0 if isinstance(t.v0, np.ndarray) else np.zeros_like(t.w0)
    mixes = [t.mix_r, t.mix_w, t.mix_k, t.mix_v, t.mix_a, t.mix_g]
    scan = [t.w0, t.a0, v0, t.k_k, t.k_a, t.r_k, *t.ln_x]
    return [*block.ln1, *mixes, *scan, *block.ln2, block.channel.mix_k]


def _form(matrix: Matrix) -> tuple[int, int, int]:
    return matrix.depth, matrix.n_groups, matrix.panels.shape[1]


def _panels(n: int) -> int:
    return -(-n // ROWS) * ROWS


class PackedModel:
    """A model in the form for `one_token`."""

    def __init__(self, p: Parameters) -> None:
        matrices, low = list(map(_matrices, p.blocks)), list(map(_low_rank, p.blocks))
        n_embd, n_ffn = len(p.ln0.weight), matrices[0][CHANNEL_KEY].n_out
        self._n_vocab = p.head.n_out
        one_of_each = [next((row[i] for row in low if row[i] is not None), None) for i in range(8)]
        first = next(m for m in one_of_each if m is not None)
        forms = [_form(m) if m else (0, 1, 0) for m in one_of_each[N_LOW_RANK:]]
        ranks = [m.n_out if m else 0 for m in one_of_each[:N_LOW_RANK]]
        width = 6 * _panels(n_embd) + sum(map(_panels, ranks)) + _panels(n_ffn)
        self._constant = {
            "kind": p.head.kind,
            "low_kind": first.kind,
            "wide": np.array(_form(p.head)),
            "deep": np.array(_form(matrices[0][CHANNEL_VALUE])),
            "low": np.array([_form(first), *forms]),
            "ranks": np.array(ranks),
            "vectors": np.array(list(map(_vectors, p.blocks))),
            "norms": np.array([*p.ln0, *p.ln_out]),
            "matrices": np.array([[m.panels.ctypes.data for m in row] for row in matrices]),
            "low_rank": np.array([[m.panels.ctypes.data if m else 0 for m in row] for row in low]),
            "head": p.head.panels.ctypes.data,
            "n_ffn": n_ffn,
            "between": np.empty((len(matrices), width), np.float32),
        }

    def run(self, x: Floats, state: Floats) -> tuple[Floats, Floats]:
        """Return logits [1, 1, V] and state [1, L, 2 + N, D] after one embedding `x` [1, 1, D]."""
        before, after = np.ascontiguousarray(state[0]), np.empty_like(state[0])
        logits = np.empty(_panels(self._n_vocab), np.float32)
        token = Token(**self._constant, x=x[0, 0], state=before, after=after, logits=logits)
        one_token(token, n_phases=PHASES * len(before) + 1)
        return logits[None, None, : self._n_vocab], after[None]
