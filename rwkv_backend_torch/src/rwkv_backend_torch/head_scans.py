"""The scans of RWKV-5 to 7, computed in blocks of tokens.

A token's output is a weighted sum over earlier tokens. The weights between the tokens of one block
form a small matrix per head, and one product computes these matrices for all blocks. The tokens of
earlier blocks are summed up in S, the heads' matrices of the state. A loop over the blocks carries
S, with two products per block. So 256 tokens take 16 steps (RWKV-7) or 32 steps (RWKV-5, 6) instead
of 256.

Shapes: B batch, T time, D width, H heads of N channels, n blocks of C tokens. In this file, S has
one row per key channel, [B H, K, V].
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

# Tokens per block. 16 is fastest for RWKV-7. RWKV-6's decays can reach 0, which makes blocks of 16
# inexact: see `_products_of_decays`.
_BLOCK_6, _BLOCK_7 = 8, 16


def wkv6(
    r: Tensor, w: Tensor, k: Tensor, v: Tensor, bonus: Tensor, s: Tensor
) -> tuple[Tensor, Tensor]:
    """Compute `TensorOps.wkv6`."""
    if r.shape[1] == 1:
        return _one_token_6(r, w, k, v, bonus, s)

    def blocks(s: Tensor, *tokens: Tensor) -> tuple[Tensor, Tensor]:
        return _blocks_6(bonus, s, *tokens)

    return _by_blocks(blocks, _BLOCK_6, s, r, w.expand_as(k), k, v)


def wkv7(
    r: Tensor, w: Tensor, k: Tensor, v: Tensor, kk: Tensor, b: Tensor, s: Tensor
) -> tuple[Tensor, Tensor]:
    """Compute `TensorOps.wkv7`."""
    if r.shape[1] == 1:
        return _one_token_7(r, w, k, v, kk, b, s)
    return _by_blocks(_blocks_7, _BLOCK_7, s, r, w, k, v, kk, b)


def _one_token_6(
    r: Tensor, w: Tensor, k: Tensor, v: Tensor, bonus: Tensor, s: Tensor
) -> tuple[Tensor, Tensor]:
    s = _apart(s)
    rows = (*s.shape[:2], 1, s.shape[3])  # [B, H, 1, N]
    now = (r * k * bonus).view(rows).sum(-1, keepdim=True)
    r, w, k, v = (x.expand_as(k).view(rows) for x in (r, w, k, v))
    # A row times S^T is 2x faster than S times a column.
    y = torch.addcmul(r @ s.mT, now, v)
    return y.view(y.shape[0], 1, -1), _side_by_side((s * w).addcmul_(v.mT, k))


def _one_token_7(
    r: Tensor, w: Tensor, k: Tensor, v: Tensor, kk: Tensor, b: Tensor, s: Tensor
) -> tuple[Tensor, Tensor]:
    s = _apart(s)
    rows = (*s.shape[:2], 1, s.shape[3])  # [B, H, 1, N]
    r, w, k, v, kk, b = (x.view(rows) for x in (r, w, k, v, kk, b))
    removed = kk @ s.mT
    s = (s * w).addcmul_(removed.mT, b, value=-1).addcmul_(v.mT, k)
    return (r @ s.mT).view(r.shape[0], 1, -1), _side_by_side(s)


def _apart(s: Tensor) -> Tensor:
    """Return a state's matrices, which lie side by side in [B, N, D], as [B, H, N, N]."""
    return s.unflatten(-1, (-1, s.shape[1])).transpose(1, 2)


def _side_by_side(s: Tensor) -> Tensor:
    """Return the inverse of `_apart`: [B, H, N, N] as [B, N, D]."""
    return s.transpose(1, 2).flatten(2)


