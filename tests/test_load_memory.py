"""The peak memory of a process while it loads a model, besides the weights."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from rwkv_core.architectures.base import Config
from rwkv_core.architectures.rwkv4 import RWKV4
from rwkv_core.evaluation import memory_estimate
from rwkv_core.evaluation.random_model import write_random_model

pytestmark = pytest.mark.skipif(
    not Path("/proc/self/status").exists(), reason="reads the process's peak where Linux tells it"
)

SHAPE = Config(9, 768, 3072, 32768, RWKV4)
MB = 10**6

LOAD = """
import json, os, sys
import rwkv_core
from rwkv_core.bench.measure import peak_memory
path, backend, dtype = sys.argv[1:]
# The libraries, and what they take for themselves, come with the first model.
rwkv_core.load("prose", backend, dtype=dtype).forward([1])
before = peak_memory()
model = rwkv_core.load(path, backend, dtype=dtype)
print(json.dumps([before, peak_memory()]))
"""


@pytest.fixture(scope="module")
def model_file(tmp_path_factory):
    """115 million parameters: 460 MB in float32."""
    path = tmp_path_factory.mktemp("large") / "model.safetensors"
    write_random_model(path, SHAPE)
    return path


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8", "int4"])
def test_the_peak_is_little_above_the_weights(model_file, backend, dtype):
    found = subprocess.run(
        [sys.executable, "-c", LOAD, str(model_file), backend, dtype],
        capture_output=True,
        text=True,
    )
    if "option dtype" in found.stderr:
        pytest.skip(f"{backend} has no {dtype}")
    assert found.returncode == 0, found.stderr
    before, peak = json.loads(found.stdout)
    weights = memory_estimate.memory_of_file(model_file).weights[dtype]
    # A second copy in float32, or of the largest matrices at a time, would not pass.
    assert peak - before <= 1.15 * weights + 200 * MB
    assert peak - before >= weights / 2
