"""Runs `rwkv4.block` on a GPU with the kernels of `kernels`: seven launches per token and layer.

The equations are the same as in `rwkv4.block`. The conformance suite compares the results.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from rwkv_backend_torch.cuda import kernels
from rwkv_backend_torch.cuda.weights import Weights
from rwkv_core.architectures.rwkv4 import AA, BB, CHANNEL_X, PP, TIME_X, Block
from rwkv_core.backends.tensor_ops import EPSILON

_SCAN_ROWS = {"AA": AA, "BB": BB, "PP": PP}
_BLOCK_TIME, _BLOCK_SCAN = 64, 16
_BLOCK_VALUES = 1024
_BLOCK_OUT = 4


class Layer(NamedTuple):
    """A block's parameters; the mix vectors of its token shifts are also stacked in two tensors.

    Attributes:
        time_mix: the mix vectors for k, v and r of time mixing, [3, D].
        channel_mix: the mix vectors for k and r of channel mixing, [2, D].
    """

    p: Block
    time_mix: Tensor
    channel_mix: Tensor


class GPULayers:
    """Runs layers with the matrix products of `ops`, a TorchOps."""

    def __init__(self, ops: Any) -> None:
        self._ops = ops

    @staticmethod
    def layers_of(blocks: Sequence[Block]) -> list[Layer]:
        return [
            Layer(
                p,
                torch.stack([p.time.mix_k, p.time.mix_v, p.time.mix_r]),
                torch.stack([p.channel.mix_k, p.channel.mix_r]),
            )
            for p in blocks
        ]

    def run(self, layers: Sequence[Layer], x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Run `x` [B, T, D] and `state` [B, L, 5, D] through all layers. Shapes stay the same."""
        x, state = x.contiguous(), state.contiguous()
        after = torch.empty_like(state)
        for i, layer in enumerate(layers):
            x = self._layer(layer, x, state[:, i], after[:, i])
        return x, after

    def _layer(self, layer: Layer, x: Tensor, before: Tensor, after: Tensor) -> Tensor:
        ln1, time, ln2, channel = layer.p
        mixed = self._norm_and_mix(x, ln1, layer.time_mix, before, after, TIME_X, time.key)
        k, v, r = self._products([time.key, time.value, time.receptance], mixed)
        y = self._wkv(k, v, r, time, before, after, x.shape)
        (x,) = self._products([time.output], y[None], ["add"], base=x)
        mixed = self._norm_and_mix(x, ln2, layer.channel_mix, before, after, CHANNEL_X, channel.key)
        finishes = ["relu_squared", "sigmoid"]
        k, r = self._products([channel.key, channel.receptance], mixed, finishes)
        (x,) = self._products([channel.value], k[None], ["add_gated"], base=x, gate=r)
        return x

    def _type_for(self, matrix: Any, n_rows: int) -> torch.dtype:
        """Return the dtype of activations that are multiplied with `matrix`."""
        many = n_rows > 1 and isinstance(matrix, Tensor) and matrix.dtype == torch.bfloat16
        return torch.bfloat16 if many else torch.float32

    def _norm_and_mix(
        self, x: Tensor, norm: Any, mixes: Tensor, before: Tensor, after: Tensor, row: int,
        matrix: Any,
    ) -> Tensor:  # fmt: skip
        n_batch, n_time, width = x.shape
        n_rows, n_mixes = n_batch * n_time, len(mixes)
        mixed = x.new_empty(n_mixes, n_rows, width, dtype=self._type_for(matrix, n_rows))
        block = triton.next_power_of_2(width)
        kernels.norm_and_mix[(n_rows,)](
            x, before, norm.weight, norm.bias, mixes, mixed, after, n_rows, n_time, width,
            before.stride(0), after.stride(0), ROW=row, N_MIXES=n_mixes, BLOCK=block,
            EPSILON=EPSILON, num_warps=8 if block >= 2048 else 4,
        )  # fmt: skip
        return mixed

    def _wkv(
        self, k: Tensor, v: Tensor, r: Tensor, time: Any, before: Tensor, after: Tensor,
        shape: torch.Size,
    ) -> Tensor:  # fmt: skip
        n_batch, n_time, width = shape
        y = k.new_empty(k.shape, dtype=self._type_for(time.output, n_batch * n_time))
        strides = before.stride(0), after.stride(0)
        arrays = k, v, r, time.decay, time.first, before, after, y
        if n_time == 1:
            grid = triton.cdiv(width, 128), n_batch
            kernels.wkv_of_a_token[grid](*arrays, width, *strides, **_SCAN_ROWS, BLOCK=128)
        else:
            block_time = min(_BLOCK_TIME, triton.next_power_of_2(n_time))
            kernels.wkv_of_many[(triton.cdiv(width, _BLOCK_SCAN), n_batch)](
                *arrays, n_time, width, *strides, **_SCAN_ROWS,
                BLOCK_TIME=block_time, BLOCK=_BLOCK_SCAN,
            )  # fmt: skip
        return y

    def _products(
        self, matrices: list[Any], x: Tensor, finishes: list[str] | None = None,
        base: Tensor | None = None, gate: Tensor | None = None,
    ) -> list[Tensor]:  # fmt: skip
        """Multiply each of n matrices with its part of `x` [n, rows, in], and apply its finish.

        A finish is the operation on the product: "" for none, "relu_squared", "sigmoid", or "add"
        and "add_gated", which add the product to `base`. Returns an array [rows, out] for each
        matrix. If `base` is given, returns one array of its shape.
        """
        finishes = finishes or [""] * len(matrices)
        weights = [self._ops.weights(matrix) for matrix in matrices] if x.shape[1] == 1 else [None]
        if None not in weights:
            results = products_of_a_row(weights, x, finishes, base, gate)
        else:
            found = [self._product(*both) for both in zip(matrices, x, strict=True)]
            results = [
                self._finish(y, finish, base, gate, matrix)
                for y, finish, matrix in zip(found, finishes, matrices, strict=True)
            ]
        return results if base is None else [results[0].view(base.shape)]

    def _product(self, matrix: Any, x: Tensor) -> Tensor:
        """Return `x` [rows, in] times the transposed matrix: float32 [rows, out]."""
        if x.dtype == torch.float32:
            return self._ops.matmul(matrix, x[None])[0]
        if x.is_cuda:
            return torch.mm(x, matrix.mT, out_dtype=torch.float32)
        return torch.mm(x.float(), matrix.float().mT)

    def _finish(
        self, y: Tensor, finish: str, base: Tensor | None, gate: Tensor | None, matrix: Any
    ) -> Tensor:
        if finish == "relu_squared":
            result = torch.empty_like(y, dtype=self._type_for(matrix, len(y)))
            grid = (triton.cdiv(y.numel(), _BLOCK_VALUES),)
            kernels.relu_squared[grid](y.contiguous(), result, y.numel(), BLOCK=_BLOCK_VALUES)
            return result
        if finish == "sigmoid":
            return torch.sigmoid(y)
        if finish == "add":
            return y.view(base.shape).add_(base)
        if finish == "add_gated":
            return torch.addcmul(base, y.to(base.dtype).view(base.shape), gate.view(base.shape))
        return y


