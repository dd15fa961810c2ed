"""Engine: requests that share a batch give what each gives alone."""

import asyncio
import gc
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cache

import numpy as np
import pytest

import rwkv_core
from forced_tokens import force
from rwkv_core import (
    RWKV,
    EngineClosedError,
    OptionError,
    PromptTooLongError,
    QueueFullError,
    RWKVError,
)
from rwkv_core.serving import Engine, Handle

PROMPTS = [
    "The old man looked at the sea and",
    "It was",
    "In the beginning there was a house on the hill, and nobody knew who had built it. " * 5,
    "She said: ",
    "Once upon a time",
    "A",
]


@cache
def prose(backend: str) -> RWKV:
    return RWKV("prose", backend=backend)


@pytest.fixture
def rwkv(backend: str) -> RWKV:
    return prose(backend)


@pytest.fixture
def engine(rwkv: RWKV) -> Iterator[Engine]:
    with Engine(rwkv.model, rwkv.tokenizer, max_batch=8) as engine:
        yield engine


def alone(rwkv: RWKV, prompt: str, max_tokens: int, **options: object) -> rwkv_core.Generated:
    """What a request gives without an engine."""
    rwkv = RWKV(rwkv.model, tokenizer=rwkv.tokenizer)
    rwkv.load_context(prompt)
    return rwkv.generate(max_tokens, **options)


def test_who_shares_the_batch_does_not_change_a_result(rwkv: RWKV, engine: Engine) -> None:
    for options in ({"temperature": 0.0}, {"temperature": 0.9, "top_p": 0.8}):
        handles = [
            engine.submit(prompt, 5 + 7 * i, seed=i, **options) for i, prompt in enumerate(PROMPTS)
        ]
        for i, (prompt, handle) in enumerate(zip(PROMPTS, handles, strict=True)):
            expected = alone(rwkv, prompt, 5 + 7 * i, seed=i, **options)
            assert handle.result.text == expected.text
            assert list(handle.result.tokens) == expected.tokens
            assert handle.result.finish_reason == "length"


@pytest.mark.needs_backend
def test_pieces_are_the_text_and_its_tokens(engine: Engine) -> None:
    handle = engine.submit(PROMPTS[0], 30, seed=3)
    pieces = list(handle)
    assert len(pieces) > 10
    assert "".join(piece.text for piece in pieces) == handle.result.text
    assert tuple(t for piece in pieces for t in piece.tokens) == handle.result.tokens
    assert list(handle) == []


@pytest.mark.needs_backend
@pytest.mark.parametrize("stop", [" the", "e s", "."])
def test_stop_strings_end_the_text_as_they_do_alone(rwkv: RWKV, engine: Engine, stop: str) -> None:
    handles = [
        engine.submit(prompt, 60, stop_strings=["\x00", stop], seed=i, keep_state=True)
        for i, prompt in enumerate(PROMPTS)
    ]
    stopped = 0
    for i, (prompt, handle) in enumerate(zip(PROMPTS, handles, strict=True)):
        expected = alone(rwkv, prompt, 60, stop_strings=[stop], seed=i)
        found = handle.result
        assert found.text == expected.text == "".join(piece.text for piece in handle)
        assert (found.finish_reason == "stop") == (expected.stop_reason == "stop_string")
        stopped += found.stop == stop
        ours, theirs = map(rwkv.model.to_numpy, (found.state, expected.state))
        np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-4)
    assert stopped


@pytest.mark.needs_backend
def test_a_stop_token_ends_the_text(rwkv: RWKV, engine: Engine) -> None:
    tokens = [50, 51, 7, 52]
    handle = engine.submit("A", 9, stop_tokens=[7], processors=[force(tokens)])
    found = handle.result
    assert (found.tokens, found.finish_reason, found.stop) == ((50, 51), "stop", 7)
    assert found.usage.completion_tokens == 2


@pytest.mark.needs_backend
def test_asyncio(rwkv: RWKV, engine: Engine) -> None:
    async def text_of(i: int) -> str:
        handle = engine.submit(PROMPTS[i], 12, seed=i)
        text = "".join([piece.text async for piece in handle])
        assert (await handle).text == text
        return text

    async def all_texts() -> list[str]:
        return await asyncio.gather(*map(text_of, range(len(PROMPTS))))

    expected = [alone(rwkv, prompt, 12, seed=i).text for i, prompt in enumerate(PROMPTS)]
    assert asyncio.run(all_texts()) == expected


