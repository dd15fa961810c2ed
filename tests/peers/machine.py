"""The machine of a measurement: its name, its versions, and the rates of NumPy."""

from __future__ import annotations

import os
import platform
import sys
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from rwkv_core.bench.timing import in_turn
from rwkv_core.util.threads import available_threads

_LIBRARIES = (
    "rwkv-core", "numpy", "numba", "torch", "jax", "tensorflow", "rwkv", "transformers"
)  # fmt: skip
# Flags of Linux's /proc/cpuinfo, and what they are called.
_SIMD = {
    "avx2": "AVX2", "avx512f": "AVX-512", "avx512_vnni": "VNNI", "avx_vnni": "AVX-VNNI",
    "avx512_bf16": "BF16", "amx_bf16": "AMX", "asimd": "NEON", "sve": "SVE", "bf16": "BF16",
    "i8mm": "I8MM",
}  # fmt: skip


def describe() -> dict[str, Any]:
    """The processor, the cores to be used, the date and the versions of what is installed."""
    info = Path("/proc/cpuinfo").read_text() if sys.platform == "linux" else ""
    fields = dict(
        (part.strip() for part in line.split(":", 1)) for line in info.splitlines() if ":" in line
    )
    flags = (fields.get("flags") or fields.get("Features") or "").split()
    simd = list(dict.fromkeys(name for flag, name in _SIMD.items() if flag in flags))
    return {
        "cpu": fields.get("model name") or platform.processor() or platform.machine(),
        "cores": available_threads(),
        "simd": [name for name in simd if name != "AVX2" or "AVX-512" not in simd],
        "system": f"{platform.system()} {platform.machine()}",
        "threads": os.environ.get("OMP_NUM_THREADS", "the libraries' own choice"),
        "date": date.today().isoformat(),
        "versions": {"python": platform.python_version()} | dict(map(_version, _LIBRARIES)),
    }


def _version(name: str) -> tuple[str, str]:
    try:
        return name, version(name)
    except PackageNotFoundError:
        return name, "-"


class NumpyRates:
    """Return NumPy's float32 rates for reading large matrices and for multiplying them."""

    def __init__(self) -> None:
        self._matrices = np.full((16, 2048, 2048), 1e-3, np.float32)
        self._x = np.ones(2048, np.float32)
        self._rows = np.ones((256, 2048), np.float32)

    def measure(self) -> tuple[float, float]:
        """Bytes a second of `W @ x`, and operations a second of a product with 256 rows."""
        # One pass takes less than the threads of whoever was before need to fall asleep.
        read, multiplied = map(median, in_turn([self._read, self._multiply], 15))
        return self._matrices.nbytes / read, 2 * 256 * 2048**2 / multiplied

    def _read(self) -> None:
        for matrix in self._matrices:
            matrix @ self._x

    def _multiply(self) -> None:
        self._rows @ self._matrices[0].T
