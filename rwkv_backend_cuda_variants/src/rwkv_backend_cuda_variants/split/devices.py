"""The option `devices`: the devices of a split model, and where its matrices are cut."""

from __future__ import annotations

import math
from functools import cache
from itertools import accumulate, pairwise
from typing import NamedTuple

import torch

from rwkv_backend_torch.ops import first_sentence, probe
from rwkv_core.errors import BackendError, OptionError

_EXPECTED = 'expected names with optional shares, such as cpu,cpu or "cuda:0=3,cuda:1=1"'
_MAX_SHARE = 1e6


class Share(NamedTuple):
    """A device's name, and its share of each matrix relative to the other devices."""

    device: str
    share: float


def parse_devices(entries: list[str]) -> list[Share]:
    """Parse entries NAME or NAME=SHARE. A share is a positive number, by default 1.

    Raises OptionError for a malformed entry.
    """
    if not entries:
        raise OptionError(f"option devices: found an empty list, {_EXPECTED}")
    return [_parse(entry) for entry in entries]


def _parse(entry: object) -> Share:
    if not isinstance(entry, str):
        raise OptionError(f"option devices: found {entry!r} in the list, {_EXPECTED}")
    name, equals, text = (part.strip() for part in entry.partition("="))
    try:
        share = float(text) if equals else 1.0
    except ValueError:
        share = math.nan
    # Also false for NaN.
    if not 0 < share <= _MAX_SHARE or not name:
        raise OptionError(
            f"option devices: found {entry!r}, {_EXPECTED}; a share is above 0 and at most "
            f"{_MAX_SHARE:g}"
        )
    return Share(name, share)


def default_devices() -> list[Share]:
    """Return all CUDA devices with equal shares; the CPU if there are none."""
    names = [f"cuda:{i}" for i in range(torch.cuda.device_count())]
    return [Share(name, 1.0) for name in names or ["cpu"]]


def find_device(name: str) -> torch.device:
    """Return the torch device called `name`, with its index. Raises BackendError if missing."""
    try:
        return probe(name)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise BackendError(
            f"option devices: {name!r} is not available here: {first_sentence(error)}"
        ) from None


@cache
def cuts(width: int, shares: tuple[float, ...], unit: int = 1) -> list[slice]:
    """Divide an axis of `width` in proportion to `shares`, at multiples of `unit`.

    If `width` is not a multiple of `unit`, it is divided at any whole number. Returns a slice for
    each device. Raises OptionError if a device would get an empty slice.
    """
    if width % unit:
        unit = 1
    total, n_units = sum(shares), width // unit
    bounds = [0, *(unit * round(n_units * part / total) for part in accumulate(shares))]
    slices = [slice(low, high) for low, high in pairwise(bounds)]
    for i, (piece, share) in enumerate(zip(slices, shares, strict=True)):
        if piece.start >= piece.stop:
            what = "channels that a matrix has" if unit == 1 else f"heads of {unit} channels"
            raise OptionError(
                f"option devices: device {i + 1} of {len(shares)}, with a share of {share:g} in "
                f"{total:g}, gets none of the {n_units} {what}; name fewer devices or give it more"
            )
    return slices
