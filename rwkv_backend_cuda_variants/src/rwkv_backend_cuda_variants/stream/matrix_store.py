"""Stores a model's matrices: as many as fit on the device, and the rest in host memory."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import TypeAlias
from weakref import WeakSet

import torch
from torch import Tensor

from rwkv_backend_cuda_variants.stream.prefetch import HostTensor, Slots
from rwkv_core.backends.offload_plan import GB, OffloadPlan, as_target, plan_offload, target_bytes
from rwkv_core.errors import BackendError, OptionError

Split: TypeAlias = Callable[[Tensor, int], Sequence[Tensor]]

# Free CUDA memory that is not used for weights: room for the activations of a chunk of 512 tokens,
# logits and the workspaces of matrix products.
_RESERVE = 10**9


class Placed:
    """A stored matrix: on the device, or as one or more blocks of rows in host memory."""

    def __init__(self, on_device: Tensor | None, on_host: Sequence[HostTensor] = ()) -> None:
        self.on_device, self.on_host = on_device, on_host

    @property
    def nbytes(self) -> int:
        tensors = [block.tensor for block in self.on_host]
        return sum(t.nbytes for t in tensors) if self.on_device is None else self.on_device.nbytes


class MatrixStore:
    """Stores matrices on the device or the host, and runs products with them.

    Attributes:
        device: the device that computes products.
        target: largest size of the weights on the device, in bytes.
        slots: the two buffers on the device for matrices that are streamed from host memory; None
            while all matrices stay on the device.
    """

    def __init__(self, device: torch.device, target: float | None, pin_memory: bool | None) -> None:
        """Use `target` GB of `device`, by default all free memory.

        `pin_memory`: whether to pin the streamed matrices in host memory; by default on CUDA.
        Raises OptionError if the target is negative, infinite or NaN.
        """
        self.device = device
        self._given = target is not None
        self.target = _free_bytes(device) - _RESERVE if target is None else target_bytes(target)
        self._pin = device.type == "cuda" and pin_memory is not False
        self.slots: Slots | None = None
        self._vectors = 0
        self._promised = 0.0  # bytes reserved for the model and its slots
        self._resident: WeakSet[Placed] = WeakSet()
        self._others: WeakSet[Placed] = WeakSet()  # resident matrices that are not in the plan
        self._expected: list[tuple[int, bool]] = []

    def prepare(self, sizes: Sequence[int], vectors: int) -> OffloadPlan:
        """Make the offload plan of a model, from the bytes of its matrices in the order of use.

        `vectors` is the number of bytes of everything else on the device. Call `place` for the
        matrices in the same order. Raises OptionError if the target is too small for the model, or
        the device has too little free memory.
        """
        chosen = plan_offload(sizes, vectors, self.target)
        free = _free_bytes(self.device)
        if self._given and chosen.total > free:
            raise OptionError(
                f"option target: found {self.target / GB:g} GB; this model would take "
                f"{as_target(chosen.total)} GB of it, but {self.device} has {free / GB:.3f} GB free"
            )
        self._vectors, self._promised = vectors, chosen.total
        if chosen.slot:
            self.slots = Slots(chosen.slot, self.device)
        # `pop` takes them from the end.
        self._expected = list(zip(sizes, chosen.stays, strict=True))[::-1]
        return chosen

    @property
    def resident_bytes(self) -> int:
        """Bytes of weights on the device now: vectors, resident matrices and slots."""
        slots = 2 * self.slots.n_bytes if self.slots else 0
        return self._vectors + slots + _bytes(self._resident)

    def place(self, source: Tensor, dtype: torch.dtype, split: Split = Tensor.split) -> Placed:
        """Copy `source` [rows, ...] as `dtype` to the device or to host memory.

        A slot is one of the two device buffers for streamed matrices. `split(source, n)` divides a
        matrix that is larger than a slot into parts that are each at most as large as n rows.
        Raises OptionError if the target leaves no room for the matrix, and BackendError if the
        memory has run out.
        """
        try:
            return self._place(source, dtype, split)
        except torch.OutOfMemoryError as error:
            raise BackendError(
                f"{self.device} has run out of memory: does another process use it? Give a target "
                f"below {self.target / GB:.6g} GB"
            ) from error

    def _place(self, source: Tensor, dtype: torch.dtype, split: Split) -> Placed:
        n_bytes = source.numel() * dtype.itemsize
        size, stays = self._expected.pop() if self._expected else (0, False)
        announced = n_bytes <= size
        if not (stays if announced else self._has_room(n_bytes)):
            return self._on_host(source, dtype, split)
        placed = Placed(source.to(self.device, dtype, copy=True))
        self._resident.add(placed)
        if not announced:
            self._others.add(placed)
        return placed

    def _has_room(self, n_bytes: int) -> bool:
        """Return whether a matrix that is not in the offload plan stays on the device.

        `rwkv-core bench` makes such matrices, of `n_bytes` bytes. If the two buffers for streamed
        matrices do not exist yet, the matrix only stays if the target leaves room for them too.
        """
        if self.slots:
            return False
        room = self.target - self._promised - _bytes(self._others)
        if 3 * n_bytes <= room:
            return True
        self.slots = Slots(max(0, min(n_bytes, int(room // 2))), self.device)
        self._promised += 2 * self.slots.n_bytes
        return False

    def _on_host(self, source: Tensor, dtype: torch.dtype, split: Split) -> Placed:
        # One block, unless a matrix that is not in the plan is larger than a slot.
        n_bytes = source.numel() * dtype.itemsize
        n_rows = self.slots.n_bytes * len(source) // n_bytes
        parts = split(source, n_rows) if n_rows else ()
        if not parts:
            raise OptionError(
                f"option target: found {self.target / GB:g} GB, which leaves no room beside the "
                f"model for two parts of a matrix of {as_target(n_bytes)} GB"
            )
        blocks = [self._host_copy(rows, dtype) for rows in parts]
        for block in blocks:
            self.slots.add(block)
        return Placed(None, blocks)

    def _host_copy(self, rows: Tensor, dtype: torch.dtype) -> HostTensor:
        try:
            copy = torch.empty(rows.shape, dtype=dtype, pin_memory=self._pin, device="cpu")
        except RuntimeError as error:
            if not self._pin:
                raise
            reason = str(error).splitlines()[0]
            raise BackendError(
                f"no host memory can be pinned ({reason}); give pin_memory=false, which is slower"
            ) from error
        return HostTensor(copy.copy_(rows))

    def product(self, placed: Placed, product: Callable[[Tensor], Tensor]) -> Tensor:
        """Return `product(matrix)`, [..., rows], for a matrix [rows, ...] on the device.

        If the matrix was divided into parts, `product` is called for each part in order, and the
        results are joined.
        """
        if placed.on_device is not None:
            return product(placed.on_device)
        results = [self.slots.product(block, product) for block in placed.on_host]
        return results[0] if len(results) == 1 else torch.cat(results, dim=-1)


def _bytes(resident: Iterable[Placed]) -> int:
    return sum(one.on_device.nbytes for one in resident)


def _free_bytes(device: torch.device) -> float:
    """Return the free bytes of a CUDA device, with torch's unused cache; infinity for others."""
    if device.type != "cuda":
        return math.inf
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + unused
