"""Scores of texts, as a library and as `rwkv-core perplexity`."""

import json
import math

import numpy as np
import pytest

import rwkv_core
from rwkv_core.cli import main
from rwkv_core.errors import OptionError
from rwkv_core.perplexity import score, score_tokens, total

pytestmark = pytest.mark.needs_backend

TEXT = "The cat sat on the mat, näive and thin. " * 3


@pytest.fixture
def rwkv(small_model, backend):
    return rwkv_core.RWKV(small_model, backend)


def direct_nats(model, tokens):
    """By the definition, in one piece."""
    logits = model.to_numpy(model.forward([0, *tokens[:-1]], all_logits=True)[0])
    logits = logits.astype(np.float64)
    chosen = logits[np.arange(len(tokens)), tokens]
    return float((np.log(np.exp(logits).sum(axis=1)) - chosen).sum())


def test_nats_are_minus_the_log_probability_of_every_token(rwkv):
    tokens = rwkv.tokenizer.encode(TEXT)
    assert score_tokens(rwkv.model, tokens) == pytest.approx(direct_nats(rwkv.model, tokens))


def test_a_long_text_is_read_in_pieces_with_one_state(rwkv):
    tokens = [i * 7 % 256 for i in range(600)]
    seen = []
    nats = score_tokens(rwkv.model, tokens, on_progress=lambda *row: seen.append(row))
    assert nats == pytest.approx(direct_nats(rwkv.model, tokens), rel=1e-5)
    assert seen == [(256, 600), (512, 600), (600, 600)]


def test_with_a_context_each_window_is_scored_by_itself(rwkv):
    tokens = rwkv.tokenizer.encode(TEXT)
    windows = [tokens[i : i + 25] for i in range(0, len(tokens), 25)]
    nats = sum(direct_nats(rwkv.model, window) for window in windows)
    assert score_tokens(rwkv.model, tokens, context=25) == pytest.approx(nats)


def test_a_score_derives_its_figures_from_nats(rwkv):
    found = score(rwkv.model, rwkv.tokenizer, TEXT)
    assert found.bytes == len(TEXT.encode()) and found.tokens == len(rwkv.tokenizer.encode(TEXT))
    assert found.perplexity == pytest.approx(math.exp(found.nats / found.tokens))
    assert found.bits_per_byte == pytest.approx(found.nats / math.log(2) / found.bytes)


def test_max_tokens_counts_the_bytes_of_those_alone(rwkv):
    found = score(rwkv.model, rwkv.tokenizer, TEXT, max_tokens=5)
    tokens = rwkv.tokenizer.encode(TEXT)[:5]
    assert (found.tokens, found.bytes) == (5, len(rwkv.tokenizer.to_bytes(tokens)))
    assert found.nats == pytest.approx(direct_nats(rwkv.model, tokens))


def test_the_total_weighs_texts_by_their_length(rwkv):
    scores = [score(rwkv.model, rwkv.tokenizer, text) for text in (TEXT, "short")]
    overall = total(scores)
    assert overall.bits_per_byte == pytest.approx(
        sum(row.nats for row in scores) / math.log(2) / sum(row.bytes for row in scores)
    )


@pytest.mark.parametrize("options", [{"context": 0}, {"max_tokens": 0}])
def test_numbers_below_one_are_refused(rwkv, options):
    with pytest.raises(OptionError, match="found 0, expected at least 1"):
        score(rwkv.model, rwkv.tokenizer, TEXT, **options)


@pytest.fixture
def texts(tmp_path):
    (tmp_path / "a.txt").write_bytes(TEXT.encode())
    (tmp_path / "b.txt").write_bytes(b"thin\r\n")
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    (tmp_path / "empty.txt").write_bytes(b"")
    return tmp_path


def test_the_command_prints_a_row_for_each_file_and_the_total(texts, small_model, capsys):
    files = [str(texts / "a.txt"), str(texts / "b.txt")]
    assert main(["perplexity", *files, "-m", str(small_model)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[:3] == ["text", "tokens", "bytes"]
    assert [line.split()[0] for line in lines[1:]] == [*files, "total"]


def test_the_command_as_json(texts, small_model, capsys):
    arguments = [str(texts / "b.txt"), "-m", str(small_model), "--context", "2", "--json"]
    assert main(["perplexity", *arguments]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["context"] == 2 and len(found["files"]) == 1
    assert found["total"]["bytes"] == 6
    assert set(found["files"][0]) == {
        "name", "tokens", "bytes", "nats", "nats_per_token", "perplexity", "bits_per_byte",
        "seconds",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("latin.txt", "not UTF-8 at byte 3"),
        ("empty.txt", "is empty"),
        ("absent.txt", "cannot be read"),
    ],
)
def test_a_file_that_cannot_be_scored_is_one_line(texts, small_model, capsys, name, message):
    files = [str(texts / "a.txt"), str(texts / name)]
    assert main(["perplexity", *files, "-m", str(small_model)]) == 2
    err = capsys.readouterr().err
    assert len(err.splitlines()) == 1 and name in err and message in err
