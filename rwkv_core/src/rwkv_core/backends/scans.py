"""The scans of RWKV-4 to 7: the step for one token, and plain loops over the tokens.

A scan is the part of time mixing that carries a state from token to token. This module uses only
functions of the array API standard.

In RWKV-5 to 7: B batch, H heads of N channels. A head's matrix S has a row for each value channel
and a column for each key channel: `s` [B, H, N, N]. All other arrays of a token are [B, H, N].
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Array = Any


def wkv4_step(
    xp: Any, state: tuple[Array, Array, Array], k: Array, v: Array, decay: Array, first: Array
) -> tuple[Array, tuple[Array, Array, Array]]:
    """Return the mean [B, D] and the next state of `TensorOps.wkv`, for k and v [B, D]."""
    aa, bb, pp = state
    top = xp.maximum(pp, first + k)
    before, now = xp.exp(pp - top), xp.exp(first + k - top)
    mean = (before * aa + now * v) / (before * bb + now)
    top = xp.maximum(pp + decay, k)
    before, now = xp.exp(pp + decay - top), xp.exp(k - top)
    return mean, (before * aa + now * v, before * bb + now, top)


def wkv4(
    xp: Any, k: Array, v: Array, decay: Array, first: Array, state: tuple[Array, Array, Array]
) -> tuple[Array, tuple[Array, Array, Array]]:
    """Compute `TensorOps.wkv` with `wkv4_step` for each token."""
    means = []
    for t in range(k.shape[1]):
        mean, state = wkv4_step(xp, state, k[:, t, :], v[:, t, :], decay, first)
        means.append(mean)
    return xp.stack(means, axis=1), state


def scan(
    xp: Any, step: Callable[..., tuple[Array, Array]], s: Array, *inputs: Array
) -> tuple[Array, Array]:
    """Run `step` for each token of `inputs`, [B, T, H, N]. Returns y of that shape, and `s`."""
    rows = []
    for t in range(inputs[0].shape[1]):
        y, s = step(xp, s, *(x[:, t, :, :] for x in inputs))
        rows.append(y)
    return xp.stack(rows, axis=1), s


def apart(xp: Any, s: Array) -> Array:
    """Return matrices that lie side by side in a state [B, N, D] as [B, H, N, N]."""
    n_batch, n, width = s.shape
    return xp.permute_dims(xp.reshape(s, (n_batch, n, width // n, n)), (0, 2, 1, 3))


def side_by_side(xp: Any, s: Array) -> Array:
    """Return the inverse of `apart`: [B, H, N, N] as [B, N, D]."""
    n_batch, n_head, n, _ = s.shape
    return xp.reshape(xp.permute_dims(s, (0, 2, 1, 3)), (n_batch, n, n_head * n))


def wkv6_step(xp: Any, s: Array, r: Array, w: Array, k: Array, v: Array) -> tuple[Array, Array]:
    """Return y and the next S of `TensorOps.wkv6` without the bonus."""
    y = xp.matmul(s, r[..., None])[..., 0]
    return y, s * w[..., None, :] + v[..., None] * k[..., None, :]


def wkv7_step(
    xp: Any, s: Array, r: Array, w: Array, k: Array, v: Array, kk: Array, b: Array
) -> tuple[Array, Array]:
    """Return y and the next S of `TensorOps.wkv7`."""
    removed = xp.matmul(s, kk[..., None])  # [B, H, N, 1]
    s = s * w[..., None, :] - removed * b[..., None, :] + v[..., None] * k[..., None, :]
    return xp.matmul(s, r[..., None])[..., 0], s
