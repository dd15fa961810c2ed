"""What the devices of a split model tell each other, in one process and among several."""

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

# For what others still load, too: the first exchange waits for the slowest of them.
_MINUTES = 10
_Result = TypeVar("_Result")


class OneProcess:
    """Several devices, all driven by this process.

    Attributes:
        devices: those of this process, the first being where results go.
        name: for people to read.
        unit: channels that are not cut apart, such as those of a head.
    """

    def __init__(self, shares: Sequence[Share]) -> None:
        self.unit = 1
        self.devices = [find_device(share.device) for share in shares]
        self.name = ", ".join(map(str, self.devices))
        self._shares = tuple(share.share for share in shares)

    def own(self, width: int) -> list[slice]:
        """The slice of an axis of `width` that each device of this process has."""
        return cuts(width, self._shares, self.unit)

    def gather(self, slices: Sequence[Tensor], width: int) -> list[Tensor]:
        """All `slices` [..., part] side by side, [..., width], on every device of this process."""
        # Not non_blocking: between GPUs torch orders the streams either way, and a copy to the
        # host would be read before it is there.
        wholes = {
            device: torch.cat([part.to(device) for part in slices], -1)
            for device in dict.fromkeys(self.devices)
        }
        return [wholes[device] for device in self.devices]

    def gather_first(self, slices: Sequence[Tensor], width: int) -> Tensor:
        """As `gather`, on the first device only."""
        return torch.cat([part.to(self.devices[0]) for part in slices], -1)

    def add(self, partials: Sequence[Tensor]) -> list[Tensor]:
        """The sum of all `partials` [..., width], of which each device gets its slice."""
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
    """One device in each of several processes, which torchrun started; else as OneProcess.

    All of them run the same program and exchange what they have in the same order.
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
        """The first process's `number`."""
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
    """The devices that the option names, or all there are; under torchrun one a process.

    Raises OptionError for the option, BackendError for a device or process that is not there.
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
    """Join the others, by the environment variables that torchrun sets, unless that was done."""
    if dist.is_initialized():
        return
    # The numbers to agree on are exchanged among the CPUs in any case.
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    try:
        dist.init_process_group(backend, timeout=timedelta(minutes=_MINUTES))
    except (RuntimeError, ValueError) as error:
        address = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        raise BackendError(
            f"torch-split: the processes did not all meet at {address}: {_reason(error)}"
        ) from error
    atexit.register(_disconnect)


def _disconnect() -> None:
    # The program is over either way.
    with suppress(RuntimeError, AssertionError, ValueError):
        dist.destroy_process_group()


def _one_each(shares: Sequence[Share] | None, size: int) -> Sequence[Share]:
    """The device of each process; as far as the others' are not given, they are like this one's."""
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
            f"torch-split: process {local + 1} of this machine has no GPU to itself, there are "
            f"{n_devices}: start no more than {n_devices} here, or give -o devices=..."
        )
    return f"cuda:{local}"


def _exchange(collective: Callable[..., _Result], *arguments: Any, **options: Any) -> _Result:
    try:
        return collective(*arguments, **options)
    except RuntimeError as error:
        raise BackendError(
            "torch-split: the exchange with the other processes failed; one of them has ended, "
            f"and says why, or is more than {_MINUTES} minutes late ({_reason(error)})"
        ) from error


def _padded(tensor: Tensor, width: int) -> Tensor:
    return F.pad(tensor, (0, width - tensor.shape[-1])).contiguous()


def _reason(error: Exception) -> str:
    """The first sentence, without the place in torch's sources."""
    return re.sub(r"\[\S+\.(cc|cpp|h):\d+\] *", "", printable(error)).partition(". ")[0][:160]
