"""RWKV-7 ("Goose", arXiv 2503.14456) for training, with gradients.

Initial values follow BlinkDL's RWKV-LM. B batch, T time, D width, H heads of N channels.
"""

import torch
import torch.nn.functional as F
from torch import nn
from wkv7 import WKV7

N_LAYER, N_EMBD, N_VOCAB = 6, 256, 4096
N_HEAD, HEAD_SIZE = 4, 64
RANKS = {"w": 32, "a": 32, "v": 32, "g": 64}


def shifted(x, last):
    return torch.cat((last[:, None], x[:, :-1]), 1)


def mix(x, before, amounts):
    """Return `x` mixed with the token before it, once for each row of `amounts`."""
    return [torch.addcmul(x, before - x, amount) for amount in amounts.unbind(0)]


def before_scan(w, k, a, k_k, k_a):
    """Return decay, key, and the two vectors of the state's rank-one update, each [B, T, H, N]."""
    heads = (*k.shape[:2], N_HEAD, HEAD_SIZE)
    a = a.sigmoid()
    kk = F.normalize((k * k_k).view(heads), dim=-1)
    k = k * (1 + (a - 1) * k_a)
    w = torch.exp(-0.6065306597 * w.sigmoid())
    return w.view(heads), k.view(heads), -kk, kk * a.view(heads)


def after_scan(y, r, k, v, g, r_k, weight, bias):
    """Apply group norm, the present token's bonus and the gate. Returns [B, T, D]."""
    flat = (*y.shape[:2], N_EMBD)
    mean = y.mean(-1, keepdim=True)
    centered = y - mean
    y = centered * torch.rsqrt(centered.square().mean(-1, keepdim=True) + 64e-5)
    bonus = (r * k * r_k).sum(-1, keepdim=True) * v
    return (y.reshape(flat) * weight + bias + bonus.reshape(flat)) * g


# Fused: apart, these elementwise operations take as long as the products.
mix = torch.compile(mix, dynamic=True)
before_scan = torch.compile(before_scan, dynamic=True)
after_scan = torch.compile(after_scan, dynamic=True)


def linear(rows, columns, bound):
    layer = nn.Linear(columns, rows, bias=False)
    nn.init.uniform_(layer.weight, -bound, bound) if bound else nn.init.zeros_(layer.weight)
    return layer


class TimeMix(nn.Module):
    def __init__(self, layer: int):
        super().__init__()
        depth, fade = layer / (N_LAYER - 1), 1 - layer / N_LAYER
        place = torch.arange(N_EMBD) / (N_EMBD - 1)
        ramp = torch.arange(N_EMBD) / N_EMBD
        within = torch.arange(N_EMBD) % HEAD_SIZE / (HEAD_SIZE - 1) * 2 - 1
        zigzag = within * within.abs()
        linear_part = place - 0.5

        def vector(values):
            return nn.Parameter(values.view(1, 1, N_EMBD).clone())

        for name, power in (("r", 0.2), ("w", 0.9), ("k", 0.7), ("v", 0.7), ("a", 0.9), ("g", 0.2)):
            setattr(self, f"x_{name}", vector(1 - ramp ** (power * fade)))
        self.w0 = vector(-6 + 6 * place ** (1 + depth**0.3) + 0.5 + zigzag * 2.5)
        self.a0 = vector(-0.19 + zigzag * 0.3 + linear_part * 0.4)
        if layer:
            self.v0 = vector(0.73 - linear_part * 0.4)
        self.k_k, self.k_a = vector(0.71 - linear_part * 0.1), vector(torch.full((N_EMBD,), 1.02))
        self.r_k = nn.Parameter(torch.full((N_HEAD, HEAD_SIZE), -0.04))
        for name, rank in RANKS.items():
            if layer or name != "v":
                setattr(self, f"{name}1", nn.Parameter(torch.zeros(N_EMBD, rank)))
                out = nn.init.orthogonal_(torch.empty(rank, N_EMBD), gain=0.1)
                setattr(self, f"{name}2", nn.Parameter(out))
        unit = N_EMBD**-0.5
        self.receptance = linear(N_EMBD, N_EMBD, 0.5 * unit)
        self.key = linear(N_EMBD, N_EMBD, 0.05 * unit)
        self.value = linear(N_EMBD, N_EMBD, 0.5 * unit)
        self.output = linear(N_EMBD, N_EMBD, 0)
        self.ln_x = nn.GroupNorm(N_HEAD, N_EMBD, eps=64e-5)
        nn.init.constant_(self.ln_x.weight, ((1 + layer) / N_LAYER) ** 0.7)

    def forward(self, x, state, v_first):
        last, first = state
        before = shifted(x, last)
        amounts = torch.stack((self.x_r, self.x_w, self.x_k, self.x_v, self.x_a, self.x_g))
        xr, xw, xk, xv, xa, xg = mix(x, before, amounts)
        r, k, v = self.receptance(xr), self.key(xk), self.value(xv)
        w = self.w0 + torch.tanh(xw @ self.w1) @ self.w2
        a = self.a0 + xa @ self.a1 @ self.a2
        g = torch.sigmoid(xg @ self.g1) @ self.g2
        if v_first is None:
            v_first = v
        else:
            v = torch.lerp(v, v_first, torch.sigmoid(self.v0 + xv @ self.v1 @ self.v2))
        heads = (*x.shape[:2], N_HEAD, HEAD_SIZE)
        w, k, removed, added = before_scan(w, k, a, self.k_k, self.k_a)
        r, v = r.view(heads), v.view(heads)
        y, state = WKV7.apply(r, w, k, v, removed, added, first)
        y = after_scan(y, r, k, v, g, self.r_k, self.ln_x.weight, self.ln_x.bias)
        return self.output(y), (x[:, -1].detach(), state), v_first