def _by_blocks(
    blocks: Callable[..., Any], length: int, s: Tensor, *tokens: Tensor
) -> tuple[Tensor, Tensor]:
    """Run `blocks` on all whole blocks, then on the remaining tokens as one shorter block.

    Arguments:
        blocks: a function that takes S [B H, K, V] and each input as [B, n, C, D]. It returns y [n,
            B H, C, N] and the S after the last block.
        length: number of tokens in a block.
        s: S before the first token, in the layout of a state: [B, N, D].
        tokens: the inputs, each [B, T, D].

    Returns y [B, T, D], and S after the last token, [B, N, D].
    """
    n_batch, n_time, width = tokens[0].shape
    n = s.shape[1]
    whole = n_time // length * length
    # Contiguous: baddbmm_ into other layouts multiplies one matrix at a time, 4x slower.
    s, rows = _apart(s).mT.flatten(0, 1).contiguous(), []
    for start, end in ((0, whole), (whole, n_time)):
        if start == end:
            continue
        cut = (-1, min(length, end - start))
        y, s = blocks(s, *(x[:, start:end].unflatten(1, cut) for x in tokens))
        y = y.unflatten(1, (n_batch, -1)).permute(1, 0, 3, 2, 4)  # [B, n, C, H, N]
        rows.append(y.reshape(n_batch, end - start, width))
    y = rows[0] if len(rows) == 1 else torch.cat(rows, dim=1)
    return y, _side_by_side(s.view(n_batch, -1, n, n).mT)


def _products_of_decays(w: Tensor) -> Tensor:
    """Return the running product of the decays `w` [B, n, C, D] in each block: [B, n, C + 1, D].

    The entries are the products before each of the C tokens and after the last token. They are
    divided by the entry in the middle of the block, which is then 1. The quotient of two entries is
    the product of the decays between them. Small decays are raised so that no entry overflows. The
    minimum in float32 is 8e-8 in blocks of 8, too small to change a float32 sum, and 3e-4 in blocks
    of 16. RWKV-7's decays are at least 0.54.
    """
    n_batch, n_blocks, length, width = w.shape
    middle = length // 2
    w = w.clamp(min=torch.finfo(w.dtype).tiny ** (0.75 / max(length - middle, 1)))
    products = w.new_empty((n_batch, n_blocks, length + 1, width))
    products[:, :, middle] = 1
    parts, decays = products.unbind(2), w.unbind(2)
    for t in range(middle, length):
        torch.mul(parts[t], decays[t], out=parts[t + 1])
    for t in reversed(range(middle)):
        torch.div(parts[t + 1], decays[t], out=parts[t])
    return products


def _heads(x: Tensor, head_size: int) -> Tensor:
    """Return [B, n, C, D] as [n, B, H, C, N]."""
    return x.unflatten(-1, (-1, head_size)).permute(1, 0, 3, 2, 4)


def _blocks_6(
    bonus: Tensor, s: Tensor, r: Tensor, w: Tensor, k: Tensor, v: Tensor
) -> tuple[Tensor, Tensor]:
    n = s.shape[-1]
    before, after, from_start, to_end = _factors(w, n)
    r, k, v = (_heads(x, n) for x in (r, k, v))
    reads, stores = r.new_empty((2, *r.shape))
    torch.mul(r, before, out=reads)
    torch.div(k, after, out=stores)
    now = (r * k * bonus.view(-1, 1, n)).sum(-1)
    weights = _flat(reads) @ _flat(stores).mT  # [n, B H, C, C]
    weights.tril_(-1).diagonal(dim1=-2, dim2=-1).copy_(now.flatten(1, 2))
    v = _flat(v)
    y = weights @ v
    reads, stores = _flat(reads.mul_(from_start)), _flat(stores.mul_(to_end)).mT
    end = _flat((to_end * from_start).mT)
    for j in range(len(y)):
        y[j].baddbmm_(reads[j], s)
        s = (s * end[j]).baddbmm_(stores[j], v[j])
    return y, s


