"""Describes the backend to rwkv-core; TensorFlow is imported when its operations are built."""

import os
from collections.abc import Mapping
from typing import Any

import rwkv_core
from rwkv_core import Backend, Option, Status, TensorOps
from rwkv_core.backends.descriptor import DTYPE, RUNTIME_DTYPE
from rwkv_core.util.distributions import installed_version

# Distributions with the module `tensorflow`; the first ones are builds without GPU support.
_CPU_BUILDS = ("tensorflow-cpu", "tensorflow-intel", "tf-nightly-cpu")
_BUILDS = (*_CPU_BUILDS, "tensorflow", "tensorflow-macos", "tf-nightly")


def tf_status() -> Status:
    """Return whether TensorFlow would run here, from its distribution and the device files."""
    build = next(filter(installed_version, _BUILDS), None)
    if build is None:
        return Status(available=False, reason="tensorflow is not installed")
    if build not in _CPU_BUILDS and os.path.exists("/dev/nvidiactl"):
        return Status(available=True, device="gpu", score=300.0)
    return Status(available=True, device="cpu", score=12.0)


_TF = Backend(
    name="tf",
    summary="TensorFlow with XLA on CPU or GPU",
    contract=2,
    status=tf_status,
    options=(
        DTYPE,
        RUNTIME_DTYPE,
        Option("use_gpu", bool, None, "run on the GPU (default: true if TensorFlow sees a GPU)"),
    ),
    requires=("tensorflow",),
)


@rwkv_core.hookimpl
def rwkv_backends() -> list[Backend]:
    return [_TF]


@rwkv_core.hookimpl
def rwkv_tensor_ops(backend: str, options: Mapping[str, Any]) -> TensorOps | None:
    if backend != _TF.name:
        return None
    from rwkv_backend_tf.quiet import hidden_log

    with hidden_log():
        from rwkv_backend_tf.ops import tf_ops

        return tf_ops(**options)
