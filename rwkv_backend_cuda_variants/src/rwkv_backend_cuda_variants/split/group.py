"""Exchanges between the devices of a split model, in one process or among several."""

from __future__ import annotations

import atexit
import os
import re
import zlib
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from rwkv_backend_cuda_variants.split.devices import (
    Share,
    cuts,
    default_devices,
    find_device,
    parse_devices,
)
from rwkv_core.errors import BackendError, OptionError
from rwkv_core.util.printable import printable

# The first exchange waits until the slowest process has loaded the model.
_MINUTES = 10
_Result = TypeVar("_Result")


class OneProcess:
    """Several devices, all used by this process.

    Attributes:
        devices: the devices of this process; results are on the first device.
        name: name of the devices, shown to users.
        unit: number of channels that must stay together, such as those of a head.
    """

    def __init__(self, shares: Sequence[Share]) -> None:
        self.unit = 1
        self.devices = [find_device(share.device) for share in shares]
        self.name = ", ".join(map(str, self.devices))
        self._shares = tuple(share.share for share in shares)

    def own(self, width: int) -> list[slice]:
        """Return the slice of an axis of `width` for each device of this process."""
        return cuts(width, self._shares, self.unit)

    def gather(self, slices: Sequence[Tensor], width: int) -> list[Tensor]:
        """Join all `slices` [..., part] to [..., width] on every device of this process."""
        # Not non_blocking: between GPUs torch orders the streams anyway, and a copy to the host
        # would be read before it has arrived.
        wholes = {
            device: torch.cat([part.to(device) for part in slices], -1)
            for device in dict.fromkeys(self.devices)
        }
        return [wholes[device] for device in self.devices]

    def gather_first(self, slices: Sequence[Tensor], width: int) -> Tensor:
        """Join all `slices` [..., part] to [..., width] on the first device only."""
        return torch.cat([part.to(self.devices[0]) for part in slices], -1)

    def add(self, partials: Sequence[Tensor]) -> list[Tensor]:
        """Add all `partials` [..., width]. Return each device's slice of the sum."""
        own = self.own(partials[0].shape[-1])
        sums = []
        for device, piece in zip(self.devices, own, strict=True):
            first, *others = (partial[..., piece].to(device) for partial in partials)
            for other in others:
                first = first + other
            sums.append(first)
        return sums

    def broadcast(self, number: int) -> int:
        return number

    def check_same(self, what: str, digest: int) -> None:
        pass


class Processes:
    """Several processes started by torchrun, each of which uses one device.

    The attributes are those of OneProcess. All processes run the same program, and exchange
    activations in the same order.
    """

    def __init__(self, shares: Sequence[Share] | None) -> None:
        _connect()
        self.unit = 1
        self._rank, self._size = dist.get_rank(), dist.get_world_size()
        shares = _one_each(shares, self._size)
        self.devices = [find_device(shares[self._rank].device)]
        self.name = f"{self.devices[0]} (process {self._rank + 1} of {self._size})"
        self._shares = tuple(share.share for share in shares)
        options = f"kind of device or shares ({self.devices[0].type}, {self._shares})"
        self.check_same(options, zlib.crc32(options.encode()))
        if self.devices[0].type == "cuda":
            torch.cuda.set_device(self.devices[0])

    def own(self, width: int) -> list[slice]:
        return [cuts(width, self._shares, self.unit)[self._rank]]

    def gather(self, slices: Sequence[Tensor], width: int) -> list[Tensor]:
        (mine,) = slices
        sizes = self._sizes(width)
        # Collectives exchange equal sizes.
        mine = _padded(mine, max(sizes))
        found = [torch.empty_like(mine) for _ in sizes]
        _exchange(dist.all_gather, found, mine)
        return [torch.cat([part[..., :n] for part, n in zip(found, sizes, strict=True)], -1)]

    def gather_first(self, slices: Sequence[Tensor], width: int) -> Tensor:
        return self.gather(slices, width)[0]

    def add(self, partials: Sequence[Tensor]) -> list[Tensor]:
        (partial,) = partials
        width = partial.shape[-1]
        sizes = self._sizes(width)
        pieces = [
            _padded(partial[..., piece], max(sizes))
            for piece in cuts(width, self._shares, self.unit)
        ]
        total = torch.empty_like(pieces[0])
        _exchange(dist.reduce_scatter, total, pieces)
        return [total[..., : sizes[self._rank]]]

    def _sizes(self, width: int) -> list[int]:
        return [piece.stop - piece.start for piece in cuts(width, self._shares, self.unit)]

    def broadcast(self, number: int) -> int:
        """Return the first process's `number`."""
        numbers = [number]
        _exchange(dist.broadcast_object_list, numbers, src=0, device=torch.device("cpu"))
        return numbers[0]

    def check_same(self, what: str, digest: int) -> None:
        """Raise BackendError in every process unless all have the same `digest`."""
        mine = torch.tensor(digest)
        digests = [torch.empty_like(mine) for _ in range(self._size)]
        _exchange(dist.all_gather, digests, mine)
        for other, found in enumerate(digests):
            if found != mine:
                raise BackendError(
                    f"torch-split: process {other + 1} has another {what} than process "
                    f"{self._rank + 1}: all must run one program with one model, prompt and seed"
                )


