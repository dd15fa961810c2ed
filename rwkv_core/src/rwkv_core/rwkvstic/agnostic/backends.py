"""rwkvstic's constants for its modes, with their original values, and their backends.

A value may also be given as text, such as mode="pytorch(cpu/gpu)".
"""

from __future__ import annotations

from rwkv_core.errors import BackendError
from rwkv_core.util.printable import printable

TORCH = "pytorch(cpu/gpu)"
JAX = "jax(cpu/gpu/tpu)"
TF = "tensorflow(cpu/gpu)"
NUMPY = "numpy(cpu)"
TORCH_STREAM = "pytorch-stream(gpu-config-vram)"
TORCH_SPLIT = "pytorch-split(multixgpu)"
TORCH_QUANT = "pytorch-quant(gpu-8bit)"
FASTQUANT = "fastquant"
MPS = "mps(mac/gpu)"
TORCH_STREAM_MPS = "pytorch-stream-mps(Apple,gpu-config-vram)"
TORCH_QUANT_MPS = "pytorch-quant-mps(Apple,gpu-8bit)"
CUPY = "cupy(gpu)"
CUPY_QUANT = "cupy-quant(gpu)"
TORCH_DEEPSPEED = "pytorch-deepspeed(gpu)"
TORCH_EXPORT = "export-torchscript"
TF_EXPORT = "export-tensorflow"
ONNX_EXPORT = "onnx_export"

# In rwkvstic, the values are its classes of operations.
Backends: dict[str, str] = {
    TORCH: "torch",
    JAX: "jax",
    TF: "tf",
    NUMPY: "numpy",
    TORCH_STREAM: "torch-stream",
    TORCH_SPLIT: "torch-split",
    TORCH_QUANT: "torch-quant",
    FASTQUANT: "torch-quant",
    MPS: "torch",
    TORCH_STREAM_MPS: "torch-stream",
    TORCH_QUANT_MPS: "torch-quant",
}
ON_MPS = (MPS, TORCH_STREAM_MPS, TORCH_QUANT_MPS)
_INSTEAD = {
    CUPY: "use TORCH or JAX",
    CUPY_QUANT: "use TORCH_QUANT",
    TORCH_DEEPSPEED: "use TORCH",
    **dict.fromkeys(
        (TORCH_EXPORT, TF_EXPORT, ONNX_EXPORT),
        "there is no export; `rwkv-core prequantize` writes a file that every backend loads",
    ),
}


def backend_of(mode: str) -> str:
    """Return the backend for a mode of rwkvstic. Any other text is the name of a backend.

    Raises BackendError for a mode that has no backend, and for a class of operations.
    """
    if isinstance(mode, str) and mode in _INSTEAD:
        raise BackendError(f"mode {mode!r} of rwkvstic has no backend here; {_INSTEAD[mode]}")
    name: object = Backends.get(mode, mode) if isinstance(mode, str) else mode
    if isinstance(name, str):
        return name
    if isinstance(name, type) or callable(name) or hasattr(name, "matmul"):
        what = name.__name__ if isinstance(name, type) else type(name).__name__
        raise BackendError(
            f"mode: found operations of one's own ({printable(what)}), expected a constant such as "
            "TORCH, or a backend's name\nmake them a backend, in about 20 lines: see \"Writing a "
            "backend\" in rwkv-core's documentation"
        )
    raise BackendError(f"mode: found {name!r}, expected a constant such as TORCH, or a name")
