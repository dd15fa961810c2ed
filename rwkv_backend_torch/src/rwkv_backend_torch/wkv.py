"""RWKV-4's WKV scan in few operations on large tensors.

Time is divided into blocks. First, the contribution of each block to the state is summed for all
blocks at once. Then the state is carried from block to block. Last, all blocks are scanned at the
same time, each from its own start state. So 256 tokens take 32 sequential steps instead of 256.
Exponents are relative to a running maximum, as in `TensorOps.wkv`.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from rwkv_core.backends.tensor_ops import WKVState

_BLOCK = 16
# exp(60) times a value stays in float32's range, and 1 + exp(60) equals exp(60) even in float64.
_MAX_EXPONENT = 60.0
_LOG2_E = 1 / math.log(2)


def wkv(
    k: Tensor, v: Tensor, decay: Tensor, first: Tensor, state: WKVState
) -> tuple[Tensor, WKVState]:
    """Compute `TensorOps.wkv`."""
    n_time = k.shape[1]
    if n_time == 1:
        return _one_token(k, v, decay, first, state)
    whole = n_time // _BLOCK * _BLOCK
    if whole in (0, n_time):
        return _blocks(k, v, decay, first, state, min(n_time, _BLOCK))
    head, state = _blocks(k[:, :whole], v[:, :whole], decay, first, state, _BLOCK)
    tail, state = wkv(k[:, whole:], v[:, whole:], decay, first, state)
    return torch.cat([head, tail], dim=1), state


def _one_token(
    k: Tensor, v: Tensor, decay: Tensor, first: Tensor, state: WKVState
) -> tuple[Tensor, WKVState]:
    aa, bb, pp = state
    k, v = k[:, 0], v[:, 0]
    mean = _means(k, v, first, state)
    pp = pp + decay
    top = torch.maximum(pp, k)
    # Plain exp: for so few numbers, one operation fewer matters more than `_exp_`'s speed.
    kept, added = pp.sub_(top).exp_(), (k - top).exp_()
    return mean[:, None], (torch.addcmul(added * v, kept, aa), added.addcmul_(kept, bb), top)


def _blocks(
    k: Tensor, v: Tensor, decay: Tensor, first: Tensor, state: WKVState, length: int
) -> tuple[Tensor, WKVState]:
    n_batch, n_time, n_embd = k.shape
    shape = n_batch, n_time // length, length, n_embd
    k, v = k.reshape(shape), v.reshape(shape)
    if shape[1] == 1:
        starts = tuple(part[:, None] for part in state)
    else:
        starts = _starts(k[:, :-1], v[:, :-1], decay, state)
    aa, bb, pp = _scan(k, v, 1.0, decay, starts)
    after = aa[:, -1, -1], bb[:, -1, -1], pp[:, -1, -1]
    means = _means(k, v, first, (aa[:, :, :-1], bb[:, :, :-1], pp[:, :, :-1]))
    return means.view(n_batch, n_time, n_embd), after


def _starts(k: Tensor, v: Tensor, decay: Tensor, state: WKVState) -> WKVState:
    """Return the states (aa, bb, pp) before each of N blocks, each of the three as [B, N, D].

    `k` and `v` are the keys and values of the first N - 1 blocks, [B, N - 1, length, D].
    """
    length = k.shape[2]
    # A block's contribution at its end, in units of its largest exponent: older tokens are decayed.
    ages = torch.arange(length - 1, -1, -1, dtype=k.dtype, device=k.device)[:, None]
    exponents = torch.addcmul(k, ages, decay)
    tops = exponents.amax(2)
    weights = _exp_(exponents.sub_(tops[:, :, None]))
    return _scan(tops, (weights * v).sum(2), weights.sum(2), length * decay, state)


def _scan(
    keys: Tensor, values: Tensor, counts: Tensor | float, decay: Tensor, state: WKVState
) -> WKVState:
    """Return the states (aa, bb, pp) before each of n steps and after the last, [..., n + 1, D].

    `keys` and `values` are [..., n, D]. `counts` has this shape too, or is a number. Each step
    decays aa and bb, then adds exp(keys) * values to aa and exp(keys) * counts to bb.
    """
    n_steps, n_embd = keys.shape[-2:]
    aa, bb, pp = keys.new_empty(3, *keys.shape[:-2], n_steps + 1, n_embd)
    aa[..., 0, :], bb[..., 0, :], pp[..., 0, :] = state
    # Only this loop and the last one are sequential; exponentials are taken for all steps at once.
    tops = pp.unbind(-2)
    for before, after, key in zip(tops, tops[1:], keys.unbind(-2), strict=False):
        torch.add(before, decay, out=after)
        torch.maximum(after, key, out=after)
    tops = pp[..., 1:, :]
    added = _exp_(keys - tops)
    torch.mul(added, values, out=aa[..., 1:, :])
    torch.mul(added, counts, out=bb[..., 1:, :])
    kept = _exp_((pp[..., :-1, :] + decay).sub_(tops)).unbind(-2)
    for sums in (aa.unbind(-2), bb.unbind(-2)):
        for before, after, factor in zip(sums, sums[1:], kept, strict=False):
            after.addcmul_(before, factor)
    return aa, bb, pp


def _means(k: Tensor, v: Tensor, first: Tensor, state: WKVState) -> Tensor:
    aa, bb, pp = state
    # The present token's weight in units of exp(pp). It can be clamped: beyond exp(60), aa and bb
    # no longer change the mean.
    now = _exp_((first + k).sub_(pp).clamp_(max=_MAX_EXPONENT))
    return torch.addcmul(aa, now, v).div_(now.add_(bb))


def _exp_(exponents: Tensor) -> Tensor:
    """Compute exp in place. torch.exp uses MKL's, which is 10 to 50x slower where it underflows."""
    return exponents.mul_(_LOG2_E).exp2_()
