"""The WKV sum over time and its gradient, as two loops compiled by Numba."""

import numba
import numpy as np
import torch


@numba.njit(parallel=True, fastmath=True, cache=True)
def wkv_forward(ew, eu, ek, v, a0, b0, y, a, b):
    n_batch, n_time, n_embd = v.shape
    for i in numba.prange(n_batch):
        a[i, 0] = a0[i]
        b[i, 0] = b0[i]
        for t in range(n_time):
            for c in range(n_embd):
                now = ek[i, t, c]
                bonus = eu[c] * now
                y[i, t, c] = (a[i, t, c] + bonus * v[i, t, c]) / (b[i, t, c] + bonus)
                a[i, t + 1, c] = ew[c] * a[i, t, c] + now * v[i, t, c]
                b[i, t + 1, c] = ew[c] * b[i, t, c] + now


@numba.njit(parallel=True, fastmath=True, cache=True)
def wkv_backward(ew, eu, ek, v, y, a, b, gy, gew, geu, gek, gv):
    n_batch, n_time, n_embd = v.shape
    for i in numba.prange(n_batch):
        ga = np.zeros(n_embd)
        gb = np.zeros(n_embd)
        for t in range(n_time - 1, -1, -1):
            for c in range(n_embd):
                now = ek[i, t, c]
                bonus = eu[c] * now
                g_num = gy[i, t, c] / (b[i, t, c] + bonus)
                g_den = -g_num * y[i, t, c]
                g_bonus = g_num * v[i, t, c] + g_den
                gek[i, t, c] = eu[c] * g_bonus + ga[c] * v[i, t, c] + gb[c]
                gv[i, t, c] = bonus * g_num + now * ga[c]
                geu[i, c] += now * g_bonus
                gew[i, c] += ga[c] * a[i, t, c] + gb[c] * b[i, t, c]
                ga[c] = ew[c] * ga[c] + g_num
                gb[c] = ew[c] * gb[c] + g_den


class WKV(torch.autograd.Function):
    """The plain (unstabilised) WKV sum in float64, where keys clamped to +-60 cannot overflow."""

    @staticmethod
    def forward(ctx, ew, eu, ek, v, a0, b0):
        n_batch, n_time, n_embd = v.shape
        y = torch.empty_like(v)
        a = torch.empty(n_batch, n_time + 1, n_embd, dtype=v.dtype)
        b = torch.empty_like(a)
        wkv_forward(*(x.detach().numpy() for x in (ew, eu, ek, v, a0, b0, y, a, b)))
        ctx.save_for_backward(ew, eu, ek, v, y, a, b)
        return y, a[:, -1], b[:, -1]

    @staticmethod
    def backward(ctx, gy, _ga, _gb):
        saved = ctx.saved_tensors
        n_batch, _, n_embd = gy.shape
        gew, geu = (torch.zeros(n_batch, n_embd, dtype=gy.dtype) for _ in range(2))
        gek, gv = torch.empty_like(gy), torch.empty_like(gy)
        arrays = (*saved, gy.contiguous(), gew, geu, gek, gv)
        wkv_backward(*(x.detach().numpy() for x in arrays))
        return gew.sum(0), geu.sum(0), gek, gv, None, None
