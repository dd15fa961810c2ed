"""Describes the backends to rwkv-core; the operations are imported when they are built."""

from collections.abc import Mapping
from typing import Any

import rwkv_core
from rwkv_core import Backend, Option, Status, TensorOps
from rwkv_core.util.distributions import installed_version

_NUMPY = Backend(
    name="numpy",
    summary="NumPy: plain and readable, on any CPU",
    contract=2,
    # The score: a float32 product is limited by the memory's rate.
    status=lambda: Status(available=True, device="cpu", score=20.0),
    options=(
        Option("dtype", str, "float32", "type of matrices and vectors", ("float32", "float64")),
    ),
)


def _numba_status() -> Status:
    if installed_version("numba") is None:
        return Status(available=False, reason="numba is not installed")
    # Compiling the kernels takes 10 s, and without them a model of 14 MB decodes at 470 tokens/s.
    return Status(available=True, device="cpu", score=40.0, min_bytes=60_000_000)


_NUMBA = Backend(
    name="numba",
    summary="NumPy with compiled kernels, for matrices in 32, 16, 8 and 4 bits, on any CPU",
    contract=2,
    status=_numba_status,
    options=(
        Option(
            "dtype",
            str,
            "float32",
            "type of the matrices; a prequantized file keeps its own type",
            ("float32", "bfloat16", "int8", "int4"),
        ),
        Option(
            "group_size",
            int,
            None,
            "for int8 and int4: number of weights that share a scale (default: 64)",
        ),
    ),
    requires=("numba",),
    quantized_dtypes=("int8", "int4"),
)


@rwkv_core.hookimpl
def rwkv_backends() -> list[Backend]:
    return [_NUMPY, _NUMBA]


@rwkv_core.hookimpl
def rwkv_tensor_ops(backend: str, options: Mapping[str, Any]) -> TensorOps | None:
    if backend == _NUMPY.name:
        from rwkv_backend_numpy.numpy_ops import NumpyOps

        return NumpyOps(**options)
    if backend == _NUMBA.name:
        from rwkv_backend_numpy.numba.ops import NumbaOps

        return NumbaOps(**options)
    return None
