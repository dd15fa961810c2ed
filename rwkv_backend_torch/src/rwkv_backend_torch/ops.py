"""RWKV's operations on torch tensors, on any device that torch supports."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import array_api_compat.torch as xp
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from rwkv_backend_torch.busy_cores import BusyCores
from rwkv_backend_torch.cuda.graph import RecordedFunction
from rwkv_backend_torch.cuda.weights import Weights, has_kernels, plain_weights
from rwkv_backend_torch.head_scans import wkv6, wkv7
from rwkv_backend_torch.one_token import layers_of, one_token
from rwkv_backend_torch.packed import PackedMatrix, packs, widened_product, widens
from rwkv_backend_torch.wkv import wkv
from rwkv_core.backends.tensor_ops import TensorOps, WKVState
from rwkv_core.errors import BackendError, OptionError
from rwkv_core.util.printable import printable
from rwkv_core.util.threads import available_threads

_MAX_THREADS = 1024


class TorchOps(TensorOps):
    """The contract's operations on one torch device.

    Attributes:
        records: whether decoding is recorded as a CUDA graph. A subclass sets it to False if each
            of its products first copies the matrix to the device.
    """

    xp = xp

    def __init__(
        self, dtype: str, runtime_dtype: str | None, device: str | None, threads: int | None
    ) -> None:
        self._device = torch_device(device)
        self.device = str(self._device)
        self.dtype = dtype
        self.runtime_dtype = runtime_dtype or ("float64" if dtype == "float64" else "float32")
        if self._device.type == "mps" and "float64" in (self.dtype, self.runtime_dtype):
            raise OptionError("option dtype: found float64, which mps does not have; use float32")
        self.records = self._device.type == "cuda"
        self.ragged = self._device.type == "cpu"
        self._layers: tuple[Any, list[Any]] = None, []
        self._gpu_layers: Any = None
        if self.runtime_dtype == "float32" and has_kernels(self._device):
            from rwkv_backend_torch.cuda.layers import GPULayers

            self._gpu_layers = GPULayers(self)
        self._packs = not self._gpu_layers and packs(self._device, getattr(torch, dtype))
        _set_threads(threads)
        self._busy_cores = BusyCores()
        if self._device.type != "cpu" or torch.get_num_threads() > 1:
            self.threaded_library = "torch"

    def vector(self, array: NDArray[Any]) -> Tensor:
        return self._place(array, self.runtime_dtype)

    def matrix(self, array: NDArray[Any]) -> Tensor | PackedMatrix:
        if self._packs:
            # No copy here: packing makes one.
            return self.packed(as_tensor(array).to(getattr(torch, self.dtype)))
        return self._place(array, self.dtype)

    def low_rank_matrix(self, array: NDArray[Any]) -> Tensor | PackedMatrix:
        # For one row, a packed float32 product is 2 to 6 times slower with so few weights.
        return self._place(array, self.dtype) if self.dtype == "float32" else self.matrix(array)

    def packed(self, matrix: Tensor) -> Tensor | PackedMatrix:
        """Return the matrix in the layout with the fastest products on this device."""
        return PackedMatrix(matrix) if self._packs else matrix

    def _place(self, array: NDArray[Any], dtype: str) -> Tensor:
        return as_tensor(array).to(self._device, getattr(torch, dtype), copy=True)

    def to_numpy(self, array: Tensor) -> NDArray[Any]:
        return array.numpy(force=True)

    def matmul(self, matrix: Tensor | PackedMatrix, x: Tensor) -> Tensor:
        if isinstance(matrix, PackedMatrix):
            return matrix.product(x)
        if matrix.dtype == x.dtype:
            return F.linear(x, matrix)
        if matrix.is_cuda and matrix.itemsize == 2:
            return _product_in_16_bits(matrix, x)
        if widens(matrix, x):
            return widened_product(matrix, x)
        if matrix.dtype != torch.float16:
            return F.linear(x.to(matrix.dtype), matrix).to(x.dtype)
        # The largest float16 is 65504, so scale x: see TensorOps.matmul.
        scale = x.abs().amax(-1, keepdim=True).clamp_(min=1.0).mul_(64.0)
        return F.linear((x / scale).to(matrix.dtype), matrix).to(x.dtype).mul_(scale)

    def embedding(self, array: NDArray[Any]) -> Tensor:
        return as_tensor(array).to(self._device, copy=True)

    def embed(self, table: Tensor, tokens: NDArray[np.int64]) -> Tensor:
        rows = table[torch.from_numpy(tokens).to(self._device)]
        return rows.to(getattr(torch, self.runtime_dtype))

    def layer_norm(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return F.layer_norm(x, weight.shape, weight, bias, 1e-5)

    def token_shift(self, x: Tensor, last: Tensor) -> Tensor:
        if x.shape[1] == 1:
            return last[:, None]
        return torch.cat([last[:, None], x[:, :-1]], dim=1)

    def mix(self, x: Tensor, previous: Tensor, mix: Tensor) -> Tensor:
        return torch.lerp(previous, x, mix)

    def sigmoid(self, x: Tensor) -> Tensor:
        return torch.sigmoid(x)

    def relu_squared(self, x: Tensor) -> Tensor:
        # square() calls pow, which is several times slower.
        x = torch.relu(x)
        return x.mul_(x)

    def wkv(
        self, k: Tensor, v: Tensor, decay: Tensor, first: Tensor, state: WKVState
    ) -> tuple[Tensor, WKVState]:
        return wkv(k, v, decay, first, state)

    def normalize_heads(self, x: Tensor, head_size: int) -> Tensor:
        return F.normalize(x.unflatten(-1, (-1, head_size)), dim=-1, eps=1e-12).flatten(-2)

    def group_norm(
        self, x: Tensor, weight: Tensor, bias: Tensor, head_size: int, epsilon: float
    ) -> Tensor:
        # As a layer norm of each head: F.group_norm expects the channels before the time.
        heads = F.layer_norm(x.unflatten(-1, (-1, head_size)), (head_size,), eps=epsilon)
        return torch.addcmul(bias, heads.flatten(-2), weight)

    def wkv6(
        self, r: Tensor, w: Tensor, k: Tensor, v: Tensor, bonus: Tensor, s: Tensor
    ) -> tuple[Tensor, Tensor]:
        return wkv6(r, w, k, v, bonus, s)

    def wkv7(
        self, r: Tensor, w: Tensor, k: Tensor, v: Tensor, kk: Tensor, b: Tensor, s: Tensor
    ) -> tuple[Tensor, Tensor]:
        return wkv7(r, w, k, v, kk, b, s)

    def layers(
        self,
        block: Callable[..., Any],
        blocks: Sequence[Any],
        x: Tensor,
        state: Tensor,
        kernel: str = "",
    ) -> tuple[Tensor, Tensor]:
        own = kernel == "rwkv4" and isinstance(x, Tensor)
        if not own or not (self._gpu_layers or x.shape[:2] == (1, 1)):
            if not isinstance(state, Tensor):
                return super().layers(block, blocks, x, state, kernel)
            # Copy each layer's state while it is in the cache; stacking all at the end is slower.
            after = torch.empty_like(state)
            for i, p in enumerate(blocks):
                x, after[:, i] = block(self, p, x, state[:, i])
            return x, after
        known, layers = self._layers
        if blocks is not known:
            layers = self._gpu_layers.layers_of(blocks) if self._gpu_layers else layers_of(blocks)
            self._layers = blocks, layers
        if self._gpu_layers:
            return self._gpu_layers.run(layers, x, state)
        return one_token(self.matmul, layers, x, state)

    def weights(self, matrix: Any) -> Weights | None:
        """Return `matrix` for the kernel `products_of_a_row`; None if the kernel cannot read it."""
        return plain_weights(matrix) if isinstance(matrix, Tensor) else None

    def compile(self, function: Callable[..., Any], kernel: str = "") -> Callable[..., Any]:
        if self.records:
            return RecordedFunction(function)
        # Not inference_mode: callers may change the results in place, for example to ban a token.
        run = torch.no_grad()(function)
        return self._busy_cores.watch(run) if self._device.type == "cpu" else run


def _product_in_16_bits(matrix: Tensor, x: Tensor) -> Tensor:
    """Return `x` [B, T, in] times the transposed 16-bit `matrix` [out, in] on CUDA: [B, T, out].

    The result has the dtype of `x`. It is the tensor cores' float32 sums, since rounding them to
    float16 would lose small results: float16 has no values below 6e-8, and few digits below 6e-5.
    """
    rows, scale = x.reshape(-1, x.shape[-1]), None
    if matrix.dtype == torch.float16:
        scale = rows.abs().amax(-1, keepdim=True).clamp_(min=1.0)
        rows = rows / scale
    y = torch.mm(rows.to(matrix.dtype), matrix.mT, out_dtype=torch.float32)
    y = y.to(x.dtype) if scale is None else y * scale
    return y.view(*x.shape[:-1], -1)


def _set_threads(threads: int | None) -> None:
    """Set torch's number of threads; by default torch's choice, limited by the CPU quota."""
    if threads is None:
        if "OMP_NUM_THREADS" not in os.environ and available_threads() < torch.get_num_threads():
            torch.set_num_threads(available_threads())
        return
    # OpenMP ends the process if the system refuses so many threads.
    if not 1 <= threads <= _MAX_THREADS:
        raise OptionError(f"option threads: found {threads}, expected 1 to {_MAX_THREADS}")
    torch.set_num_threads(threads)


def torch_device(name: str | None) -> torch.device:
    """Return the device of this name; by default the accelerator of this machine, else the CPU.

    Raises BackendError if the device is not available.
    """
    if name is None:
        accelerator = torch.accelerator.current_accelerator(check_available=True)
        return accelerator or torch.device("cpu")
    try:
        device = torch.device(name)
        probe(device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise BackendError(
            f"option device: {name!r} is not available here: {first_sentence(error)}"
        ) from None
    return device


def probe(device: str | torch.device) -> torch.device:
    """Copy a tensor to the device and back. Returns the device with its number.

    If the copy fails, raises torch's own errors, which have several types.
    """
    tensor = torch.zeros(1, device=device)
    tensor.cpu()
    return tensor.device


def first_sentence(error: Exception) -> str:
    """Return the first sentence of torch's message; some go on with long lists or debug hints."""
    first_line = str(error).partition("\n")[0]
    return printable(first_line).partition(". ")[0][:200]


def as_tensor(array: NDArray[Any]) -> Tensor:
    """Return a tensor that shares the array's memory, if the array is contiguous.

    bfloat16 is passed as int16: torch does not know the bfloat16 dtype of ml_dtypes.
    """
    array = np.ascontiguousarray(array)
    bfloat16 = array.dtype.name == "bfloat16"
    with warnings.catch_warnings():
        # Views of a memory-mapped file are read-only. Every caller copies the tensor.
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")
        tensor = torch.from_numpy(array.view(np.int16) if bfloat16 else array)
    return tensor.view(torch.bfloat16) if bfloat16 else tensor
