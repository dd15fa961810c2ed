"""Text on each backend: the program and the library give the same, and continue a saved state."""

import json
from pathlib import Path

import numpy as np
import pytest

import rwkv_core
from rwkv_core.cli import main


def test_text_is_that_of_one_token_after_another(
    backend: str, small_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["-n", "12", "--temperature", "0", "--ignore-eos", "--json"]
    state = tmp_path / "a.state"
    given = ["-m", str(small_model), "-b", backend, "--save-state", str(state)]
    assert main(["generate", "Once", *given, *options]) == 0
    found = json.loads(capsys.readouterr().out)
    rwkv = rwkv_core.RWKV(small_model, backend)
    rwkv.load_context("Once")
    stream = rwkv.stream(12, temperature=0, ignore_eos=True)
    assert "".join(stream) == found["text"] and stream.result.tokens == found["tokens"]
    model = rwkv.model
    logits, after = model.forward(rwkv.tokenizer.encode("Once"))
    for token in found["tokens"]:
        assert int(np.argmax(model.to_numpy(logits))) == token
        logits, after = model.forward([token], after)
    rwkv.load_state(state)
    for kept in (rwkv.get_state(), stream.result.state):
        np.testing.assert_allclose(model.to_numpy(kept), model.to_numpy(after), atol=1e-4)
