"""Describes the backend to rwkv-core; the operations are imported when one is built."""

from collections.abc import Mapping
from typing import Any

import rwkv_core
from rwkv_core import Backend, Option, Status, TensorOps

_NUMPY = Backend(
    name="numpy",
    summary="NumPy: plain and readable, on any CPU",
    contract=1,
    # A float32 product reads its matrix at the memory's speed, with nothing to add to it.
    status=lambda: Status(available=True, device="cpu", score=20.0),
    options=(
        Option("dtype", str, "float32", "type of matrices and vectors", ("float32", "float64")),
    ),
)


@rwkv_core.hookimpl
def rwkv_backends() -> list[Backend]:
    return [_NUMPY]


@rwkv_core.hookimpl
def rwkv_tensor_ops(backend: str, options: Mapping[str, Any]) -> TensorOps | None:
    from rwkv_backend_numpy.ops import NumpyOps

    return NumpyOps(options["dtype"]) if backend == _NUMPY.name else None
