"""A backend of rwkv-core on array-api-strict."""

from collections.abc import Mapping
from typing import Any

import rwkv_core
from rwkv_core import Backend, Option, Status, TensorOps

DTYPE = Option("dtype", str, "float32", "type of everything", ("float32", "float64"))


@rwkv_core.hookimpl
def rwkv_backends() -> list[Backend]:
    return [
        Backend("array-api-strict", "the standard and no more", 2, lambda: Status(True), (DTYPE,))
    ]


@rwkv_core.hookimpl
def rwkv_tensor_ops(backend: str, options: Mapping[str, Any]) -> TensorOps | None:
    if backend != "array-api-strict":
        return None
    import array_api_strict
    import numpy as np

    class StrictOps(TensorOps):
        xp = array_api_strict
        dtype = runtime_dtype = options["dtype"]

        def vector(self, array: Any) -> Any:
            return self.xp.asarray(array.astype(self.dtype))

        def matrix(self, array: Any) -> Any:
            return self.vector(array)

        def to_numpy(self, array: Any) -> Any:
            return np.asarray(array)

    return StrictOps()
