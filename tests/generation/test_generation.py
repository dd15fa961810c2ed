"""Generated text: stop strings, whole characters, and a state that has read exactly that."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from forced_tokens import (
    EMOJI,
    PADDING,
    PIECES,
    close,
    force,
    load_with_context,
    same,
    say,
    single,
    stepped,
    tokens_of,
    write_model,
)
from pth_writer import write_pth
from rwkv_core import RWKV, RWKVError, State, StateError
from rwkv_core.checkpoint import open_checkpoint
from rwkv_core.state import save_state

pytestmark = pytest.mark.needs_backend


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("generation"))


@pytest.fixture
def rwkv(folder: Path, backend: str) -> RWKV:
    return load_with_context(folder, backend)


def test_text_tokens_state_and_logits_describe_one_place(rwkv: RWKV) -> None:
    start = rwkv.get_state()
    out = rwkv.generate(20, seed=1, temperature=0.7, top_p=0.9)
    assert out.stop_reason == "length"
    assert len(out.tokens) == 20
    assert same(rwkv.model, out.state, stepped(rwkv, start, out.tokens))
    assert out.logits is out.state.logits
    assert rwkv.get_state() is out.state


def test_seed_gives_the_same_text_again_and_no_seed_another(rwkv: RWKV) -> None:
    start = rwkv.get_state()

    def tokens(seed: int | None) -> list[int]:
        rwkv.set_state(start)
        return rwkv.generate(20, seed=seed).tokens

    assert tokens(1) == tokens(1)
    assert tokens(1) != tokens(2)
    assert tokens(None) != tokens(None)


def test_generating_one_by_one_gives_the_text_of_one_go(rwkv: RWKV) -> None:
    start = rwkv.get_state()
    whole = rwkv.generate(60, seed=np.random.default_rng(4))
    rwkv.set_state(start)
    rng = np.random.default_rng(4)
    parts = [rwkv.generate(1, seed=rng) for _ in range(60)]
    assert "".join(part.text for part in parts) == whole.text
    assert parts[-1].state.pending == whole.state.pending
    assert same(rwkv.model, parts[-1].state, whole.state)


def test_character_unfinished_at_the_length_is_continued_by_the_next_call(rwkv: RWKV) -> None:
    first = say(rwkv, [b"a", b"\xf0", b"\x9f"])
    assert (first.text, first.state.pending) == ("a", b"\xf0\x9f")
    second = say(rwkv, [b"\x98"])
    assert (second.text, second.state.pending) == ("", b"\xf0\x9f\x98")
    third = say(rwkv, [b"\x80\n"])
    assert (third.text, third.state.pending) == (EMOJI + "\n", b"")


def test_context_in_tokens_is_continued_to_the_character(rwkv: RWKV) -> None:
    rwkv.load_context(tokens_of(rwkv.tokenizer, [b"a\xf0\x9f"]))
    assert rwkv.get_state().pending == b"\xf0\x9f"
    assert say(rwkv, [b"\x98\x80b"]).text == EMOJI + "b"


def test_stream_gives_out_whole_characters_as_soon_as_they_are(rwkv: RWKV) -> None:
    tokens = tokens_of(rwkv.tokenizer, [b"a\xf0\x9f", b"\x98\x80b", *single("\u20acc")])
    pieces = list(rwkv.stream(len(tokens), processors=[force(tokens)]))
    assert pieces == ["a", EMOJI + "b", "\u20ac", "c"]


@pytest.mark.parametrize(
    ("pieces", "stops", "text"),
    [
        ([b"a", b"\n", b"\n", b"b"], ["\n\n"], "a"),  # straddles tokens
        ([b"c", b"b\n\nQ", b"a"], ["\n\n"], "cb"),  # inside a token
        ([b"a\n", b"a\n", b"\n\n", b"c"], ["\n\n"], "a\na"),  # begins in one, ends in another
        ([b"a", b"\n", b"a", b"\n"], ["\n\n"], "a\na\n"),  # never complete: all is given out
        ([b"a", b"b", b"a", b"b", b"c"], ["abc"], "ab"),  # starts again inside a failed beginning
        ([b"a", b"a", b"b"], ["ab", "b"], "a"),  # two end together
        ([b"a", b"b", b"c", b"\n"], ["bc", "abc\n"], ""),  # one inside another: the first begun
        ([b"a", b"b", b"c", b"a"], ["bc", "abc\n"], "a"),  # unless it does not come about
        ([b"a", b"b", b"c"], ["bc", "abc\n"], "a"),  # or the length comes first
        (single(EMOJI + "\n"), ["\n"], EMOJI),  # right after a character of four tokens
        (single("a" + EMOJI + "b"), [EMOJI], "a"),  # a character of four tokens
        ([b"a\xf0\x9f", b"\x98\x80b"], [EMOJI], "a"),  # that begins and ends inside tokens
        ([b"a\xf0\x9f", b"\x98\x80b"], ["b"], "a" + EMOJI),
        ([b"\n", b"a"], ["\n"], ""),  # at once
        ([b"a", b"\xf0", b"\n"], ["\n"], "a\N{REPLACEMENT CHARACTER}"),  # after a broken one
        (single("\u20ac\u20ad"), ["\u20ac\u20ac"], "\u20ac\u20ad"),  # first bytes alike
    ],
)
def test_text_ends_before_the_first_stop_string(
    rwkv: RWKV, pieces: list[bytes], stops: list[str], text: str
) -> None:
    start = rwkv.get_state()
    out = say(rwkv, pieces, stops)
    assert out.text == text
    found = any(stop.encode() in b"".join(pieces) for stop in stops)
    assert out.stop_reason == ("stop_string" if found else "length")
    assert rwkv.tokenizer.decode(out.tokens) == text
    assert out.state.pending == b""
    if out.tokens:
        assert close(rwkv.model, out.state, rwkv.model.forward(out.tokens, start)[1])
    else:
        assert out.state is start


def test_state_rolled_back_to_a_token_boundary_is_bit_for_bit_that_of_the_text(rwkv: RWKV) -> None:
    start = rwkv.get_state()
    out = say(rwkv, [b"ab", b"c", b"\n", b"\n"], ["\n\n"])
    assert out.tokens == tokens_of(rwkv.tokenizer, [b"ab", b"c"])
    assert same(rwkv.model, out.state, stepped(rwkv, start, out.tokens))


def test_cut_inside_a_token_reads_the_text_before_it_anew(rwkv: RWKV) -> None:
    out = say(rwkv, [b"a", b"b\n\nQ"], ["\n\n"])
    assert out.tokens == tokens_of(rwkv.tokenizer, [b"a", b"b"])


def test_stop_string_in_a_character_of_the_call_before_takes_back_nothing(rwkv: RWKV) -> None:
    before = say(rwkv, [b"\xf0", b"\x9f"])
    out = say(rwkv, [b"\x98", b"\x80"], [EMOJI])
    assert (out.text, out.tokens, out.stop_reason) == ("", [], "stop_string")
    assert out.state is before.state


def test_character_of_the_call_before_is_completed_when_a_token_is_cut(rwkv: RWKV) -> None:
    say(rwkv, [b"\xf0", b"\x9f"])
    out = say(rwkv, [b"\x98\x80b"], ["b"])
    assert (out.text, out.stop_reason, out.state.pending) == (EMOJI, "stop_string", b"")
    assert rwkv.tokenizer.to_bytes(out.tokens) == b"\x98\x80"


def test_stop_token_is_neither_read_nor_in_the_text(rwkv: RWKV) -> None:
    start = rwkv.get_state()
    tokens = tokens_of(rwkv.tokenizer, [b"a", b"b", b"c"])
    out = rwkv.generate(9, stop_tokens=tokens[2:], stop_strings=["bc"], processors=[force(tokens)])
    assert (out.text, out.tokens, out.stop_reason) == ("ab", tokens[:2], "stop_token")
    assert same(rwkv.model, out.state, stepped(rwkv, start, tokens[:2]))


def test_the_end_of_a_document_ends_the_text_unless_it_is_ignored(rwkv: RWKV) -> None:
    start = rwkv.get_state()
    tokens = tokens_of(rwkv.tokenizer, [b"a", b"<|endoftext|>", b"b"])
    out = rwkv.generate(3, processors=[force(tokens)])
    assert (out.text, out.tokens, out.stop_reason) == ("a", tokens[:1], "stop_token")
    assert same(rwkv.model, out.state, stepped(rwkv, start, tokens[:1]))
    rwkv.set_state(start)
    out = rwkv.generate(3, ignore_eos=True, processors=[force(tokens)])
    assert (out.text, out.stop_reason) == ("a<|endoftext|>b", "length")


def test_numbers_that_pad_the_vocabulary_are_not_sampled_unless_as_a_stop(rwkv: RWKV) -> None:
    n_vocab = rwkv.model.n_vocab
    likely = dict.fromkeys(range(n_vocab - PADDING, n_vocab), 1e3)
    out = rwkv.generate(5, logit_bias=likely, seed=0)
    assert max(out.tokens) < rwkv.tokenizer.n_vocab == n_vocab - PADDING
    stop = rwkv.generate(5, logit_bias=likely, seed=0, stop_tokens=[n_vocab - 1])
    assert (stop.stop_reason, stop.tokens) == ("stop_token", [])


def test_nothing_read_begins_with_token_0(rwkv: RWKV) -> None:
    _, after = rwkv.model.forward([0])
    rwkv.set_state(after)
    expected = rwkv.generate(5, seed=0)
    rwkv.reset_state()
    out = rwkv.generate(5, seed=0)
    assert out.tokens == expected.tokens
    assert same(rwkv.model, out.state, expected.state)


def test_no_tokens_change_nothing(rwkv: RWKV) -> None:
    for state in (rwkv.get_state(), rwkv.empty_state()):
        rwkv.set_state(state)
        out = rwkv.generate(0)
        assert (out.text, out.tokens, out.stop_reason) == ("", [], "length")
        assert out.state is state is rwkv.get_state()
        assert list(rwkv.stream(0)) == []


TOKENS = st.lists(
    st.sampled_from([b"a", b"b", b"c", b"\n", *PIECES, *single(EMOJI + "\u20ac")]), max_size=10
)
STOPS = st.lists(st.text("abc\nQ" + EMOJI + "\u20ac", min_size=1, max_size=4), max_size=3)


@settings(
    max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(pieces=TOKENS, stops=STOPS, received=st.integers(0, 5))
def test_any_tokens_and_stop_strings(
    rwkv: RWKV, pieces: list[bytes], stops: list[str], received: int
) -> None:
    rwkv.reset_state()
    rwkv.load_context("Q: ")
    start = rwkv.get_state()
    data = b"".join(pieces)
    out = say(rwkv, pieces, stops)
    cut = min((data.find(s.encode()) for s in stops if s.encode() in data), default=None)
    pending = b"" if cut is not None else out.state.pending
    text = data[: len(data) - len(pending) if cut is None else cut]
    assert out.stop_reason == ("length" if cut is None else "stop_string")
    assert out.text == text.decode("utf-8", "replace")
    assert data[len(text) :].startswith(pending)
    assert rwkv.tokenizer.to_bytes(out.tokens) == text + pending
    assert out.state is start or close(
        rwkv.model, out.state, rwkv.model.forward(out.tokens, start)[1]
    )

    rwkv.set_state(start)
    tokens = tokens_of(rwkv.tokenizer, pieces)
    stream = rwkv.stream(len(tokens), stop_strings=stops, processors=[force(tokens)])
    beginning = "".join(piece for _, piece in zip(range(received), stream, strict=False))
    stream.close()
    assert stream.result is not None
    assert stream.result.text.startswith(beginning)
    if stream.result.stop_reason == "interrupted":
        read = rwkv.tokenizer.to_bytes(stream.result.tokens)
        assert read.decode("utf-8", "replace") == stream.result.text == beginning


def test_a_state_of_huge_values_is_blamed_and_not_the_model(rwkv: RWKV, tmp_path: Path) -> None:
    array = rwkv.model.to_numpy(rwkv.get_state()).astype(np.float32)
    array[:, :2] = 3e38
    save_state(tmp_path / "huge.state", State(array, model=rwkv.model.fingerprint))
    rwkv.load_state(tmp_path / "huge.state")
    rwkv.load_context("a")
    with pytest.raises(StateError, match=r"^state: .* without it they are: its values are damaged"):
        rwkv.generate(5, seed=1)


def test_a_model_that_gives_no_numbers_is_blamed_and_not_the_state(
    folder: Path, tmp_path: Path
) -> None:
    with open_checkpoint(folder / "model.pth") as model:
        weights = {name: np.float32(model.read(name)) for name in model.tensors}
    weights["head.weight"] = np.full_like(weights["head.weight"], 3e38)
    weights["ln_out.bias"] = np.full_like(weights["ln_out.bias"], 2)
    write_pth(tmp_path / "model.pth", weights)
    rwkv = RWKV(tmp_path / "model.pth", tokenizer=folder / "tokenizer.json")
    rwkv.load_context("a")
    with pytest.raises(RWKVError, match="the model file or its dtype is at fault"):
        rwkv.generate(5, seed=1)
