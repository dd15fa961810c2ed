"""A correct backend on NumPy, and how faults are planted in it.

Each fault is a backend of its own, registered by its name. `caught_by` is the part of the
conformance suite (for pytest's -k) that has to catch it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ml_dtypes  # noqa: F401 (NumPy's bfloat16)
import numpy as np

from rwkv_core import TensorOps


class Ops(TensorOps):
    """A correct backend in a few lines."""

    xp = np

    def __init__(self, dtype: str) -> None:
        self.dtype = dtype

    def vector(self, array: Any) -> Any:
        return array.astype(self.runtime_dtype)

    def matrix(self, array: Any) -> Any:
        return array.astype(self.dtype)

    def to_numpy(self, array: Any) -> Any:
        return array


class TupleOps(Ops):
    """A correct backend, with matrices as tuples of blocks of 128 rows for `matmul`."""

    def matrix(self, array: Any) -> Any:
        held = array.astype(self.dtype)
        return tuple(held[i : i + 128] for i in range(0, len(held), 128))

    def matmul(self, matrix: Any, x: Any) -> Any:
        return np.concatenate([super(TupleOps, self).matmul(block, x) for block in matrix], axis=-1)


RIGHT = {"": Ops, "tuple": TupleOps}
FAULTS: dict[str, tuple[type[Ops], str]] = {}


def fault(name: str, caught_by: str) -> Callable[[type[Ops]], type[Ops]]:
    def register(ops: type[Ops]) -> type[Ops]:
        assert name not in FAULTS
        FAULTS[name] = ops, caught_by
        return ops

    return register


def spoiled(result: Any) -> Any:
    """A method's result, wrong in the last channel."""
    array, *rest = result if isinstance(result, tuple) else (result,)
    array = np.array(array)
    array[..., -1] = array[..., -1] * 1.2 + 0.1
    return (array, *rest) if isinstance(result, tuple) else array


def spoil(
    name: str, caught_by: str, method: str, when: Callable[..., bool], base: type[Ops] = Ops
) -> None:
    """A fault: `method` is wrong for the arguments that `when` picks."""

    def wrong(self: Ops, *arguments: Any) -> Any:
        result = getattr(base, method)(self, *arguments)
        return spoiled(result) if when(*arguments) else result

    fault(name, caught_by)(type("Spoiled", (base,), {method: wrong}))


def spoil_matrix(name: str, caught_by: str, change: Callable[[Any], Any]) -> None:
    """A fault: `matrix` holds `change` of what it was given. Opaque, and as an array."""
    for base in (Ops, TupleOps):

        def matrix(self: Ops, array: Any, base: type[Ops] = base) -> Any:
            return base.matrix(self, change(np.array(array)))

        kind = "tuple" if base is TupleOps else "array"
        fault(f"{name}, {kind}", caught_by)(type("Spoiled", (base,), {"matrix": matrix}))
