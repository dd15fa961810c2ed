"""Describes the three backends to rwkv-core. torch is imported only when a model is loaded."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import rwkv_core
from rwkv_backend_torch.plugin import DEVICE, THREADS, torch_status
from rwkv_core import Backend, Option, Status, TensorOps
from rwkv_core.backends.descriptor import DTYPE, RUNTIME_DTYPE


def _status() -> Status:
    """Return torch's status with a lower score: `torch` is faster if the model fits."""
    return replace(torch_status(), score=1.0)


_TARGET = Option(
    "target",
    float,
    None,
    "GB (10^9 bytes) of weights kept on the device (default: all that fit into its free memory)",
)
_PIN_MEMORY = Option(
    "pin_memory",
    bool,
    None,
    "pin the host memory of streamed matrices, for faster copies (default: true on CUDA)",
)
_STREAMING = (_TARGET.name, _PIN_MEMORY.name)

_STREAM = Backend(
    name="torch-stream",
    summary="torch; matrices beyond a target stay in host memory and are copied ahead of use",
    contract=2,
    status=_status,
    options=(DTYPE, RUNTIME_DTYPE, DEVICE, THREADS, _TARGET, _PIN_MEMORY),
    requires=("torch",),
)

_SPLIT = Backend(
    name="torch-split",
    summary="torch; every matrix split over several devices or processes",
    contract=2,
    status=_status,
    options=(
        DTYPE,
        RUNTIME_DTYPE,
        Option(
            "devices",
            list,
            None,
            "names of devices, each with =SHARE if the shares differ, such as cuda:0=3,cuda:1=1 "
            "(default: all CUDA devices, else cpu; under torchrun one device per process)",
        ),
        THREADS,
    ),
    requires=("torch",),
)

_QUANT = Backend(
    name="torch-quant",
    summary="torch; matrices in 8 or 4 bits",
    contract=2,
    status=_status,
    options=(
        Option(
            "dtype",
            str,
            "int8",
            "type of the matrices; a prequantized file keeps its own type",
            ("int8", "int4"),
        ),
        Option(
            "group_size",
            int,
            None,
            "number of weights that share a scale (default: 64; for int8 on a CPU a whole row)",
        ),
        Option("chunksize", int, None, "number of groups in a row, instead of group_size"),
        replace(RUNTIME_DTYPE, help="type of vectors and of the state (default: float32)"),
        DEVICE,
        THREADS,
        replace(_TARGET, help="GB (10^9 bytes) of weights kept on the device (default: all)"),
        _PIN_MEMORY,
    ),
    requires=("torch",),
    quantized_dtypes=("int8", "int4"),
)


@rwkv_core.hookimpl
def rwkv_backends() -> list[Backend]:
    return [_STREAM, _SPLIT, _QUANT]


@rwkv_core.hookimpl
def rwkv_tensor_ops(backend: str, options: Mapping[str, Any]) -> TensorOps | None:
    if backend in (_STREAM.name, _SPLIT.name, _QUANT.name):
        from rwkv_backend_torch.openmp import import_torch

        import_torch()
    if backend == _STREAM.name:
        from rwkv_backend_cuda_variants.stream.ops import StreamOps

        return StreamOps(**options)
    if backend == _SPLIT.name:
        from rwkv_backend_cuda_variants.split.ops import SplitOps

        return SplitOps(**options)
    if backend == _QUANT.name:
        from rwkv_backend_cuda_variants.quant.ops import QuantOps
        from rwkv_backend_cuda_variants.quant.stream import StreamedQuantOps

        kept = {name: value for name, value in options.items() if name not in _STREAMING}
        if options["target"] is None:
            return QuantOps(**kept)
        return StreamedQuantOps(kept, options["target"], options["pin_memory"])
    return None