@pytest.mark.needs_backend
def test_many_threads(rwkv: RWKV, engine: Engine) -> None:
    found: dict[int, str] = {}

    def take(i: int) -> None:
        handle = engine.submit(PROMPTS[i % 6], 8, seed=i)
        found[i] = "".join(piece.text for piece in handle)

    threads = [threading.Thread(target=take, args=[i]) for i in range(24)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {i: alone(rwkv, PROMPTS[i % 6], 8, seed=i).text for i in range(24)}


@pytest.mark.needs_backend
def test_cancel_frees_its_place_at_once(rwkv: RWKV) -> None:
    with Engine(rwkv.model, rwkv.tokenizer, max_batch=1) as engine:
        long = engine.submit("A", 10**6, ignore_eos=True)
        waits = engine.submit("It was", 5, seed=1)
        never = engine.submit("It was", 5, seed=1)
        first = next(long)
        never.cancel()
        long.cancel()
        assert waits.result.text == alone(rwkv, "It was", 5, seed=1).text
        assert (long.result.finish_reason, long.result.text[: len(first.text)]) == (
            "cancelled",
            first.text,
        )
        assert (never.result.finish_reason, never.result.tokens) == ("cancelled", ())


@pytest.mark.needs_backend
def test_a_request_that_is_late_ends_with_what_there_is(engine: Engine) -> None:
    found = engine.submit("A", 10**6, ignore_eos=True, max_seconds=0.2).result
    assert found.finish_reason == "time"
    assert found.text
    assert 0.2 <= found.times.total < 2


def raises(logits: np.ndarray, history: Sequence[int]) -> np.ndarray:
    if len(history) == 3:
        raise ZeroDivisionError("a fault of a sampler")
    return logits


@pytest.mark.needs_backend
def test_an_error_is_of_its_request_alone(rwkv: RWKV, engine: Engine) -> None:
    good = [engine.submit(prompt, 20, seed=i) for i, prompt in enumerate(PROMPTS)]
    bad = [
        engine.submit("A", 20, processors=[raises]),
        engine.submit("A", 20, processors=[lambda logits, history: logits[:3]]),
        engine.submit("A", 20, banned_tokens=range(rwkv.model.n_vocab)),
    ]
    for i, handle in enumerate(good):
        assert handle.result.text == alone(rwkv, PROMPTS[i], 20, seed=i).text
    with pytest.raises(ZeroDivisionError, match="a fault of a sampler"):
        list(bad[0])
    with pytest.raises(OptionError, match="logits of shape"):
        _ = bad[1].result
    with pytest.raises(OptionError, match="every token is banned"):
        asyncio.run(wait_for(bad[2]))
    assert engine.stats().finished == {"length": len(good), "error": 3}


async def wait_for(handle: Handle) -> None:
    await handle


@pytest.mark.needs_backend
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"prompt": [10**6]}, "found token 1000000"),
        ({"prompt": [-1]}, "token numbers >= 0"),
        ({"prompt": b"A"}, "text or a list of tokens"),
        ({"prompt": ["A", 5]}, "expected a str"),
        ({"prompt": "A" * 9000}, "expected at most 50"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"temperature": -1.0}, "temperature"),
        ({"heat": 1.0}, "unknown option 'heat'"),
        ({"stop_strings": [""]}, "empty string"),
        ({"state": 5}, "expected a State"),
        ({"seed": -1}, "seed"),
        ({"top_logprobs": -1}, "top_logprobs"),
        ({"max_seconds": 0}, "max_seconds"),
        ({"processors": ["nothing"]}, "no sampler 'nothing'"),
    ],
)
def test_bad_input_is_one_line_at_once(
    rwkv: RWKV, arguments: dict[str, object], message: str
) -> None:
    with (
        Engine(rwkv.model, rwkv.tokenizer, max_prompt=50) as engine,
        pytest.raises(RWKVError, match=message) as error,
    ):
        engine.submit(**{"prompt": "A", "max_tokens": 1} | arguments)
    assert "\n" not in str(error.value)
    assert isinstance(error.value, PromptTooLongError) == ("at most" in message)


@pytest.mark.needs_backend
def test_a_full_queue_says_so(rwkv: RWKV) -> None:
    with Engine(rwkv.model, rwkv.tokenizer, max_batch=1, max_waiting=2) as engine:
        first = engine.submit("A", 10**6, ignore_eos=True)
        next(first)
        for _ in range(2):
            engine.submit("A", 5)
        assert (engine.stats().waiting, engine.stats().running) == (2, 1)
        with pytest.raises(QueueFullError, match="2 requests wait"):
            engine.submit("A", 5)


@pytest.mark.needs_backend
def test_close_ends_all(rwkv: RWKV) -> None:
    engine = Engine(rwkv.model, rwkv.tokenizer, max_batch=1)
    handles = [engine.submit("A", 10**6, ignore_eos=True) for _ in range(3)]
    next(handles[0])
    engine.close()
    assert [handle.result.finish_reason for handle in handles] == ["cancelled"] * 3
    with pytest.raises(EngineClosedError):
        engine.submit("A", 5)
    engine.close()


