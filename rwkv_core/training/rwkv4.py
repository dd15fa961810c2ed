"""RWKV-4 for training: the same equations as rwkv-core's recurrence, with gradients.

Initial values follow BlinkDL's RWKV-LM. B batch, T time, D width, V vocabulary.
"""

import math

import torch
from torch import nn
from wkv import WKV

N_LAYER, N_EMBD, N_VOCAB = 6, 256, 4096


def shifted(x, last):
    return torch.cat((last[:, None], x[:, :-1]), 1)


def mixed(x, before, mix):
    return torch.lerp(before, x, mix)


class TimeMix(nn.Module):
    def __init__(self, layer: int):
        super().__init__()
        depth, fade = layer / (N_LAYER - 1), 1 - layer / N_LAYER
        place = torch.arange(N_EMBD) / (N_EMBD - 1)
        ramp = (torch.arange(N_EMBD) / N_EMBD).view(1, 1, -1)
        zigzag = (torch.arange(1, N_EMBD + 1) % 3 - 1) * 0.5
        self.time_decay = nn.Parameter(-5 + 8 * place ** (0.7 + 1.3 * depth))
        self.time_first = nn.Parameter(math.log(0.3) + zigzag)
        self.time_mix_k = nn.Parameter(ramp**fade)
        self.time_mix_v = nn.Parameter(ramp**fade + 0.3 * depth)
        self.time_mix_r = nn.Parameter(ramp ** (0.5 * fade))
        self.key, self.value, self.receptance, self.output = (
            nn.Linear(N_EMBD, N_EMBD, bias=False) for _ in range(4)
        )
        for matrix in (self.key, self.receptance, self.output):
            nn.init.zeros_(matrix.weight)
        nn.init.orthogonal_(self.value.weight)

    def forward(self, x, state):
        last, a, b = state
        before = shifted(x, last)
        k = self.key(mixed(x, before, self.time_mix_k)).double().clamp(-60, 60)
        v = self.value(mixed(x, before, self.time_mix_v)).double()
        r = self.receptance(mixed(x, before, self.time_mix_r)).sigmoid()
        decay = torch.exp(-torch.exp(self.time_decay.double()))
        y, a, b = WKV.apply(decay, self.time_first.double().exp(), k.exp(), v, a, b)
        return self.output(r * y.float()), (x[:, -1].detach(), a.detach(), b.detach())


class ChannelMix(nn.Module):
    def __init__(self, layer: int):
        super().__init__()
        ramp = (torch.arange(N_EMBD) / N_EMBD).view(1, 1, -1) ** (1 - layer / N_LAYER)
        self.time_mix_k = nn.Parameter(ramp.clone())
        self.time_mix_r = nn.Parameter(ramp.clone())
        self.key = nn.Linear(N_EMBD, 4 * N_EMBD, bias=False)
        self.receptance = nn.Linear(N_EMBD, N_EMBD, bias=False)
        self.value = nn.Linear(4 * N_EMBD, N_EMBD, bias=False)
        nn.init.orthogonal_(self.key.weight, gain=2.0)
        for matrix in (self.receptance, self.value):
            nn.init.zeros_(matrix.weight)

    def forward(self, x, last):
        before = shifted(x, last)
        k = self.key(mixed(x, before, self.time_mix_k)).relu().square()
        r = self.receptance(mixed(x, before, self.time_mix_r)).sigmoid()
        return r * self.value(k), x[:, -1].detach()


class Block(nn.Module):
    def __init__(self, layer: int):
        super().__init__()
        if layer == 0:
            self.ln0 = nn.LayerNorm(N_EMBD)
        self.ln1, self.ln2 = nn.LayerNorm(N_EMBD), nn.LayerNorm(N_EMBD)
        self.att, self.ffn = TimeMix(layer), ChannelMix(layer)

    def forward(self, x, state):
        if hasattr(self, "ln0"):
            x = self.ln0(x)
        y, time_state = self.att(self.ln1(x), state[:3])
        x = x + y
        y, last = self.ffn(self.ln2(x), state[3])
        return x + y, (*time_state, last)


class RWKV4(nn.Module):
    def __init__(self):
        super().__init__()
        self.emb = nn.Embedding(N_VOCAB, N_EMBD)
        self.blocks = nn.ModuleList(Block(i) for i in range(N_LAYER))
        self.ln_out = nn.LayerNorm(N_EMBD)
        self.head = nn.Linear(N_EMBD, N_VOCAB, bias=False)
        nn.init.uniform_(self.emb.weight, -1e-4, 1e-4)
        nn.init.orthogonal_(self.head.weight, gain=0.5)

    def forward(self, tokens, state):
        x, new = self.emb(tokens), []
        for block, block_state in zip(self.blocks, state, strict=True):
            x, s = block(x, block_state)
            new.append(s)
        return self.ln_out(x), new


def empty_state(n_batch: int):
    zeros = [
        torch.zeros(n_batch, N_EMBD, dtype=t)
        for t in (torch.float32, torch.float64, torch.float64, torch.float32)
    ]
    return [tuple(z.clone() for z in zeros) for _ in range(N_LAYER)]
