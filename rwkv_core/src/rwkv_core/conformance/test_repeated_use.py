"""A model in several threads at the same time, and in many calls."""

from __future__ import annotations

import gc
import random
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import Any

import numpy as np
import pytest

from rwkv_core.conformance.conftest import Loaded
from rwkv_core.conformance.references import blocks
from rwkv_core.model import Model

N_THREADS, N_ROUNDS = 4, 8
N_CALLS = 40
MAX_PAUSES = 100


def pausing_trace(seed: int) -> Callable[..., Any]:
    """Return a trace function for one thread, which pauses it in the middle of functions.

    The system also pauses threads in the middle of functions, but rarely. With many pauses, an
    error that depends on them shows in every run. A pause is long enough for another thread to run,
    also on a busy machine, where a thread takes some tenths of a millisecond to wake.
    """
    rng = random.Random(seed)
    pauses = iter(range(MAX_PAUSES))

    def trace(*_: object) -> Callable[..., Any]:
        if rng.random() < 0.1 and next(pauses, None) is not None:
            time.sleep(5e-4)
        return trace

    return trace


@pytest.mark.parametrize("n_tokens", [1, 4])
def test_four_threads_compute_what_one_does(model: Model, tokens: list[int], n_tokens: int) -> None:
    check_threads(model, tokens, n_tokens)


def test_four_threads_read_a_token_of_rwkv7(
    load_later: Callable[[str, blocks.Sizes], Loaded], tokens: list[int]
) -> None:
    check_threads(load_later("rwkv7", blocks.MEDIUM).model, tokens, 1, N_ROUNDS // 2)


def check_threads(model: Model, tokens: list[int], n_tokens: int, n_rounds: int = N_ROUNDS) -> None:
    """Read in four threads at the same time, and compare with the results of one thread."""
    prompts = [tokens[40 * i : 40 * i + n_tokens] for i in range(N_THREADS)]
    states = [model.forward(tokens[50 * i : 50 * i + 4])[1] for i in range(N_THREADS)]
    together = Barrier(N_THREADS)

    def read(i: int) -> list[np.ndarray]:
        results = []
        for round_ in range(n_rounds):
            together.wait(60)
            sys.settrace(pausing_trace(N_THREADS * round_ + i))
            try:
                logits, state = model.forward(prompts[i], states[i])
            finally:
                sys.settrace(None)
            results.append(np.append(model.to_numpy(logits), model.to_numpy(state)))
        return results

    alone = [model.forward(*call) for call in zip(prompts, states, strict=True)]
    with ThreadPoolExecutor(N_THREADS) as threads:
        found = list(threads.map(read, range(N_THREADS)))
    for (logits, state), results in zip(alone, found, strict=True):
        expected = np.append(model.to_numpy(logits), model.to_numpy(state))
        wrong = sum(not np.array_equal(result, expected) for result in results)
        assert not wrong, (
            f"{wrong} of {n_rounds} results of a thread are not what it gets alone. Several "
            "threads use a model at once: no operation may keep memory to work in between calls, "
            "unless each thread has its own"
        )


@pytest.fixture
def quick_collections() -> Iterator[None]:
    """Exclude existing objects from garbage collections, which torch's alone would make slow."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.mark.usefixtures("quick_collections")
def test_memory_does_not_grow_with_the_calls(model: Model, tokens: list[int]) -> None:
    """Python's blocks of memory are counted, as every kept object takes at least one."""

    def blocks_after_use() -> int:
        state = None
        for token in tokens[:N_CALLS]:
            _, state = model.forward([token], state)
        del state
        gc.collect()
        return sys.getallocatedblocks()

    # Caches in the process fill up in the first ten rounds or so. A leak in each call never ends.
    counts = [blocks_after_use(), blocks_after_use()]
    while counts[-1] - counts[-2] > N_CALLS // 2 and len(counts) < 40:
        counts.append(blocks_after_use())
    grown = counts[-1] - counts[-2]
    assert grown <= N_CALLS // 2, (
        f"{grown} more blocks of memory are in use after {N_CALLS} calls of forward than before: "
        "does something keep activations or states?"
    )
