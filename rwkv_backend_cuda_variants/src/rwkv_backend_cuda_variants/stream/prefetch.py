"""Two buffers (slots) on a device. Tensors are copied there from host memory before their use.

While a product reads one slot, the other slot is filled on a separate CUDA stream. A model uses its
matrices in the same order for every token, so it is known which tensor to copy next. If the
order changes, a product waits for its copy, and the result is still correct.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from itertools import count
from weakref import WeakValueDictionary

import torch
from torch import Tensor

_numbers = count()


class HostTensor:
    """A contiguous tensor in host memory, which is copied to the device for each use.

    `follower` is the `number` of the HostTensor that was used after this one the last time.
    References to the objects themselves would form a cycle, which would keep the memory until the
    garbage collector runs.
    """

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor
        self.number = self.follower = next(_numbers)


class _Slot:
    def __init__(self, n_bytes: int, device: torch.device) -> None:
        self.buffer = torch.empty(n_bytes, dtype=torch.uint8, device=device)
        self.holds: int | None = None  # the number of a HostTensor
        self.filled = torch.cuda.Event() if device.type == "cuda" else None

    def like(self, tensor: Tensor) -> Tensor:
        """Return a view of the slot's beginning, in the type and shape of `tensor`."""
        return self.buffer[: tensor.nbytes].view(tensor.dtype).view(tensor.shape)


class Slots:
    """Copies host tensors of at most `n_bytes` each to the device, and multiplies with the copies.

    Attributes:
        copied: bytes copied to the device so far.
        late: number of tensors that were needed before their copy had begun.
    """

    def __init__(self, n_bytes: int, device: torch.device) -> None:
        self.n_bytes, self.copied, self.late = n_bytes, 0, 0
        self._device, self._slots = device, [_Slot(n_bytes, device) for _ in range(2)]
        self._side = torch.cuda.Stream(device) if device.type == "cuda" else None
        if self._side is not None:
            for slot in self._slots:
                # A buffer that is freed during a copy must not be reused before the copy ends.
                slot.buffer.record_stream(self._side)
        self._tensors: WeakValueDictionary[int, HostTensor] = WeakValueDictionary()
        self._first: int | None = None
        self._last_added: int | None = None
        self._last_used: int | None = None
        # Two threads in one model take turns: a slot is refilled once its product has started.
        self._lock = threading.Lock()

    def add(self, tensor: HostTensor) -> None:
        """Append `tensor` to the expected order of use, which repeats from the first tensor."""
        with self._lock:
            self._tensors[tensor.number] = tensor
            if self._first is None:
                self._first = tensor.number
            self._follow(self._last_added, tensor.number)
            self._follow(tensor.number, self._first)
            self._last_added = tensor.number

    def product(self, tensor: HostTensor, product: Callable[[Tensor], Tensor]) -> Tensor:
        """Return `product(copy)` for the tensor's copy on the device, valid only in this call."""
        with self._lock:
            self._follow(self._last_used, tensor.number)
            self._last_used = tensor.number
            slot = self._holding(tensor.number)
            if slot is None:
                self.late += 1
                slot = self._slots[0]
                self._fill(slot, tensor)
            if slot.filled is not None:
                torch.cuda.current_stream(self._device).wait_event(slot.filled)
            result = product(slot.like(tensor.tensor))
            self._fetch_ahead(tensor)
            return result

    def _follow(self, number: int | None, follower: int) -> None:
        before = None if number is None else self._tensors.get(number)
        if before is not None:
            before.follower = follower

    def _holding(self, number: int) -> _Slot | None:
        return next((slot for slot in self._slots if slot.holds == number), None)

    def _fetch_ahead(self, tensor: HostTensor) -> None:
        """Fill the slots with the two tensors that are needed next."""
        second = self._tensors.get(tensor.follower)
        third = None if second is None else self._tensors.get(second.follower)
        wanted = [one for one in (second, third) if one is not None]
        numbers = {one.number for one in wanted}
        free = [slot for slot in self._slots if slot.holds not in numbers]
        for one in wanted:
            if self._holding(one.number) is None:
                self._fill(free.pop(), one)

    def _fill(self, slot: _Slot, tensor: HostTensor) -> None:
        # Mark the slot as empty until the copy has started, so it stays valid after an exception.
        slot.holds = None
        if self._side is None:
            slot.like(tensor.tensor).copy_(tensor.tensor)
        else:
            # The work started so far includes the last product that reads this slot.
            self._side.wait_stream(torch.cuda.current_stream(self._device))
            with torch.cuda.stream(self._side):
                slot.like(tensor.tensor).copy_(tensor.tensor, non_blocking=True)
            slot.filled.record(self._side)
        slot.holds = tensor.number
        self.copied += tensor.tensor.nbytes
