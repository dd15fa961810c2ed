"""Constraints: they restrict the next token and force tokens, of their request alone."""

from dataclasses import replace

import numpy as np
import pytest

from forced_tokens import force
from prompts_alone import PROMPTS, alone
from rwkv_core import RWKV, OptionError, RWKVError
from rwkv_core.serving import Engine


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