def products_of_a_row(
    weights: list[Weights], x: Tensor, finishes: list[str], base: Tensor | None, gate: Tensor | None
) -> list[Tensor]:
    """Multiply up to three matrices, each with one row of `x` [n, 1, in], in one launch.

    `finishes` names the operation that is applied to each product, such as "sigmoid"; see
    `GPULayers._products`. Returns float32 arrays [1, out].
    """
    n_in = weights[0].shape[1]
    results = [x.new_empty(1, one.shape[0], dtype=torch.float32) for one in weights]
    blocks = sum(triton.cdiv(one.shape[0], _BLOCK_OUT) for one in weights)
    matrices: list[Any] = []
    for i in range(3):
        one, y = (weights[i], results[i]) if i < len(weights) else (weights[0], results[0])
        matrices += [one.codes, one.scales, one.offsets, y, one.shape[0] if i < len(weights) else 0]
    kernels.products_of_a_row[(blocks,)](
        x, n_in, *matrices, base, gate, n_in,
        *[*finishes, "", ""][:3], weights[0].bits, weights[0].group_size,
        BLOCK_OUT=_BLOCK_OUT, BLOCK_IN=_block_in(n_in, weights[0]),
    )  # fmt: skip
    return results


def _block_in(n_in: int, weights: Weights) -> int:
    most = 1024 if weights.bits == 16 else 512 if weights.bits == 32 else 2048
    sizes = (size for size in (2048, 1024, 512, 256) if size <= most and n_in % size == 0)
    return max(next(sizes, 256), weights.group_size)
