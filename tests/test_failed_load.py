"""A load that fails frees its memory, even while its error is kept."""

import ctypes
import gc
import os
from pathlib import Path

import numpy as np
import pytest

import rwkv_core
from random_model import random_weights

pytestmark = pytest.mark.skipif(
    not Path("/proc/self/statm").exists(), reason="reads the process's memory where Linux tells it"
)


def resident() -> int:
    gc.collect()
    # What the C library keeps of freed memory, to hand it out again, is none that is held.
    if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):
        trim(0)
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.fixture(scope="module")
def damaged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """50 MB of weights in float16, 100 in float32; the last matrix of the block holds a NaN."""
    from safetensors.numpy import save_file

    weights = random_weights(1, 1408, 300, dtype=np.float16)
    weights["blocks.0.ffn.value.weight"][-1, -1] = np.nan
    path = tmp_path_factory.mktemp("damaged") / "damaged.safetensors"
    save_file(weights, path)
    return path


def test_failed_loads_do_not_add_up(backend: str, damaged: Path) -> None:
    kept = []

    def fail() -> None:
        with pytest.raises(rwkv_core.CheckpointError, match=r"ffn\.value") as caught:
            rwkv_core.load(damaged, backend=backend)
        kept.append(caught)

    for _ in range(4):  # brings in the library, and its allocator to a level
        fail()
    before = resident()
    for _ in range(5):
        fail()
    # Quantized to a quarter of float32, five models would be 125 MB more.
    assert resident() - before < 60e6
