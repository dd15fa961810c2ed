"""Engine: requests that share a batch give what each gives alone."""

import asyncio
import gc
import threading
import time
from collections.abc import Sequence

import numpy as np
import pytest

from forced_tokens import force
from prompts_alone import PROMPTS, alone
from rwkv_core import (
    RWKV,
    EngineClosedError,
    OptionError,
    PromptTooLongError,
    QueueFullError,
    RWKVError,
)
from rwkv_core.serving import Engine, Handle


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
        ({"prompt": b"A"}, "text, or a list of texts or of tokens"),
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
        ({"max_seconds": True}, "max_seconds"),
        ({"max_seconds": float("nan")}, "max_seconds"),
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


@pytest.mark.needs_backend
def test_a_handle_keeps_its_engine(rwkv: RWKV) -> None:
    handle = Engine(rwkv.model, rwkv.tokenizer).submit("A", 5, ignore_eos=True)
    gc.collect()
    assert handle.result.finish_reason == "length"
