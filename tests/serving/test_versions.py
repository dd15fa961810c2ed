"""The engine runs every version of RWKV."""

from pathlib import Path

import pytest

from byte_tokenizer import write_byte_tokenizer
from later_versions import VERSIONS, Sizes, later_weights
from pth_writer import write_pth
from rwkv_core import RWKV
from rwkv_core.serving import Engine


@pytest.mark.needs_backend
@pytest.mark.parametrize("version", VERSIONS)
def test_requests_that_share_a_batch(tmp_path: Path, backend: str, version: str) -> None:
    n_vocab = write_byte_tokenizer(tmp_path / "tokenizer.json")
    sizes = Sizes(2, 64, 32, 224, n_vocab, (8, 12, 16, 20))
    write_pth(tmp_path / "model.pth", later_weights(version, sizes))
    rwkv = RWKV(tmp_path / "model.pth", backend)
    prompts = ["the end", "a", "in the beginning " * 20, "the endless"]
    with Engine(rwkv.model, rwkv.tokenizer, max_batch=3) as engine:
        handles = [
            engine.submit(prompt, 10 + 9 * i, seed=i, ignore_eos=True)
            for i, prompt in enumerate(prompts)
        ]
        for i, (prompt, handle) in enumerate(zip(prompts, handles, strict=True)):
            rwkv.reset_state()
            rwkv.load_context(prompt)
            expected = rwkv.generate(10 + 9 * i, seed=i, ignore_eos=True)
            assert list(handle.result.tokens) == expected.tokens
        known = engine.submit(prompts[2], 1).result.usage
        assert known.cached_tokens == known.prompt_tokens
