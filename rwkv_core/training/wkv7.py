"""RWKV-7's state update over time and its gradient, as two loops compiled by Numba.

One head's state S has a row for each value channel i and a column for each key channel j:

    S[i] <- S[i] * w + (S[i] @ a) * b + v[i] * k,    y[i] = S[i] @ r

No row depends on another row. B batch, T time, H heads, N channels of a head; all float32.
"""

import numba
import numpy as np
import torch

CHUNK = 16  # States are kept every 16 steps; those between are computed again for the gradient.


@numba.njit(fastmath=True, cache=True)
def _step(state, w, a, b, k, v, scratch):
    """Update one head's `state` in place with one token. Writes `S @ a` into `scratch`."""
    n = len(w)
    for i in range(n):
        row = state[i]
        total = np.float32(0)
        for j in range(n):
            total += row[j] * a[j]
        scratch[i] = total
        value = v[i]
        for j in range(n):
            row[j] = row[j] * w[j] + total * b[j] + value * k[j]


@numba.njit(parallel=True, fastmath=True, cache=True)
def forward(r, w, k, v, a, b, first, y, kept, last):
    n_batch, n_time, n_head, n = r.shape
    for task in numba.prange(n_batch * n_head):
        p, h = task // n_head, task % n_head
        state = first[p, h].copy()
        scratch = np.empty(n, np.float32)
        for t in range(n_time):
            if t % CHUNK == 0:
                kept[p, h, t // CHUNK] = state
            _step(state, w[p, t, h], a[p, t, h], b[p, t, h], k[p, t, h], v[p, t, h], scratch)
            for i in range(n):
                total = np.float32(0)
                for j in range(n):
                    total += state[i, j] * r[p, t, h, j]
                y[p, t, h, i] = total
        last[p, h] = state


@numba.njit(fastmath=True, cache=True)
def _step_back(old, new, sa, gs, r, w, k, v, a, b, gy, gr, gw, gk, gv, ga, gb):
    """Compute the gradients of one token of one head.

    `gs` holds the gradient of the state after the token, and is overwritten with the gradient of
    the state before the token.
    """
    n = len(w)
    for i in range(n):
        g, before, after = gs[i], old[i], new[i]
        out, sum_a, value = gy[i], sa[i], v[i]
        g_sa = np.float32(0)
        g_v = np.float32(0)
        for j in range(n):
            now = g[j] + out * r[j]
            g[j] = now
            g_sa += now * b[j]
            g_v += now * k[j]
            gr[j] += after[j] * out
            gw[j] += now * before[j]
            gb[j] += now * sum_a
            gk[j] += now * value
        gv[i] = g_v
        for j in range(n):
            ga[j] += g_sa * before[j]
            g[j] = g[j] * w[j] + g_sa * a[j]


@numba.njit(parallel=True, fastmath=True, cache=True)
def backward(r, w, k, v, a, b, kept, gy, gr, gw, gk, gv, ga, gb):
    n_batch, n_time, n_head, n = r.shape
    for task in numba.prange(n_batch * n_head):
        p, h = task // n_head, task % n_head
        gs = np.zeros((n, n), np.float32)
        states = np.empty((CHUNK + 1, n, n), np.float32)
        sa = np.empty((CHUNK, n), np.float32)
        for chunk in range((n_time + CHUNK - 1) // CHUNK - 1, -1, -1):
            start = chunk * CHUNK
            size = min(CHUNK, n_time - start)
            states[0] = kept[p, h, chunk]
            for s in range(size):
                t = start + s
                states[s + 1] = states[s]
                _step(
                    states[s + 1], w[p, t, h], a[p, t, h], b[p, t, h], k[p, t, h], v[p, t, h], sa[s]
                )
            for s in range(size - 1, -1, -1):
                t = start + s
                _step_back(
                    states[s], states[s + 1], sa[s], gs,
                    r[p, t, h], w[p, t, h], k[p, t, h], v[p, t, h], a[p, t, h], b[p, t, h],
                    gy[p, t, h],
                    gr[p, t, h], gw[p, t, h], gk[p, t, h], gv[p, t, h], ga[p, t, h], gb[p, t, h],
                )  # fmt: skip


class WKV7(torch.autograd.Function):
    """y [B, T, H, N] and the last state [B, H, N, N]; gradients stop at the first state."""

    @staticmethod
    def forward(ctx, r, w, k, v, a, b, first):
        inputs = [x.detach().contiguous().numpy() for x in (r, w, k, v, a, b)]
        n_batch, n_time, n_head, n = r.shape
        y = torch.empty(r.shape)
        last = torch.empty_like(first)
        kept = np.empty((n_batch, n_head, (n_time + CHUNK - 1) // CHUNK, n, n), np.float32)
        forward(*inputs, first.numpy(), y.numpy(), kept, last.numpy())
        ctx.arrays = (*inputs, kept)
        ctx.mark_non_differentiable(last)
        return y, last

    @staticmethod
    def backward(ctx, gy, _):
        grads = [torch.zeros(gy.shape) for _ in range(6)]
        gr, gw, gk, gv, ga, gb = grads
        backward(*ctx.arrays, gy.contiguous().numpy(), *(g.numpy() for g in grads))
        return gr, gw, gk, gv, ga, gb, None
