"""RWKV-5.2 and RWKV-6 (arXiv 2404.05892) for training: rwkv-core's equations, with gradients.

The models are small: they show what quantization costs, and are not bundled. Initial values follow
BlinkDL's RWKV-LM. B batch, T time, D width, V vocabulary, L layers, H heads of N channels.
"""

from functools import partial

import torch
from torch import nn
from wkv7 import WKV7

from rwkv_backend_torch.ops import TorchOps
from rwkv_core.architectures.base import Config
from rwkv_core.architectures.rwkv5 import RWKV5_2, decay_of
from rwkv_core.architectures.rwkv6 import RWKV6

N_LAYER, N_EMBD, N_FFN, N_VOCAB, N_HEAD, HEAD_SIZE = 4, 128, 448, 4096, 4, 32
SIZES = {"n_head": N_HEAD, "head_size": HEAD_SIZE}
RANKS = {"rank_maa_5": 80, "rank_maa": 16, "rank_decay": 32}


class TrainingOps(TorchOps):
    """TorchOps without the two methods that autograd cannot follow, as they work in place."""

    def relu_squared(self, x):
        return x.relu().square()

    def wkv6(self, r, w, k, v, bonus, s):
        """Compute the scan as RWKV-7's that removes nothing from S.

        RWKV-7 reads S after its update, RWKV-6 before it. So each token here updates S with the
        token before it; the first updates S with nothing.
        """
        heads = (N_HEAD, HEAD_SIZE)
        r, w, k, v = (x.expand_as(k).unflatten(-1, heads) for x in (r, w, k, v))
        zero = torch.zeros_like(k[:, :1])
        r_after, w_before = torch.cat((r, zero), 1), torch.cat((zero + 1, w), 1)
        k_before, v_before = (torch.cat((zero, x), 1) for x in (k, v))
        zeros = torch.zeros_like(k_before)
        s = s.unflatten(-1, heads).transpose(1, 2).contiguous()  # [B, H, N, N]
        y, s = WKV7.apply(r_after, w_before, k_before, v_before, zeros, zeros, s)
        now = (r * k * bonus.view(heads)).sum(-1, keepdim=True)
        return (y[:, :-1] + now * v).flatten(-2), s.transpose(1, 2).flatten(-2)


OPS = TrainingOps("float32", None, "cpu", None)


def initial(name, weight):
    layer = int(name.split(".")[1]) if name.startswith("blocks.") else 0
    depth, fade = layer / (N_LAYER - 1), 1 - layer / N_LAYER
    channel = torch.arange(N_EMBD)
    place, ramp = channel / (N_EMBD - 1), channel / N_EMBD
    last = name.rpartition(".")[2]
    if name == "head.weight":
        return nn.init.orthogonal_(torch.empty(weight.shape), gain=0.5)
    if weight.role != "vector":
        of_matrix = 0 if weight.feeds_stream else 0.5 * N_EMBD**-0.5
        of_low_rank = 0.01 if last.endswith("w2") else 0
        bound = {"table": 1e-4, "matrix": of_matrix, "low_rank": of_low_rank}[weight.role]
        return torch.empty(weight.shape).uniform_(-bound, bound)
    if last == "time_decay":
        values = -6 + 5 * place ** (0.7 + 1.3 * depth)
    elif last == "time_faaaa":
        values = depth * (1 - place) + ((channel + 1) % 3 - 1) * 0.1
    elif last.startswith("time_"):  # the share of the token itself, or in RWKV-6 of the one before
        halved = ".att." in name and last[-1] in "rg"
        values = ramp ** (fade / 2 if halved else fade) + 0.3 * depth * (last[-1] == "v")
        values = 1 - values if "maa" in last else values
    elif name.endswith("ln_x.weight"):
        values = torch.full((N_EMBD,), ((1 + layer) / N_LAYER) ** 0.7)
    else:
        values = torch.full((N_EMBD,), float(last == "weight"))
    return values.view(weight.shape).clone()


class Node(nn.Module):
    """Part of a tensor's name between two dots. A node with a `weight` multiplies with it."""

    def forward(self, x):
        return x @ self.weight.T


class Model(Node):
    def __init__(self, architecture, sizes):
        super().__init__()
        self.config = Config(N_LAYER, N_EMBD, N_FFN, N_VOCAB, architecture, sizes)
        for name, weight in self.config.weights().items():
            node, (*path, last) = self, name.split(".")
            for part in path:
                if not hasattr(node, part):
                    node.add_module(part, Node())
                node = getattr(node, part)
            node.register_parameter(last, nn.Parameter(initial(name, weight)))

    def forward(self, tokens, state):
        """Return the last layer norm's output [B, T, D] and the state after the last token."""
        weights = dict(self.named_parameters())
        p = self.config.parameters(lambda weight: for_equations(weight, weights[weight.name]))
        x = weights["emb.weight"][tokens]
        x, after = self.config.architecture.blocks(OPS, p, x, state[0][0])
        return OPS.layer_norm(x, *p.ln_out), [(after.detach(),)]


def for_equations(weight, value):
    """Return a parameter in the form in which the equations take it, as loading does."""
    if weight.role == "low_rank":
        return value.T if value.ndim == 2 else tuple(value.mT)
    if weight.transform is decay_of:
        value = torch.exp(-torch.exp(value))
    return value.flatten() if weight.role == "vector" else value


Eagle, Finch = partial(Model, RWKV5_2, SIZES), partial(Model, RWKV6, SIZES | RANKS)


def empty_state(n_batch):
    """Return the states [B, L, 2 + N, D] as the only part of an only layer."""
    return [(torch.zeros(n_batch, N_LAYER, 2 + HEAD_SIZE, N_EMBD),)]