@pytest.mark.needs_backend
def test_close_lets_requests_finish_within_the_grace(rwkv: RWKV) -> None:
    engine = Engine(rwkv.model, rwkv.tokenizer, max_batch=2)
    short = [engine.submit("A", 5, ignore_eos=True) for _ in range(3)]
    engine.close(grace=60)
    assert [handle.result.finish_reason for handle in short] == ["length"] * 3
    engine = Engine(rwkv.model, rwkv.tokenizer)
    long = engine.submit("A", 10**6, ignore_eos=True)
    begin = time.monotonic()
    engine.close(grace=0.2)
    assert time.monotonic() - begin < 2
    assert long.result.finish_reason == "cancelled"


@pytest.mark.needs_backend
def test_a_request_goes_on_from_a_state(rwkv: RWKV, engine: Engine) -> None:
    first = engine.submit("The old man", 10, seed=1, keep_state=True).result
    both = alone(rwkv, "The old man", 10, seed=1)
    goes_on = RWKV(rwkv.model, tokenizer=rwkv.tokenizer)
    goes_on.set_state(both.state)
    expected = goes_on.generate(10, seed=2)
    assert engine.submit("", 10, state=first.state, seed=2).result.text == expected.text
    goes_on.set_state(both.state)
    goes_on.load_context(" and then")
    expected = goes_on.generate(10, seed=2)
    found = engine.submit(" and then", 10, state=first.state, seed=2).result
    assert found.text == expected.text


@pytest.mark.needs_backend
def test_an_empty_prompt_begins_a_document(rwkv: RWKV, engine: Engine) -> None:
    fresh = RWKV(rwkv.model, tokenizer=rwkv.tokenizer)
    assert engine.submit("", 10, seed=2).result.text == fresh.generate(10, seed=2).text


@pytest.mark.needs_backend
def test_logprobs(rwkv: RWKV, engine: Engine) -> None:
    prompt = rwkv.tokenizer.encode("The old man looked")
    handle = engine.submit(prompt, 6, seed=1, top_logprobs=3, prompt_logprobs=2)
    found = handle.result
    tokens = [*prompt, *found.tokens]
    rows = rwkv.model.to_numpy(rwkv.model.forward(tokens, all_logits=True)[0]).astype(np.float64)
    rows -= np.log(np.exp(rows).sum(-1, keepdims=True))
    given = [*found.prompt_logprobs, *found.logprobs]
    assert [one.token for one in given] == tokens
    assert given[0].logprob is None
    for one, token, row in zip(given[1:], tokens[1:], rows[:-1], strict=True):
        assert one.logprob == pytest.approx(row[token], abs=1e-3)
        assert [t for t, _ in one.top] == list(np.argsort(-row)[: len(one.top)])
        assert one.bytes == rwkv.tokenizer.token_bytes(token)
    assert {len(one.top) for one in found.logprobs} == {3}
    assert b"".join(one.bytes for one in found.logprobs).decode() == found.text
    assert tuple(one for piece in handle for one in piece.logprobs) == found.logprobs


@pytest.mark.needs_backend
def test_logprobs_of_a_text_that_stops_within_a_token(rwkv: RWKV, engine: Engine) -> None:
    the = rwkv.tokenizer.encode(" the")
    assert len(the) == 1
    tokens = [*the, *the, *the]
    handle = engine.submit(
        "A", 9, stop_strings=["he the"], processors=[force(tokens)], top_logprobs=0
    )
    found = handle.result
    assert (found.text, found.stop) == (" t", "he the")
    assert [one.bytes for one in found.logprobs] == [b" t"]
    assert found.usage.completion_tokens == 2


@pytest.mark.needs_backend
def test_generate_many_takes_more_than_the_queue(rwkv: RWKV) -> None:
    with Engine(rwkv.model, rwkv.tokenizer, max_batch=4, max_waiting=2) as engine:
        found = engine.generate_many(PROMPTS * 4, 5, temperature=0.0)
    expected = [alone(rwkv, prompt, 5, temperature=0.0).text for prompt in PROMPTS]
    assert [one.text for one in found] == expected * 4


@pytest.mark.needs_backend
def test_max_tokens_0_only_reads(rwkv: RWKV, engine: Engine) -> None:
    found = engine.submit("The old man", 0, prompt_logprobs=0, keep_state=True).result
    assert (found.text, found.tokens, found.finish_reason) == ("", (), "length")
    assert len(found.prompt_logprobs) == found.usage.prompt_tokens > 2
    _, state = rwkv.model.forward(rwkv.tokenizer.encode("The old man"))
    np.testing.assert_allclose(
        rwkv.model.to_numpy(found.state), rwkv.model.to_numpy(state), rtol=1e-4, atol=1e-5
    )


