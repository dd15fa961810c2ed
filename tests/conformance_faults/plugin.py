"""The plugin: a backend `sample`, in which the option `fault` plants one."""

from __future__ import annotations

from typing import Any

import rwkv_core
from conformance_faults import (  # noqa: F401
    in_head_scans,
    in_heads,
    in_later_models,
    in_matrices,
    in_models,
    in_scans,
    in_vectors,
)
from conformance_faults.planting import FAULTS, RIGHT
from rwkv_core import Backend, Option, Status, TensorOps

DTYPES = Option("dtype", str, "float32", "", ("float32", "float16"))
FAULT = Option("fault", str, "", "", ())


@rwkv_core.hookimpl
def rwkv_backends() -> list[Backend]:
    return [Backend("sample", "for tests", 2, lambda: Status(True), (DTYPES, FAULT))]


@rwkv_core.hookimpl
def rwkv_tensor_ops(backend: str, options: dict[str, Any]) -> TensorOps | None:
    if backend != "sample":
        return None
    name = options["fault"]
    ops = RIGHT[name] if name in RIGHT else FAULTS[name][0]
    return ops(options["dtype"])
