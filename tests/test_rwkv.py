"""RWKV: the running state after streams, interrupts and errors; wrong input does not change it."""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tokenizers

from forced_tokens import (
    EMOJI,
    close,
    force,
    load,
    load_with_context,
    same,
    say,
    stepped,
    tokens_of,
    write_model,
)
from pth_writer import write_pth
from random_model import random_weights
from rwkv_core import RWKV, OptionError, Sampling, State, StateError, TokenizerError
from rwkv_core.generation.stream import Progress
from rwkv_core.tokenizer import load_tokenizer

pytestmark = pytest.mark.needs_backend


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("generation"))


@pytest.fixture
def rwkv(folder: Path, backend: str) -> RWKV:
    return load_with_context(folder, backend)


def test_loop_left_early_leaves_the_state_of_the_pieces_received(rwkv: RWKV) -> None:
    start = rwkv.get_state()
    tokens = tokens_of(rwkv.tokenizer, [b"a", b"b\n\nQ", b"c", b"a"])
    stream = rwkv.stream(4, stop_strings=["Qca\n"], processors=[force(tokens)])
    assert [next(stream), next(stream)] == ["a", "b\n\n"]
    state = rwkv.get_state()
    assert close(rwkv.model, state, rwkv.model.forward(rwkv.tokenizer.encode("ab\n\n"), start)[1])
    assert list(stream) == []
    assert stream.result is not None
    assert (stream.result.text, stream.result.stop_reason) == ("ab\n\n", "interrupted")
    assert stream.result.state is state


def test_stream_that_is_not_begun_changes_nothing(rwkv: RWKV) -> None:
    start = rwkv.get_state()
    stream = rwkv.stream(4)
    assert rwkv.get_state() is start
    assert list(stream) == []


def interrupt_at_the_fourth(logits: np.ndarray, history: Sequence[int]) -> np.ndarray:
    if len(history) == 3:
        raise KeyboardInterrupt
    return logits


def test_interrupt_settles_the_state_and_is_raised(rwkv: RWKV) -> None:
    start = rwkv.get_state()
    tokens = tokens_of(rwkv.tokenizer, [b"a", b"b", b"a", b"b"])
    processors = [force(tokens), interrupt_at_the_fourth]
    assert rwkv.last is None
    # A loop over prompts ends at the first.
    with pytest.raises(KeyboardInterrupt):
        for _ in range(2):
            rwkv.generate(4, stop_strings=["abc"], processors=processors)
    out = rwkv.last
    assert out is not None
    assert (out.text, out.tokens, out.stop_reason) == ("aba", tokens[:3], "interrupted")
    assert same(rwkv.model, out.state, stepped(rwkv, start, tokens[:3]))
    assert rwkv.get_state() is out.state


def test_interrupt_of_a_stream_leaves_the_state_of_the_pieces_received(rwkv: RWKV) -> None:
    start = rwkv.get_state()
    tokens = tokens_of(rwkv.tokenizer, [b"a", b"b", b"a", b"b"])
    processors = [force(tokens), interrupt_at_the_fourth]
    received = []
    stream = rwkv.stream(4, stop_strings=["abc"], processors=processors)
    with pytest.raises(KeyboardInterrupt):
        for piece in stream:
            received.append(piece)
    # "a" might have begun the stop string.
    assert received == ["ab"] and list(stream) == []
    out = rwkv.last
    assert out is not None and out is stream.result
    assert (out.text, out.tokens, out.stop_reason) == ("ab", tokens[:2], "interrupted")
    assert same(rwkv.model, rwkv.get_state(), stepped(rwkv, start, tokens[:2]))


def test_progress_tells_of_each_token_and_may_interrupt(rwkv: RWKV) -> None:
    told: list[Progress] = []

    def tell(progress: Progress) -> None:
        told.append(progress)
        if progress.current == 3:
            raise KeyboardInterrupt

    tokens = tokens_of(rwkv.tokenizer, [b"a", b"\n", b"bc", b"a"])
    with pytest.raises(KeyboardInterrupt):
        rwkv.generate(4, stop_strings=["\n\n"], on_progress=tell, processors=[force(tokens)])
    out = rwkv.last
    assert out is not None
    assert [progress.progress for progress in told] == ["a", "", "\nbc"]
    assert [progress.output for progress in told] == ["a", "a", "a\nbc"]
    assert [progress.tokens for progress in told] == [tokens[:1], tokens[:2], tokens[:3]]
    assert [(progress.current, progress.total) for progress in told] == [(1, 4), (2, 4), (3, 4)]
    assert told[-1].state is out.state
    assert told[-1].logits is out.logits
    assert (out.text, out.stop_reason) == ("a\nbc", "interrupted")


