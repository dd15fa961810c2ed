"""Many requests of all kinds, some of which fail or are cancelled: each gets what it gets alone."""

import random
from typing import Any

import numpy as np
import pytest

from rwkv_core import RWKV
from rwkv_core.serving import Engine

# Tokens that many prompts begin with, of different lengths.
BEGINNINGS = [list(range(60, 60 + n)) for n in (0, 5, 40, 300)]


def fails(logits: np.ndarray, history: list[int]) -> np.ndarray:
    if len(history) > 2:
        raise ZeroDivisionError
    return logits


def random_request(rng: random.Random) -> tuple[list[int], dict[str, Any]]:
    prompt = [*rng.choice(BEGINNINGS), *(rng.randrange(9, 99) for _ in range(rng.randrange(1, 30)))]
    options: dict[str, Any] = {
        "max_tokens": rng.randrange(1, 25),
        "seed": rng.randrange(100),
        "top_p": rng.choice([1.0, 0.7]),
        "stop_strings": rng.choice([[], [" the"], ["e", "q"]]),
    }
    return prompt, options


@pytest.mark.needs_backend
@pytest.mark.parametrize(("seed", "cache_bytes"), [(0, 2**30), (1, 200_000)])
def test_each_gets_what_it_gets_alone(backend: str, seed: int, cache_bytes: int) -> None:
    rng, rwkv = random.Random(seed), RWKV("prose", backend)
    running = []
    with Engine(rwkv.model, rwkv.tokenizer, max_batch=5, cache_bytes=cache_bytes) as engine:
        for _ in range(60):
            prompt, options = random_request(rng)
            kind = rng.choice(["plain", "plain", "state", "logprobs", "cancel", "fail"])
            more: dict[str, Any] = {
                "state": {"keep_state": True},
                "logprobs": {"top_logprobs": 2, "prompt_logprobs": 1},
                "fail": {"processors": [fails]},
            }.get(kind, {})
            handle = engine.submit(prompt, **options, **more)
            running.append((kind, prompt, options, handle))
            if kind == "cancel" and rng.random() < 0.5:
                handle.cancel()
            elif rng.random() < 0.2:
                rng.choice(running)[3].wait()
            for other, _, _, cancelled in running[-5:]:
                if other == "cancel":
                    cancelled.cancel()
        for kind, prompt, options, handle in running:
            if kind == "fail":
                handle.wait()
                continue
            found = handle.result
            rwkv.reset_state()
            rwkv.load_context(prompt)
            expected = rwkv.generate(**options)
            if found.finish_reason == "cancelled":
                assert kind == "cancel" and expected.text.startswith(found.text)
                continue
            assert found.text == expected.text
            assert "".join(piece.text for piece in handle) == found.text
            if kind == "state":
                ours, theirs = map(rwkv.model.to_numpy, (found.state, expected.state))
                np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-3)
            if kind == "logprobs":
                assert [one.token for one in found.prompt_logprobs] == prompt
                assert (
                    b"".join(one.bytes for one in found.logprobs)
                    .decode("utf-8", "ignore")
                    .startswith(found.text)
                )
        stats = engine.stats()
    assert (stats.waiting, stats.reading, stats.running) == (0, 0, 0)
    assert sum(stats.finished.values()) == 60
    assert stats.cache_bytes <= cache_bytes
