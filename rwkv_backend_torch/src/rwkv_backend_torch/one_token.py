"""Computes `rwkv4.block` for one token of one sequence, with half of its vector operations.

A vector operation takes torch two microseconds, most of it overhead. So vectors that need the same
operation are stacked as rows of one tensor: the inputs of the token shifts, and the two exponents
of the scan. The equations are those of `rwkv4.block`. The conformance suite compares the results.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from rwkv_core.architectures.rwkv4 import AA, BB, CHANNEL_X, PP, TIME_X, Block

Matmul = Callable[[Any, Tensor], Tensor]


class Layer(NamedTuple):
    """A block's parameters; some of its vectors are also stacked in three tensors.

    Attributes:
        time_mix: mix vectors for k, v and r of time mixing, [3, D].
        channel_mix: mix vectors for k and r of channel mixing, [2, D].
        leads: minus the current token's bonus `first`, and `decay`, [2, D].
    """

    p: Block
    time_mix: Tensor
    channel_mix: Tensor
    leads: Tensor


def layers_of(blocks: Sequence[Block]) -> list[Layer]:
    return [
        Layer(
            p,
            torch.stack([p.time.mix_k, p.time.mix_v, p.time.mix_r]),
            torch.stack([p.channel.mix_k, p.channel.mix_r]),
            torch.stack([-p.time.first, p.time.decay]),
        )
        for p in blocks
    ]


def one_token(
    matmul: Matmul, layers: Sequence[Layer], x: Tensor, state: Tensor
) -> tuple[Tensor, Tensor]:
    """Run `x` [1, 1, D] and `state` [1, L, 5, D] through all layers. Returns the same shapes."""
    after = torch.empty_like(state)
    for layer, before, row in zip(layers, state[0].unbind(), after[0].unbind(), strict=True):
        x = _layer(matmul, layer, x, before, row)
    return x, after


def _layer(matmul: Matmul, layer: Layer, x: Tensor, before: Tensor, after: Tensor) -> Tensor:
    (ln1, time, ln2, channel), width = layer.p, x.shape[-1:]
    last = before.unbind()
    time_x = F.layer_norm(x, width, ln1.weight, ln1.bias, 1e-5)
    mixed = torch.lerp(last[TIME_X], time_x, layer.time_mix).split(1, dim=1)
    k, v, r = map(matmul, (time.key, time.value, time.receptance), mixed)
    # Exponent of the earlier tokens minus that of this token: for the mean, then for the new state.
    # Both exponents are taken relative to their maximum, so one of the two weights is always 1.
    leads = (layer.leads + last[PP]) - k  # [1, 2, D]
    kept, added = leads.clamp(max=0).exp_(), leads.neg().clamp_(max=0).exp_()
    aa = torch.addcmul(added * v, kept, last[AA])
    bb = torch.addcmul(added, kept, last[BB])
    pp = leads[:, 1:].clamp_(min=0).add_(k)
    wkv = torch.sigmoid(r).mul_(aa[:, :1].div_(bb[:, :1]))
    x = x + matmul(time.output, wkv)

    channel_x = F.layer_norm(x, width, ln2.weight, ln2.bias, 1e-5)
    mixed = torch.lerp(last[CHANNEL_X], channel_x, layer.channel_mix).split(1, dim=1)
    k = torch.relu(matmul(channel.key, mixed[0]))
    r = torch.sigmoid(matmul(channel.receptance, mixed[1]))
    parts = [channel_x[0], time_x[0], aa[0, 1:], bb[0, 1:], pp[0]]
    torch.cat(parts, out=after)
    return x.addcmul_(r, matmul(channel.value, k.mul_(k)))
