"""The scans of RWKV-5 to 7 in few operations on large tensors.

Time is cut into blocks. What the tokens of a block do to each other is one small matrix for each
head, which all blocks compute at once; then from block to block the heads' matrices S are carried,
in two products each. So of 256 tokens 16 or 32 steps wait for each other, not 256.

Shapes: B batch, T time, D width, H heads of N channels; n blocks of C tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

# Tokens in a block. RWKV-7's is the fastest. RWKV-6's decays reach 0, and 8 of them are the most
# that are exact: see `_kept`.
_BLOCK_6, _BLOCK_7 = 8, 16


def wkv6(
    r: Tensor, w: Tensor, k: Tensor, v: Tensor, bonus: Tensor, s: Tensor
) -> tuple[Tensor, Tensor]:
    """`TensorOps.wkv6`."""
    if r.shape[1] == 1:
        return _one_token_6(r, w, k, v, bonus, s)

    def blocks(s: Tensor, *tokens: Tensor) -> tuple[Tensor, Tensor]:
        return _blocks_6(bonus, s, *tokens)

    return _by_blocks(blocks, _BLOCK_6, s, r, w.expand_as(k), k, v)


def wkv7(
    r: Tensor, w: Tensor, k: Tensor, v: Tensor, kk: Tensor, b: Tensor, s: Tensor
) -> tuple[Tensor, Tensor]:
    """`TensorOps.wkv7`."""
    if r.shape[1] == 1:
        return _one_token_7(r, w, k, v, kk, b, s)
    return _by_blocks(_blocks_7, _BLOCK_7, s, r, w, k, v, kk, b)


def _one_token_6(
    r: Tensor, w: Tensor, k: Tensor, v: Tensor, bonus: Tensor, s: Tensor
) -> tuple[Tensor, Tensor]:
    s = _apart(s)
    rows = (*s.shape[:2], 1, s.shape[3])  # [B, H, 1, N]
    now = (r * k * bonus).view(rows).sum(-1, keepdim=True)
    r, k, v = r.view(rows), k.view(rows), v.view(rows).mT
    w = w.expand_as(r.flatten(1)).view(rows) if w.ndim == 1 else w.view(rows)
    y = torch.addcmul(s @ r.mT, now, v)
    return y.view(y.shape[0], 1, -1), _side_by_side((s * w).addcmul_(v, k))


def _one_token_7(
    r: Tensor, w: Tensor, k: Tensor, v: Tensor, kk: Tensor, b: Tensor, s: Tensor
) -> tuple[Tensor, Tensor]:
    s = _apart(s)
    rows = (*s.shape[:2], 1, s.shape[3])  # [B, H, 1, N]
    r, w, k, v, kk, b = (x.view(rows) for x in (r, w, k, v, kk, b))
    removed = s @ kk.mT
    s = (s * w).addcmul_(removed, b, value=-1).addcmul_(v.mT, k)
    return (s @ r.mT).view(r.shape[0], 1, -1), _side_by_side(s)


def _apart(s: Tensor) -> Tensor:
    """Matrices of heads side by side [B, N, D], as a state has them, as [B, H, N, N]."""
    return s.unflatten(-1, (-1, s.shape[1])).transpose(1, 2)


def _side_by_side(s: Tensor) -> Tensor:
    """The inverse of `_apart`."""
    return s.transpose(1, 2).flatten(2)


def _by_blocks(
    blocks: Callable[..., Any], length: int, s: Tensor, *tokens: Tensor
) -> tuple[Tensor, Tensor]:
    """`blocks` of all whole blocks, then of what is left as a shorter one.

    It takes S [B H, K, V], a row for each key channel, and tokens as [B, n, C, D]; it returns y
    [n, B H, C, N] and the next S.
    """
    n_batch, n_time, width = tokens[0].shape
    n = s.shape[1]
    whole = n_time // length * length
    # Products of a batch of matrices are slow where these do not follow each other.
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


def _kept(w: Tensor) -> Tensor:
    """What is kept before each token and after the last, [B, n, C + 1, D], of decays [B, n, C, D].

    In units of what is kept at the middle of the block, so that the quotient of any two is a
    product of decays, and neither of them leaves the type's range. For that, decays have a least
    value; in float32 it is 8e-8, less than a rounding error beside 1, in a block of 8, and 3e-4 in
    one of 16, where RWKV-7's, of at least 0.54, do not come near it.
    """
    n_batch, n_blocks, length, width = w.shape
    middle = length // 2
    w = w.clamp(min=torch.finfo(w.dtype).tiny ** (0.75 / max(length - middle, 1)))
    kept = w.new_empty((n_batch, n_blocks, length + 1, width))
    kept[:, :, middle] = 1
    parts, decays = kept.unbind(2), w.unbind(2)
    for t in range(middle, length):
        torch.mul(parts[t], decays[t], out=parts[t + 1])
    for t in reversed(range(middle)):
        torch.div(parts[t + 1], decays[t], out=parts[t])
    return kept


def _heads(x: Tensor, head_size: int) -> Tensor:
    """[B, n, C, D] as [n, B, H, C, N]."""
    return x.unflatten(-1, (-1, head_size)).permute(1, 0, 3, 2, 4)


def _blocks_6(
    bonus: Tensor, s: Tensor, r: Tensor, w: Tensor, k: Tensor, v: Tensor
) -> tuple[Tensor, Tensor]:
    n = s.shape[-1]
    kept = _heads(_kept(w), n)
    before, after, from_start, last = _parts(kept)
    r, k, v = (_heads(x, n) for x in (r, k, v))
    reads, stores = r.new_empty((2, *r.shape))
    torch.mul(r, before, out=reads)
    torch.div(k, after, out=stores)
    now = (r * k * bonus.view(-1, 1, n)).sum(-1)
    weights = _flat(reads) @ _flat(stores).mT  # [n, B H, C, C]
    weights.tril_(-1).diagonal(dim1=-2, dim2=-1).copy_(now.flatten(1, 2))
    v = _flat(v)
    y = weights @ v
    reads, stores = _flat(reads.mul_(from_start)), _flat(stores.mul_(last)).mT
    end = _flat((last * from_start).mT)
    for j in range(len(y)):
        y[j].baddbmm_(reads[j], s)
        s = (s * end[j]).baddbmm_(stores[j], v[j])
    return y, s


def _blocks_7(
    s: Tensor, r: Tensor, w: Tensor, k: Tensor, v: Tensor, kk: Tensor, b: Tensor
) -> tuple[Tensor, Tensor]:
    """What a token puts into S under b is u = -S kk. All of a block's are u = -Q S0 - R v - A u.

    S0 is what the block starts from, Q the keys kk, and R and A are what is stored under earlier
    tokens' k and b and found under kk: u = -(I + A)^-1 (Q S0 + R v), where A is below its diagonal.
    """
    n, length = s.shape[-1], r.shape[2]
    before, after, from_start, last = _parts(_heads(_kept(w), n))
    r, k, v, kk, b = (_heads(x, n) for x in (r, k, v, kk, b))
    reads, stores = r.new_empty((2, *r.shape[:3], 2 * length, n))
    torch.mul(kk, before, out=reads[..., :length, :])
    torch.mul(r, after, out=reads[..., length:, :])
    torch.div(b, after, out=stores[..., :length, :])
    torch.div(k, after, out=stores[..., length:, :])
    weights = _flat(reads) @ _flat(stores).mT  # [n, B H, 2 C, 2 C]
    weights.masked_fill_(_later(length, weights.device), 0)
    # What is read of S0, and of what the block has stored: [n, B H, 2 C, 2 N].
    found = weights.new_empty((*weights.shape[:3], 2 * n))
    torch.mul(reads, from_start, out=found[..., :n].view(reads.shape))
    v = _flat(v)
    torch.matmul(weights[..., length:], v, out=found[..., n:])
    of_itself, of_u = weights[..., :length].chunk(2, dim=-2)
    one = torch.eye(length, dtype=s.dtype, device=s.device).expand_as(of_itself)
    inverse = torch.linalg.solve_triangular(of_itself, one, upper=False, unitriangular=True)
    u = inverse.neg_() @ found[:, :, :length]
    found[:, :, :length] = u
    found[:, :, length:] += of_u @ u
    stores, end = _flat(stores.mul_(last)).mT, _flat((last * from_start).mT)
    y = torch.empty_like(v)
    for j in range(len(y)):
        u_and_y = torch.baddbmm(found[j, ..., n:], found[j, ..., :n], s)
        y[j] = u_and_y[:, length:]
        u_and_y[:, length:] = v[j]
        s = (s * end[j]).baddbmm_(stores[j], u_and_y)
    return y, s


def _parts(kept: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Of `_kept`: before each token, after each token, one over the start's, and the end's."""
    first, last = kept[..., :1, :], kept[..., -1:, :]
    return kept[..., :-1, :], kept[..., 1:, :], first.reciprocal(), last


def _flat(x: Tensor) -> Tensor:
    """[n, B, H, ...] as [n, B H, ...]."""
    return x.reshape(x.shape[0], -1, *x.shape[-2:])


def _later(length: int, device: torch.device) -> Tensor:
    """[2 C, 2 C]: whether a token's u and v are stored after a token takes out, or reads."""
    t = torch.arange(length, device=device)
    takes, reads = t[:, None] <= t, t[:, None] < t
    return torch.cat([takes.tile(1, 2), reads.tile(1, 2)])
