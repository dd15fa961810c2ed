"""Offload plan: which matrices stay on a device that holds only part of a model."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from rwkv_core.dtypes import BYTES_PER_WEIGHT
from rwkv_core.errors import OptionError
from rwkv_core.weights import Weight

GB = 10**9
"""Bytes in a GB, the unit of a target."""


@dataclass(frozen=True)
class OffloadPlan:
    """Which matrices of a model stay on a device, and the resulting sizes in bytes.

    A matrix that does not stay is copied to the device before each use.

    Attributes:
        stays: for each matrix, in the order in which a token uses them, whether it stays.
        slot: size of each of the two buffers for the other matrices; 0 if all stay.
        resident: size of the matrices that stay.
        streamed: size of the other matrices, which are copied once a token.
        total: size of everything on the device: vectors, the matrices that stay, and the two
            buffers.
    """

    stays: tuple[bool, ...]
    slot: int
    resident: int
    streamed: int
    total: int


def target_bytes(target: float) -> int:
    """Return `target` GB in bytes. Raises OptionError if it is negative, infinite or NaN."""
    if not 0 <= target * GB < math.inf:
        raise OptionError(f"option target: found {target}, expected GB of a device, such as 5.5")
    return round(target * GB)


def model_bytes(
    weights: Collection[Weight], dtype: str, runtime_dtype: str
) -> tuple[list[int], int]:
    """Return the bytes of each matrix, in the order of `weights`, and the bytes of everything else.

    Everything else is vectors and low-rank matrices, which always stay on the device. The dtypes
    are keys of `dtypes.BYTES_PER_WEIGHT`.
    """
    n_vectors = sum(weight.size * weight.repeat for weight in weights if weight.role == "vector")
    n_low_rank = sum(weight.size for weight in weights if weight.role == "low_rank")
    sizes = [weight.size * BYTES_PER_WEIGHT[dtype] for weight in weights if weight.role == "matrix"]
    kept = n_vectors * BYTES_PER_WEIGHT[runtime_dtype] + n_low_rank * BYTES_PER_WEIGHT[dtype]
    return list(map(round, sizes)), round(kept)


def plan_offload(sizes: Sequence[int], vectors: int, target: float) -> OffloadPlan:
    """Return the plan that keeps as many bytes of matrices as fit within `target` bytes.

    Arguments:
        sizes: bytes of each matrix, in the order of use.
        vectors: bytes of everything else on the device.
        target: bytes.

    Raises OptionError if the target is below `smallest_target`.
    """
    # A token reads every matrix once, so its time is the streamed bytes over the rate of the bus:
    # as many bytes as possible must stay. The two slots, each as large as the largest streamed
    # matrix, take room from that. So it can pay to keep the largest matrix (the head, where the
    # vocabulary is large) and have smaller slots: every matrix's size is tried as the slot's.
    # Among equal matrices, resident and streamed ones alternate evenly, so that a copy overlaps
    # with the products of resident matrices.
    if vectors + sum(sizes) <= target:
        return _summarize([True] * len(sizes), sizes, vectors)
    tried = [_choose(sizes, target - vectors - 2 * slot, slot) for slot in sorted(set(sizes))]
    found = [_summarize(stays, sizes, vectors) for stays in tried if stays is not None]
    if not found:
        least = smallest_target(sizes, vectors)
        raise OptionError(
            f"option target: found {target / GB:.6g} GB, expected at least {as_target(least)} "
            "for this model's vectors, two slots for streamed matrices and what exceeds a slot"
        )
    return max(found, key=lambda choice: (choice.resident, -choice.slot))


def smallest_target(sizes: Sequence[int], vectors: int) -> int:
    """Return the smallest number of bytes on the device with which a model runs."""
    needs = [2 * slot + sum(s for s in sizes if s > slot) for slot in set(sizes)]
    return vectors + min([*needs, sum(sizes)])


def as_target(n_bytes: int) -> str:
    """Return `n_bytes` as text in GB, rounded up to a sufficient target."""
    if n_bytes >= GB:
        return f"{math.ceil(n_bytes / 1e6) / 1e3:.3f}"
    return f"{math.ceil(n_bytes / 1e3) / 1e6:.6f}"


def _choose(sizes: Sequence[int], room: float, slot: int) -> list[bool] | None:
    """Return for each matrix whether it stays on the device; the staying ones fit in `room` bytes.

    `slot` is the size of a buffer for the other matrices, so matrices larger than `slot` must stay.
    Returns None if these matrices exceed `room`.
    """
    stays = [size > slot for size in sizes]
    room -= sum(size for size in sizes if size > slot)
    if room < 0:
        return None
    for size in sorted({size for size in sizes if size <= slot}, reverse=True):
        equal = [i for i, other in enumerate(sizes) if other == size]
        n_stay = min(len(equal), int(room // size))
        room -= n_stay * size
        n_streamed = len(equal) - n_stay
        for j, i in enumerate(equal):
            stays[i] = (j + 1) * n_streamed // len(equal) == j * n_streamed // len(equal)
    return stays


def _summarize(stays: Sequence[bool], sizes: Sequence[int], vectors: int) -> OffloadPlan:
    resident = sum(size for size, stay in zip(sizes, stays, strict=True) if stay)
    slot = max((size for size, stay in zip(sizes, stays, strict=True) if not stay), default=0)
    streamed = sum(sizes) - resident
    return OffloadPlan(tuple(stays), slot, resident, streamed, vectors + resident + 2 * slot)