def _blocks_7(
    s: Tensor, r: Tensor, w: Tensor, k: Tensor, v: Tensor, kk: Tensor, b: Tensor
) -> tuple[Tensor, Tensor]:
    """Compute RWKV-7's blocks.

    Each token adds two outer products to S: of v with its key k, and of u = -S kk with its key b.
    Here S is S0, the state before the block, plus the products that earlier tokens of the block
    have added. Let the vectors u of all tokens of the block be the rows of a matrix, also called u.
    Then

        u = -(Q S0 + R v + A u),    u = -(I + A)^-1 (Q S0 + R v)

    The rows of Q are the keys kk. R and A are strictly lower triangular: their entries are the
    products of a token's kk with the k (in R) and the b (in A) of an earlier token. Every entry
    includes the decays between the two tokens. For Q these are the decays since the start of the
    block.
    """
    n, length = s.shape[-1], r.shape[2]
    before, after, from_start, to_end = _factors(w, n)
    r, k, v, kk, b = (_heads(x, n) for x in (r, k, v, kk, b))
    reads, stores = r.new_empty((2, *r.shape[:3], 2 * length, n))
    torch.mul(kk, before, out=reads[..., :length, :])
    torch.mul(r, after, out=reads[..., length:, :])
    torch.div(b, after, out=stores[..., :length, :])
    torch.div(k, after, out=stores[..., length:, :])
    weights = _flat(reads) @ _flat(stores).mT  # [n, B H, 2 C, 2 C]
    weights.masked_fill_(_later(length, weights.device), 0)
    # [n, B H, 2 C, 2 N]: rows for u, then for y; columns for the factor of S0, then the summand.
    linear = weights.new_empty((*weights.shape[:3], 2 * n))
    torch.mul(reads, from_start, out=linear[..., :n].view(reads.shape))
    v = _flat(v)
    torch.matmul(weights[..., length:], v, out=linear[..., n:])
    u_of_u, y_of_u = weights[..., :length].chunk(2, dim=-2)
    one = torch.eye(length, dtype=s.dtype, device=s.device).expand_as(u_of_u)
    inverse = torch.linalg.solve_triangular(u_of_u, one, upper=False, unitriangular=True)
    u = inverse.neg_() @ linear[:, :, :length]
    linear[:, :, :length] = u
    linear[:, :, length:] += y_of_u @ u
    stores, end = _flat(stores.mul_(to_end)).mT, _flat((to_end * from_start).mT)
    y = torch.empty_like(v)
    for j in range(len(y)):
        u_and_y = torch.baddbmm(linear[j, ..., n:], linear[j, ..., :n], s)
        y[j] = u_and_y[:, length:]
        u_and_y[:, length:] = v[j]
        s = (s * end[j]).baddbmm_(stores[j], u_and_y)
    return y, s


def _factors(w: Tensor, head_size: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return four tensors with products of the decays `w`, for each block.

    The first two are [n, B, H, C, N]: the running products before and after each token, relative to
    the middle of the block. The last two are factors [n, B, H, 1, N]. A running product times the
    first factor is the product of the decays from the block's start. The second factor divided by a
    running product is the product of the decays up to the block's end.
    """
    products = _heads(_products_of_decays(w), head_size)
    first, last = products[..., :1, :], products[..., -1:, :]
    return products[..., :-1, :], products[..., 1:, :], first.reciprocal(), last


def _flat(x: Tensor) -> Tensor:
    """Return [n, B, H, ...] as [n, B H, ...]."""
    return x.reshape(x.shape[0], -1, *x.shape[-2:])


def _later(length: int, device: torch.device) -> Tensor:
    """Return a mask, bool [2 C, 2 C]: True where the row's token cannot read the column's token.

    A row is a read of S: first by each token's kk, before the token's own update of S, then by each
    token's r, after it. A column is an update of S: first with each token's u, then with each
    token's v.
    """
    t = torch.arange(length, device=device)
    for_kk, for_r = t[:, None] <= t, t[:, None] < t
    return torch.cat([for_kk.tile(1, 2), for_r.tile(1, 2)])