class Script:
    """A constraint: an optional first choice, then a fixed text, then no token."""

    def __init__(self, choice: list[int], tokens: list[int]) -> None:
        self.choice, self.tokens, self.accepted = choice, tokens, []

    def mask(self) -> np.ndarray | None:
        allowed = np.zeros(4000, bool)
        allowed[self.choice if not self.accepted else []] = True
        return allowed

    def accept(self, token: int) -> None:
        self.accepted.append(token)

    def forced(self) -> list[int]:
        return self.tokens[len(self.accepted) - 1 :]


@pytest.mark.needs_backend
@pytest.mark.parametrize("n_forced", [0, 1, 4, 30])
@pytest.mark.parametrize("top_logprobs", [None, 1])
def test_a_constraint_forces_tokens(
    rwkv: RWKV, engine: Engine, n_forced: int, top_logprobs: int | None
) -> None:
    tokens = [60 + i * 7 % 50 for i in range(n_forced)]
    script = Script([70, 71], tokens)
    handle = engine.submit("A", 50, constraint=script, keep_state=True, top_logprobs=top_logprobs)
    others = [engine.submit(prompt, 20, seed=i) for i, prompt in enumerate(PROMPTS)]
    found = handle.result
    assert found.tokens[0] in (70, 71)
    assert list(found.tokens) == [found.tokens[0], *tokens] == script.accepted
    assert (found.finish_reason, found.stop) == ("stop", None)
    assert "".join(piece.text for piece in handle) == found.text
    _, state = rwkv.model.forward([*rwkv.tokenizer.encode("A"), *found.tokens])
    np.testing.assert_allclose(
        rwkv.model.to_numpy(found.state), rwkv.model.to_numpy(state), rtol=1e-3, atol=1e-4
    )
    assert len(found.logprobs) == (0 if top_logprobs is None else len(found.tokens))
    for i, other in enumerate(others):
        assert other.result.text == alone(rwkv, PROMPTS[i], 20, seed=i).text


@pytest.mark.needs_backend
@pytest.mark.parametrize("max_tokens", [1, 5, 20])
def test_forced_tokens_end_where_others_do(engine: Engine, max_tokens: int) -> None:
    found = engine.submit("A", max_tokens, constraint=Script([70], list(range(60, 90)))).result
    assert (len(found.tokens), found.finish_reason) == (max_tokens, "length")


class Wrong(Script):
    """A constraint that forces a token that is none."""

    def forced(self) -> list[int]:
        return [10**6]


@pytest.mark.needs_backend
def test_wrong_tokens_and_states_hurt_no_other_request(rwkv: RWKV, engine: Engine) -> None:
    good = [engine.submit(prompt, 20, seed=i) for i, prompt in enumerate(PROMPTS)]
    forced = engine.submit("A", 20, constraint=Wrong([70], []))
    _, state = rwkv.model.forward([5])
    broken = replace(state, array=np.full_like(rwkv.model.to_numpy(state), np.nan))
    damaged = engine.submit("A", 20, state=broken)
    with pytest.raises(OptionError, match="forced: found token 1000000"):
        _ = forced.result
    with pytest.raises(RWKVError, match="logits hold nan"):
        _ = damaged.result
    for i, handle in enumerate(good):
        assert handle.result.text == alone(rwkv, PROMPTS[i], 20, seed=i).text


@pytest.mark.needs_backend
def test_a_handle_keeps_its_engine(rwkv: RWKV) -> None:
    handle = Engine(rwkv.model, rwkv.tokenizer).submit("A", 5, ignore_eos=True)
    gc.collect()
    assert handle.result.finish_reason == "length"


@pytest.mark.needs_backend
def test_a_stop_string_in_forced_tokens_ends_the_text(rwkv: RWKV, engine: Engine) -> None:
    tokens = rwkv.tokenizer.encode(" the old man and the sea and the old house on the hill")
    assert len(tokens) > 8
    script = Script([tokens[0]], tokens[1:])
    stops = ["ea an"]
    found = engine.submit("A", 90, constraint=script, stop_strings=stops, keep_state=True).result
    assert (found.text, found.stop) == (" the old man and the s", "ea an")
    expected = alone(rwkv, "A", 90, stop_strings=stops, processors=[force(tokens)])
    ours, theirs = map(rwkv.model.to_numpy, (found.state, expected.state))
    np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-4)
