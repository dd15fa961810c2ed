"""Prompts that begin alike are read once, one after the other and at the same time."""

from collections.abc import Callable, Iterator

import numpy as np
import pytest

from rwkv_core import RWKV, State
from rwkv_core.serving import Engine

pytestmark = pytest.mark.needs_backend

SYSTEM = list(range(60, 160)) * 3  # tokens
KEPT_EVERY = 256


@pytest.fixture
def n_read(rwkv: RWKV, monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """How many tokens the model has read in prompts since the last call."""
    counts = [0]
    forward = rwkv.model.forward

    def counted(tokens: list[int], *arguments: object, **options: object) -> tuple[object, State]:
        counts[0] += 0 if isinstance(tokens[0], list) else len(tokens)
        return forward(tokens, *arguments, **options)

    monkeypatch.setattr(rwkv.model, "forward", counted)

    def take() -> int:
        found, counts[0] = counts[0], 0
        return found

    return take


@pytest.fixture
def engine(rwkv: RWKV) -> Iterator[Engine]:
    with Engine(rwkv.model, rwkv.tokenizer, max_batch=8) as engine:
        yield engine


def alone(rwkv: RWKV, prompt: list[int], seed: int, state: State | None = None) -> list[int]:
    one = RWKV(rwkv.model, tokenizer=rwkv.tokenizer)
    if state is not None:
        one.set_state(state)
    one.load_context(prompt)
    return one.generate(6, seed=seed, ignore_eos=True).tokens


def ours(engine: Engine, prompt: list[int], seed: int, **options: object) -> tuple[list[int], int]:
    found = engine.submit(prompt, 6, seed=seed, ignore_eos=True, **options).result
    assert found.usage.prompt_tokens == len(prompt)
    return list(found.tokens), found.usage.cached_tokens


def test_a_hit_gives_the_tokens_of_a_miss(
    rwkv: RWKV, engine: Engine, n_read: Callable[[], int]
) -> None:
    expected = alone(rwkv, SYSTEM, 1)
    assert ours(engine, SYSTEM, 1) == (expected, 0)
    n_read()
    assert ours(engine, SYSTEM, 1) == (expected, len(SYSTEM))
    assert n_read() == 0


def test_a_marked_place_is_where_the_next_prompt_goes_on(
    rwkv: RWKV, engine: Engine, n_read: Callable[[], int]
) -> None:
    ours(engine, [*SYSTEM, 7, 8, 9], 1, marks=[len(SYSTEM)])
    expected = alone(rwkv, [*SYSTEM, 9, 9], 2)
    n_read()
    assert ours(engine, [*SYSTEM, 9, 9], 2) == (expected, len(SYSTEM))
    assert n_read() == 2


def test_the_ends_of_parts_are_marks(rwkv: RWKV, engine: Engine) -> None:
    parts = ["You are a captain of an old ship. ", "The king said: ", "Where is my hat?"]
    tokens = [token for part in parts for token in rwkv.tokenizer.encode(part)]
    first = engine.submit(parts, 6, seed=1, ignore_eos=True).result
    assert list(first.tokens) == alone(rwkv, tokens, 1)
    begin = [token for part in parts[:2] for token in rwkv.tokenizer.encode(part)]
    second = engine.submit([*parts[:2], "No."], 6, seed=1).result
    assert second.usage.cached_tokens == len(begin)
    third = engine.submit([*parts[:1], "No."], 6, seed=1).result
    assert third.usage.cached_tokens == len(rwkv.tokenizer.encode(parts[0]))


def test_the_cache_finds_out_where_prompts_part(rwkv: RWKV, engine: Engine) -> None:
    found = [ours(engine, [*SYSTEM, i, 8, 9], i) for i in range(1, 4)]
    assert [tokens for tokens, _ in found] == [
        alone(rwkv, [*SYSTEM, i, 8, 9], i) for i in range(1, 4)
    ]
    assert [n_cached for _, n_cached in found] == [0, KEPT_EVERY, len(SYSTEM)]


def test_a_conversation_goes_on_from_its_last_answer(rwkv: RWKV, engine: Engine) -> None:
    tokens, _ = ours(engine, SYSTEM, 1)
    longer = [*SYSTEM, *tokens, 5, 6, 7]
    # The last token of an answer is not read.
    assert ours(engine, longer, 2) == (alone(rwkv, longer, 2), len(longer) - 4)


def test_prompts_at_the_same_time_are_read_once(
    rwkv: RWKV, engine: Engine, n_read: Callable[[], int]
) -> None:
    prompts = [[*SYSTEM, *tail] for tail in ([], [5], [5, 6], [7] * 20, [])]
    expected = [alone(rwkv, prompt, i) for i, prompt in enumerate(prompts)]
    n_read()
    handles = [
        engine.submit(prompt, 6, seed=i, ignore_eos=True) for i, prompt in enumerate(prompts)
    ]
    assert [list(handle.result.tokens) for handle in handles] == expected
    assert n_read() <= len(SYSTEM) + 1 + 2 + 20
    assert sum(handle.result.usage.cached_tokens == 0 for handle in handles) == 1


def test_without_a_cache_too(rwkv: RWKV, n_read: Callable[[], int]) -> None:
    expected = [alone(rwkv, SYSTEM, i) for i in range(3)]
    n_read()
    with Engine(rwkv.model, rwkv.tokenizer, cache_bytes=0) as engine:
        handles = [engine.submit(SYSTEM, 6, seed=i, ignore_eos=True) for i in range(3)]
        assert [list(handle.result.tokens) for handle in handles] == expected
        assert n_read() == len(SYSTEM)
        assert engine.stats().cache_entries == 0


def test_who_waits_reads_on_when_the_first_is_cancelled(rwkv: RWKV, engine: Engine) -> None:
    first = engine.submit(SYSTEM * 8, 6)
    second = engine.submit(SYSTEM * 8, 6, seed=2, ignore_eos=True)
    first.cancel()
    assert list(second.result.tokens) == alone(rwkv, SYSTEM * 8, 2)


def test_a_state_to_begin_from_has_prompts_of_its_own(rwkv: RWKV, engine: Engine) -> None:
    _, one = rwkv.model.forward([5, 6, 7])
    _, other = rwkv.model.forward([8, 9])
    again = State(rwkv.model.to_numpy(one), one.logits, model=one.model)
    for state, n_cached in [(None, 0), (one, 0), (other, 0), (again, len(SYSTEM))]:
        expected = alone(rwkv, SYSTEM, 1, state)
        assert ours(engine, SYSTEM, 1, state=state) == (expected, n_cached)


def test_a_state_from_the_cache_goes_on_as_one_that_was_read(rwkv: RWKV, engine: Engine) -> None:
    for _ in range(2):
        state = engine.submit(SYSTEM, 0, keep_state=True).result.state
        assert ours(engine, [], 1, state=state)[0] == alone(rwkv, SYSTEM, 1)


def test_stats_tell_of_hits(rwkv: RWKV, engine: Engine) -> None:
    for _ in range(3):
        ours(engine, SYSTEM, 1)
    stats = engine.stats()
    assert (stats.cache_lookups, stats.cache_hits) == (3, 2)
    assert (stats.prompt_tokens, stats.cached_tokens) == (3 * len(SYSTEM), 2 * len(SYSTEM))
    assert stats.completion_tokens == 18
    assert stats.cache_entries >= 2
    assert 0 < stats.cache_bytes < 2**30


def test_an_embedding_is_that_of_the_model(rwkv: RWKV, engine: Engine) -> None:
    ours(engine, SYSTEM, 1)
    for prompt in (SYSTEM, [*SYSTEM, 5], [9]):
        expected = rwkv.model.to_numpy(rwkv.model.embed(prompt))
        found = engine.embed(prompt).result
        np.testing.assert_allclose(found.embedding, expected, rtol=1e-3, atol=1e-4)
        assert (found.text, found.usage.completion_tokens) == ("", 0)
