"""Numbers at the ends of their types, and a caller who has NumPy raise for them."""

from pathlib import Path

import numpy as np
import pytest

import rwkv_core
from pth_writer import write_pth
from random_model import random_weights
from rwkv_core import OptionError, Sampling
from rwkv_core.evaluation.perplexity import score
from rwkv_core.generation.sampling import sample
from rwkv_core.model_file import prequantize
from rwkv_core.tokenizer import load_tokenizer


@pytest.fixture
def strict():
    with np.errstate(all="raise"):
        yield


def test_everything_runs_where_numpy_raises(small_model: Path, tmp_path: Path, backend, strict):
    rwkv = rwkv_core.RWKV(small_model, backend)
    rwkv.load_context("The old man looked at the sea, and then he went home.")
    options = {"temperature": 0.01, "top_k": 40, "top_p": 0.5, "typical_p": 0.9, "min_p": 0.01}
    rwkv.generate(5, seed=1, repetition_penalty=1.2, presence_penalty=0.1, **options)
    rwkv.save_state(tmp_path / "a.state")
    rwkv.load_state(tmp_path / "a.state")
    score(rwkv.model, rwkv.tokenizer, "some text")
    quantized = prequantize(small_model, tmp_path / "m.pqth", group_size=32)
    rwkv_core.load(quantized, backend).forward([1, 2, 3])


def test_sampling_from_logits_far_apart(strict):
    logits, rng = np.array([0.0, -1e300, -800.0, 3e-310]), np.random.default_rng(0)
    for options in ({"top_p": 0.5}, {"typical_p": 0.5}, {"min_p": 0.1}, {"top_k": 2}, {}):
        for temperature in (1e-300, 1e-3, 1.0, 1e300):
            assert 0 <= sample(logits, Sampling(temperature=temperature, **options), [], rng) < 4


def changed(small_model: Path, name: str, value: float, path: Path) -> Path:
    n_vocab = load_tokenizer(small_model.with_name("tokenizer.json")).n_vocab
    weights = random_weights(2, 32, n_vocab, seed=1)
    weights[name].reshape(-1)[3] = value
    write_pth(path, weights)
    return path


@pytest.mark.parametrize("value", [70000.0, -65520.0])
@pytest.mark.parametrize("name", ["head.weight", "blocks.1.ffn.value.weight"])
def test_a_weight_beyond_float16_is_named(small_model, tmp_path, backend, name, value):
    options = {row.name: row.options for row in rwkv_core.list_backends()}[backend]
    dtypes = [option.choices for option in options if option.name == "dtype"]
    if not dtypes or "float16" not in dtypes[0]:
        pytest.skip("has no float16")
    path = changed(small_model, name, value, tmp_path / "m.pth")
    with pytest.raises(
        OptionError, match=f"float16 ends at 65504, and {name} of .* holds"
    ) as error:
        rwkv_core.load(path, backend, dtype="float16")
    assert "\n" not in str(error.value) and "bfloat16" in str(error.value)
    rwkv_core.load(path, backend, dtype="bfloat16")


def test_the_largest_float16_is_loaded(small_model, tmp_path, backend):
    path = changed(small_model, "head.weight", 65504.0, tmp_path / "m.pth")
    rwkv_core.load(path, backend)


@pytest.mark.parametrize("value", [88.0, 89.0, 200.0, 1e4, 3e38])
def test_a_great_time_decay_forgets_at_once(small_model, tmp_path, backend, value, strict):
    model = rwkv_core.load(
        changed(small_model, "blocks.0.att.time_decay", value, tmp_path / "m.pth"), backend
    )
    usual = rwkv_core.load(
        changed(small_model, "blocks.0.att.time_decay", 20.0, tmp_path / "usual.pth"), backend
    )
    tokens = list(range(1, 40))
    found, expected = (m.to_numpy(m.forward(tokens)[0]) for m in (model, usual))
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_a_vector_of_float64_beyond_float32_is_named(tmp_path, backend):
    weights = random_weights(1, 32, 50, dtype=np.float64)
    weights["ln_out.bias"][5] = 1e300
    write_pth(tmp_path / "m.pth", weights)
    with pytest.raises(OptionError, match=r"float32 ends at 3\.40282e\+38, and ln_out\.bias of"):
        dtype = {} if backend != "numpy" else {"dtype": "float32"}
        rwkv_core.load(tmp_path / "m.pth", backend, **dtype)
