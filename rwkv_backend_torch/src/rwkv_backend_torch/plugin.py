"""Describes the backend to rwkv-core. torch is imported only when a model is loaded."""

import os
import platform
from collections.abc import Mapping
from typing import Any

import rwkv_core
from rwkv_core import Backend, Option, Status, TensorOps
from rwkv_core.backends.descriptor import DTYPE, RUNTIME_DTYPE
from rwkv_core.util.distributions import installed_version


def torch_status() -> Status:
    """Return whether torch is available, and the device that it would use, without importing it."""
    torch_version = installed_version("torch")
    if torch_version is None:
        return Status(available=False, reason="torch is not installed")
    if "+cpu" not in torch_version and os.path.exists("/dev/nvidiactl"):
        return Status(available=True, device="cuda", score=500.0)
    if platform.system() == "Darwin" and platform.machine() == "arm64":
        return Status(available=True, device="mps", score=60.0)
    return Status(available=True, device="cpu", score=15.0)


DEVICE = Option(
    "device", str, None, "device: cpu, cuda, cuda:1, mps, ... (default: an accelerator, else cpu)"
)
THREADS = Option("threads", int, None, "number of CPU threads (default: torch's own choice)")

_TORCH = Backend(
    name="torch",
    summary="PyTorch on CPU, CUDA or MPS",
    contract=2,
    status=torch_status,
    options=(DTYPE, RUNTIME_DTYPE, DEVICE, THREADS),
    requires=("torch",),
)


@rwkv_core.hookimpl
def rwkv_backends() -> list[Backend]:
    return [_TORCH]


@rwkv_core.hookimpl
def rwkv_tensor_ops(backend: str, options: Mapping[str, Any]) -> TensorOps | None:
    if backend != _TORCH.name:
        return None
    from rwkv_backend_torch.openmp import import_torch

    import_torch()
    from rwkv_backend_torch.ops import TorchOps

    return TorchOps(**options)