class ChannelMix(nn.Module):
    def __init__(self, layer: int):
        super().__init__()
        ramp = torch.arange(N_EMBD) / N_EMBD
        self.x_k = nn.Parameter((1 - ramp ** ((1 - layer / N_LAYER) ** 4)).view(1, 1, -1))
        self.key = linear(4 * N_EMBD, N_EMBD, 0.5 * N_EMBD**-0.5)
        self.value = linear(N_EMBD, 4 * N_EMBD, 0)

    def forward(self, x, last):
        k = self.key(torch.lerp(x, shifted(x, last), self.x_k))
        return self.value(k.relu().square()), x[:, -1].detach()


class Block(nn.Module):
    def __init__(self, layer: int):
        super().__init__()
        if layer == 0:
            self.ln0 = nn.LayerNorm(N_EMBD)
        self.ln1, self.ln2 = nn.LayerNorm(N_EMBD), nn.LayerNorm(N_EMBD)
        self.att, self.ffn = TimeMix(layer), ChannelMix(layer)

    def forward(self, x, state, v_first):
        if hasattr(self, "ln0"):
            x = self.ln0(x)
        y, time_state, v_first = self.att(self.ln1(x), state[:2], v_first)
        x = x + y
        y, last = self.ffn(self.ln2(x), state[2])
        return x + y, (*time_state, last), v_first


class RWKV7(nn.Module):
    def __init__(self):
        super().__init__()
        self.emb = nn.Embedding(N_VOCAB, N_EMBD)
        self.blocks = nn.ModuleList(Block(i) for i in range(N_LAYER))
        self.ln_out = nn.LayerNorm(N_EMBD)
        self.head = nn.Linear(N_EMBD, N_VOCAB, bias=False)
        nn.init.uniform_(self.emb.weight, -1e-4, 1e-4)
        nn.init.orthogonal_(self.head.weight, gain=0.5)

    def forward(self, tokens, state):
        x, new, v_first = self.emb(tokens), [], None
        for block, block_state in zip(self.blocks, state, strict=True):
            x, s, v_first = block(x, block_state, v_first)
            new.append(s)
        return self.ln_out(x), new


def empty_state(n_batch: int):
    shapes = (n_batch, N_EMBD), (n_batch, N_HEAD, HEAD_SIZE, HEAD_SIZE), (n_batch, N_EMBD)
    return [tuple(torch.zeros(shape) for shape in shapes) for _ in range(N_LAYER)]
