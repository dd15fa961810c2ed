"""Sizes at which implementations switch algorithms, where errors are likely."""

from __future__ import annotations

from rwkv_core.backends.tensor_ops import TensorOps

# Around powers of two, and between them.
_TOKENS = [1, 2, 3, 4, 7, 8, 9, 16, 17, 31, 32, 33, 63, 64, 65, 100, 127, 128, 129, 255, 256, 512]
_BATCHES = [2, 3, 4, 5, 8, 9, 16, 17, 33, 64]


def token_counts(ops: TensorOps) -> list[int]:
    """Return numbers of tokens in one call; with fixed shapes, all numbers that occur."""
    if ops.fixed_shapes:
        return sorted({size for n_tokens in range(1, 1200) for size in ops.chunks(n_tokens)})
    return _TOKENS


def row_shapes(ops: TensorOps) -> list[tuple[int, int]]:
    """Return shapes [B, T] of one call: one sequence of each length, then batches."""
    # With fixed shapes, each one may cost a compilation.
    batches = [] if ops.fixed_shapes else [(n_batch, 1) for n_batch in _BATCHES]
    return [*((1, n_time) for n_time in token_counts(ops)), *batches, (3, 4), (5, 64)]


def vector_shapes(ops: TensorOps) -> list[tuple[int, int, int]]:
    """Return shapes [B, T, D] of one call. A few of them have a larger D than the others."""
    widths = {(3, 4): 1088, (5, 64): 160, (1, 512): 800}
    return [(*rows, widths.get(rows, 64)) for rows in row_shapes(ops)]


def head_shapes(ops: TensorOps) -> list[tuple[int, int, int, int]]:
    """Return shapes [B, T, H, N] of one call, with H heads of N channels."""
    if ops.fixed_shapes:  # Each may cost a compilation.
        return [(1, 1, 3, 32), (1, 64, 1, 64), (3, 4, 5, 32)]
    single = [(1, 1, 1, 32), (1, 2, 3, 32), (1, 17, 1, 64), (1, 64, 5, 32), (1, 300, 1, 32)]
    return [*single, (3, 1, 5, 64), (3, 2, 2, 32), (3, 17, 3, 64)]
