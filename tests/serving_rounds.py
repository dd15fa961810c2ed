"""Rounds of requests of random lengths, for tests of how often a backend compiles."""

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rwkv_core import RWKV
from rwkv_core.serving import Engine


def assert_compiling_ends(path: Path, backend: str, compilations: list[Any]) -> None:
    """Serve until three rounds in a row have added nothing to `compilations`.

    Which shapes a round needs depends on how long its reads and steps take.
    """
    n_quiet = 0
    for _ in serve_rounds(path, backend, 15):
        n_quiet = 0 if compilations else n_quiet + 1
        compilations.clear()
        if n_quiet == 3:
            return
    raise AssertionError("after 15 rounds, requests of other lengths still compile")


def serve_rounds(path: Path, backend: str, n_rounds: int) -> Iterator[None]:
    """Yield after each round of ten requests, four of which run at the same time."""
    rwkv = RWKV(path, backend)
    rng = random.Random(0)
    with Engine(rwkv.model, rwkv.tokenizer, max_batch=4) as engine:
        for _ in range(n_rounds):
            prompts = [[rng.randrange(1, 250)] * rng.randrange(1, 90) for _ in range(10)]
            handles = [engine.submit(p, 2 + 4 * i, ignore_eos=True) for i, p in enumerate(prompts)]
            for handle in handles:
                assert handle.result.finish_reason == "length"
            yield
