"""What the engine has the model compute: few shapes, and prompts between steps of running texts."""

import time
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from rwkv_core import RWKV, State
from rwkv_core.serving import Engine

pytestmark = pytest.mark.needs_backend


@pytest.fixture
def calls(rwkv: RWKV, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[int, ...]]]:
    """The shapes of tokens that the model is given: (rows, 1) in steps, (tokens,) in prompts.

    A pass for both is noted as two.
    """
    shapes: list[tuple[int, ...]] = []
    forward, forward_ragged = rwkv.model.forward, rwkv.model.forward_ragged

    def noted(tokens: Any, *arguments: Any, **options: Any) -> Any:
        shapes.append(np.shape(tokens))
        return forward(tokens, *arguments, **options)

    def noted_ragged(chunk: list[int], state: State, column: list[int], batch: State) -> Any:
        shapes.extend([(len(column), 1), (len(chunk),)])
        return forward_ragged(chunk, state, column, batch)

    monkeypatch.setattr(rwkv.model, "forward", noted)
    monkeypatch.setattr(rwkv.model, "forward_ragged", noted_ragged)
    yield shapes


def test_batches_have_few_sizes(rwkv: RWKV, calls: list[tuple[int, ...]]) -> None:
    with Engine(rwkv.model, rwkv.tokenizer, max_batch=12) as engine:
        lengths = [3 + 5 * (i % 9) for i in range(40)]
        handles = [engine.submit([i + 1], n, ignore_eos=True) for i, n in enumerate(lengths)]
        for handle in handles:
            assert handle.wait(60)
        stats = engine.stats()
    rows = {shape[0] for shape in calls if len(shape) == 2}
    assert rows <= {1, 2, 4, 8, 12} and 12 in rows
    assert stats.steps == sum(len(shape) == 2 for shape in calls)
    # The first token of each comes from its prompt.
    assert stats.step_rows == sum(lengths) - len(lengths)


def test_a_batch_shrinks_when_few_are_left(rwkv: RWKV, calls: list[tuple[int, ...]]) -> None:
    with Engine(rwkv.model, rwkv.tokenizer, max_batch=8) as engine:
        short = [engine.submit([i + 1], 30, ignore_eos=True) for i in range(7)]
        long = engine.submit([9], 100, ignore_eos=True, seed=1)
        for handle in short:
            assert handle.wait(60)
        text = long.result.text
    assert calls[-1] == (1, 1)
    with Engine(rwkv.model, rwkv.tokenizer) as engine:
        assert engine.submit([9], 100, ignore_eos=True, seed=1).result.text == text


def test_running_texts_go_on_while_a_long_prompt_is_read(
    rwkv: RWKV, calls: list[tuple[int, ...]]
) -> None:
    with Engine(rwkv.model, rwkv.tokenizer, max_batch=4) as engine:
        running = [engine.submit([i + 1], 10**6, ignore_eos=True) for i in range(2)]
        for handle in running:
            next(handle)
        time.sleep(0.2)
        del calls[:]
        long = engine.submit([9 + i * 31 % 4000 for i in range(4000)], 2, ignore_eos=True)
        short = engine.submit([5, 6, 7], 2, ignore_eos=True)
        assert short.result.times.total < long.result.times.first_token
        kinds = [len(shape) for shape in calls]
    parts = [shape[0] for shape in calls if len(shape) == 1]
    assert sum(parts) == 4003 and len(parts) > 8
    # A step comes after each part but that of the short prompt, read beside the long one's.
    assert sum(a == b == 1 for a, b in pairwise(kinds)) <= 1


def test_usage_and_times(rwkv: RWKV) -> None:
    with Engine(rwkv.model, rwkv.tokenizer, max_batch=1) as engine:
        first = engine.submit([5] * 30, 40, ignore_eos=True)
        second = engine.submit([6] * 20, 3, ignore_eos=True)
        usage, times = second.result.usage, second.result.times
        assert (usage.prompt_tokens, usage.cached_tokens, usage.completion_tokens) == (20, 0, 3)
        assert times.queued > first.result.times.total / 2
        assert times.first_token is not None
        assert times.queued <= times.first_token <= times.total