def find_group(entries: list[str] | None) -> OneProcess | Processes:
    """Return the group of the devices in `entries` (NAME or NAME=SHARE); None for all devices.

    If torchrun started several processes, each process uses one of the devices.

    Raises OptionError for a wrong option, and BackendError if a device or process is missing.
    """
    shares = None if entries is None else parse_devices(entries)
    joined = dist.is_initialized() and dist.get_world_size() > 1
    if joined or _started_together():
        return Processes(shares)
    return OneProcess(shares or default_devices())


def _started_together() -> bool:
    variables = os.environ
    together = {"RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"} <= variables.keys()
    return together and variables["WORLD_SIZE"] != "1"


def _connect() -> None:
    """Connect to the other processes, once, with the environment variables set by torchrun."""
    if dist.is_initialized():
        return
    # `broadcast` and `check_same` exchange their numbers on the CPU in any case.
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    try:
        dist.init_process_group(backend, timeout=timedelta(minutes=_MINUTES))
    except (RuntimeError, ValueError) as error:
        address = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        raise BackendError(
            f"torch-split: the processes could not all connect to {address}: {_reason(error)}"
        ) from error
    atexit.register(_disconnect)


def _disconnect() -> None:
    # Errors do not matter: the program ends anyway.
    with suppress(RuntimeError, AssertionError, ValueError):
        dist.destroy_process_group()


def _one_each(shares: Sequence[Share] | None, size: int) -> Sequence[Share]:
    """Return the device of each process. A single given device is used by all processes."""
    if shares is None:
        return [Share(_default_device(), 1.0)] * size
    if len(shares) != size:
        raise OptionError(
            f"option devices: found {len(shares)}, expected one for each of the {size} processes"
        )
    return shares


def _default_device() -> str:
    n_devices = torch.cuda.device_count()
    if n_devices == 0:
        return "cpu"
    local = int(os.environ.get("LOCAL_RANK", dist.get_rank()))
    if local >= n_devices:
        raise BackendError(
            f"torch-split: process {local + 1} of this machine has no GPU of its own, found "
            f"{n_devices}: start at most {n_devices} processes here, or give -o devices=..."
        )
    return f"cuda:{local}"


def _exchange(collective: Callable[..., _Result], *arguments: Any, **options: Any) -> _Result:
    try:
        return collective(*arguments, **options)
    except RuntimeError as error:
        raise BackendError(
            "torch-split: the exchange with the other processes failed; one of them has ended "
            f"(see its output), or is more than {_MINUTES} minutes late ({_reason(error)})"
        ) from error


def _padded(tensor: Tensor, width: int) -> Tensor:
    return F.pad(tensor, (0, width - tensor.shape[-1])).contiguous()


def _reason(error: Exception) -> str:
    """Return the error's first sentence, without the place in torch's sources."""
    return re.sub(r"\[\S+\.(cc|cpp|h):\d+\] *", "", printable(error)).partition(". ")[0][:160]