def test_error_in_progress_leaves_a_state_that_is_known(rwkv: RWKV) -> None:
    start = rwkv.get_state()
    tokens = tokens_of(rwkv.tokenizer, [b"a", b"b", b"c"])

    def fail(progress: Progress) -> None:
        if progress.current == 3:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        rwkv.generate(3, on_progress=fail, processors=[force(tokens)])
    assert rwkv.get_state() is start
    stream = rwkv.stream(3, on_progress=fail, processors=[force(tokens)])
    assert [next(stream), next(stream)] == ["a", "b"]
    with pytest.raises(ZeroDivisionError):
        next(stream)
    assert list(stream) == []
    assert same(rwkv.model, rwkv.get_state(), stepped(rwkv, start, tokens[:2]))


def test_running_state_cannot_be_used_while_progress_is_told(rwkv: RWKV) -> None:
    start = rwkv.get_state()
    with pytest.raises(StateError, match=r"use its argument's \.state"):
        rwkv.generate(3, on_progress=lambda progress: rwkv.get_state())
    assert rwkv.get_state() is start


def test_context_that_is_empty_changes_nothing(rwkv: RWKV) -> None:
    state = rwkv.get_state()
    rwkv.load_context("")
    rwkv.load_context([])
    assert rwkv.get_state() is state


def test_context_in_text_and_in_tokens_read_the_same(rwkv: RWKV) -> None:
    start = rwkv.get_state()
    rwkv.load_context("abc")
    by_text = rwkv.get_state()
    rwkv.set_state(start)
    rwkv.load_context(np.array(rwkv.tokenizer.encode("abc")))
    assert same(rwkv.model, rwkv.get_state(), by_text)


def test_progress_of_a_context_tells_of_each_chunk_and_changes_nothing_else(rwkv: RWKV) -> None:
    start = rwkv.get_state()
    tokens = rwkv.tokenizer.encode("abc" * 400)
    rwkv.load_context(tokens)
    whole = rwkv.get_state()
    rwkv.set_state(start)
    told: list[tuple[int, int]] = []
    rwkv.load_context(tokens, on_progress=lambda done, total: told.append((done, total)))
    ends = np.cumsum([0, *rwkv.model.ops.chunks(len(tokens))])
    assert len(ends) > 2
    assert told == [(end, len(tokens)) for end in ends]
    assert same(rwkv.model, rwkv.get_state(), whole)


def test_interrupt_while_a_context_is_read_leaves_the_running_state(rwkv: RWKV) -> None:
    start = rwkv.get_state()

    def interrupt(done: int, total: int) -> None:
        if done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        rwkv.load_context("abc" * 400, on_progress=interrupt)
    assert rwkv.get_state() is start
    with pytest.raises(OptionError, match="on_progress: found 3, expected a function"):
        rwkv.load_context("abc", on_progress=3)  # type: ignore[arg-type]
    assert rwkv.get_state() is start


def test_saved_state_goes_on_as_the_running_one(rwkv: RWKV, tmp_path: Path) -> None:
    say(rwkv, [b"a", b"\xf0", b"\x9f"])
    rwkv.save_state(tmp_path / "chat.state")
    rwkv.reset_state()
    rwkv.load_state(tmp_path / "chat.state")
    assert say(rwkv, [b"\x98", b"\x80"]).text == EMOJI


@pytest.mark.parametrize(
    "options",
    [
        {"max_tokens": -1}, {"max_tokens": 1.5}, {"max_tokens": True},
        {"stop_strings": "\n"}, {"stop_strings": [""]}, {"stop_strings": [3]},
        {"stop_strings": ["\ud800"]}, {"stop_strings": 3},
        {"stop_tokens": [10**6]}, {"stop_tokens": [-1]}, {"stop_tokens": 0},
        {"stop_tokens": ["a"]},
        {"seed": -1}, {"seed": "1"}, {"seed": 1.5}, {"seed": True},
        {"on_progress": 3}, {"processors": ["absent"]}, {"temperature": -1}, {"top_pp": 0.5},
        {"logit_bias": {10**6: 1.0}}, {"banned_tokens": [10**6]}, {"temp": 1},
        {"sampling": {"top_p": 0.5}}, {"sampling": {}}, {"sampling": 0.5},
        {"processors": np.negative}, {"processors": None}, {"processors": [None]},
        {"processors": "absent"},
    ],
)  # fmt: skip
def test_unusable_argument_is_refused_and_changes_nothing(
    rwkv: RWKV, options: dict[str, object]
) -> None:
    state = rwkv.get_state()
    for call in (rwkv.generate, rwkv.stream):
        with pytest.raises(OptionError) as error:
            call(**{"max_tokens": 5, **options})
        assert str(error.value).count("\n") <= 1
    assert rwkv.get_state() is state


@pytest.mark.parametrize("context", [b"bytes", 3, None, [10**6], [-1], [1.5], ["a"]])
def test_unusable_context_is_refused_and_changes_nothing(rwkv: RWKV, context: object) -> None:
    state = rwkv.get_state()
    with pytest.raises(OptionError):
        rwkv.load_context(context)  # type: ignore[arg-type]
    with pytest.raises(TokenizerError):
        rwkv.load_context("\ud800")
    assert rwkv.get_state() is state


