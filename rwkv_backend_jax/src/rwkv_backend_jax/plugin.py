"""Describes the backend to rwkv-core; JAX is imported when its operations are built."""

import os
from collections.abc import Mapping
from glob import glob
from typing import Any

import rwkv_core
from rwkv_core import Backend, Option, Status, TensorOps
from rwkv_core.backends.descriptor import DTYPE, RUNTIME_DTYPE
from rwkv_core.util.distributions import installed_version

_CUDA_PLUGINS = ("jax-cuda13-plugin", "jax-cuda12-plugin")
_KINDS = {"cpu": "cpu", "tpu": "tpu", "gpu": "gpu", "cuda": "gpu"}


def jax_status() -> Status:
    """Return whether JAX would run here, from its distributions and the drivers' device files."""
    if not (installed_version("jax") and installed_version("jaxlib")):
        return Status(available=False, reason="jax is not installed")
    found = {"cpu": Status(available=True, device="cpu", score=12.0)}
    if installed_version("libtpu") and (glob("/dev/accel[0-9]*") or glob("/dev/vfio/[0-9]*")):
        found["tpu"] = Status(available=True, device="tpu", score=400.0)
    if os.path.exists("/dev/nvidiactl") and any(map(installed_version, _CUDA_PLUGINS)):
        found["gpu"] = Status(available=True, device="gpu", score=400.0)
    # The user's choice and order. JAX itself finds platforms of plugins that are not known here.
    platforms = [name for name in os.environ.get("JAX_PLATFORMS", "").split(",") if name]
    chosen = [_KINDS.get(name) for name in platforms] or ["gpu", "tpu", "cpu"]
    for kind in chosen:
        if kind is None or kind in found:
            return found[kind or "cpu"]
    return Status(
        available=False,
        reason=f"JAX_PLATFORMS is {','.join(platforms)!r}, which JAX does not have here; unset it, "
        "or set it to cpu",
    )


_JAX = Backend(
    name="jax",
    summary="JAX on CPU, GPU or TPU, one or several",
    contract=2,
    status=jax_status,
    options=(
        DTYPE,
        RUNTIME_DTYPE,
        Option("device", str, None, "device: cpu, gpu, gpu:1, tpu, ... (default: JAX's choice)"),
        Option("mesh", int, None, "number of devices on which the matrices are split (default: 1)"),
    ),
    requires=("jax",),
)


@rwkv_core.hookimpl
def rwkv_backends() -> list[Backend]:
    return [_JAX]


@rwkv_core.hookimpl
def rwkv_tensor_ops(backend: str, options: Mapping[str, Any]) -> TensorOps | None:
    if backend != _JAX.name:
        return None
    from rwkv_backend_jax.ops import jax_ops

    return jax_ops(**options)