def test_state_of_another_shape_is_refused_and_changes_nothing(rwkv: RWKV) -> None:
    state = rwkv.get_state()
    for bad in (None, State(np.zeros((1, 5, 32), np.float32)), rwkv.model.empty_state(2)):
        with pytest.raises(StateError):
            rwkv.set_state(bad)  # type: ignore[arg-type]
    assert rwkv.get_state() is state


def test_sampling_given_whole_is_the_start_of_the_options(rwkv: RWKV) -> None:
    state = rwkv.get_state()
    out = rwkv.generate(5, sampling=Sampling(temperature=2.0, top_k=3), temperature=0)
    rwkv.set_state(state)
    assert out.tokens == rwkv.generate(5, temperature=0).tokens


def test_sampler_of_a_plugin_is_used_by_name(
    rwkv: RWKV, install_plugin: Callable[..., Path]
) -> None:
    install_plugin(
        "only-a",
        "import rwkv_core, numpy as np\n"
        "from rwkv_core import Sampler\n"
        "def process(logits, history):\n"
        f"    return np.where(np.arange(len(logits)) == {1 + ord('a')}, 0.0, -np.inf)\n"
        "@rwkv_core.hookimpl\n"
        "def rwkv_samplers():\n"
        "    return [Sampler('only-a', 'says a', lambda options: process)]\n",
    )
    assert rwkv.generate(3, processors=["only-a"]).text == "aaa"
    with pytest.raises(OptionError, match=r"no sampler 'only-b' is installed .*only-a"):
        rwkv.generate(3, processors=["only-b"])


def test_tokenizer_is_found_named_or_given(folder: Path, backend: str, tmp_path: Path) -> None:
    model = load(folder / "model.pth", backend)
    path = folder / "tokenizer.json"
    given = load_tokenizer(path)
    for tokenizer in (None, path, str(path), given):
        assert RWKV(model, tokenizer=tokenizer).tokenizer.n_vocab == given.n_vocab
    assert RWKV(model, tokenizer=given).tokenizer is given
    with pytest.raises(TokenizerError, match="no such file"):
        RWKV(tmp_path / "absent.pth", backend=backend, tokenizer=tmp_path / "absent.json")


def test_tokenizer_of_the_library_is_taken_as_it_is(folder: Path, backend: str) -> None:
    library = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    library.enable_truncation(2)
    rwkv = RWKV(load(folder / "model.pth", backend), tokenizer=library)
    assert rwkv.tokenizer.encode("aaaaa") == load_tokenizer(folder / "tokenizer.json").encode(
        "aaaaa"
    )
    assert library.truncation is not None


@pytest.mark.parametrize("tokenizer", [5, b"tokenizer.json", [], False])
def test_what_is_no_tokenizer_is_refused(folder: Path, backend: str, tokenizer: object) -> None:
    with pytest.raises(TokenizerError, match="expected a tokenizer's file") as error:
        RWKV(load(folder / "model.pth", backend), tokenizer=tokenizer)  # type: ignore[arg-type]
    assert "\n" not in str(error.value)


def test_tokenizer_that_does_not_fit_is_refused(folder: Path, backend: str, tmp_path: Path) -> None:
    write_pth(tmp_path / "model.pth", random_weights(1, 16, 100))
    with pytest.raises(TokenizerError, match="the model knows 100"):
        RWKV(tmp_path / "model.pth", backend=backend, tokenizer=folder / "tokenizer.json")


def test_options_for_a_model_that_is_loaded_already_are_refused(folder: Path, backend: str) -> None:
    model = load(folder / "model.pth", backend)
    for options in ({"backend": backend}, {"dtype": "float32"}):
        with pytest.raises(OptionError, match="loaded already"):
            RWKV(model, **options)


def test_what_a_notebook_shows_of_each_object_fits_two_lines(rwkv: RWKV) -> None:
    told: list[Progress] = []
    rwkv.load_context("\x1b\n\u4e2d" * 500)
    out = rwkv.generate(200, temperature=5.0, seed=1, on_progress=told.append)
    named = replace(out.state, model="m" * 1000)
    for thing in (rwkv, rwkv.model, out.state, named, rwkv.empty_state(), out, told[-1]):
        assert repr(thing).startswith(f"{type(thing).__name__}(")
        assert len(repr(thing)) <= 160 and repr(thing).isprintable()
    assert "200 tokens" in repr(out) and rwkv.model.backend in repr(rwkv)


def test_generate_and_stream_show_all_that_they_take():
    generate, stream = (inspect.signature(one) for one in (RWKV.generate, RWKV.stream))
    assert generate.parameters == stream.parameters
    assert (generate.return_annotation, stream.return_annotation) == (
        "Generated", "GenerationStream",
    )  # fmt: skip
    shown = list(generate.parameters)
    assert shown[:2] == ["self", "max_tokens"]
    assert {"stop_strings", "seed", "sampling", *inspect.signature(Sampling).parameters} < {*shown}
