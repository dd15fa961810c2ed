"""Scores of texts, as a library and as `rwkv-core perplexity`."""

import json
import math

import numpy as np
import pytest

import rwkv_core
from pth_writer import write_pth
from random_model import random_weights
from rwkv_core.cli import main
from rwkv_core.errors import CheckpointError, OptionError
from rwkv_core.evaluation.perplexity import compare_tokens, score, score_tokens, total
from rwkv_core.evaluation.precision_comparison import Precisions

pytestmark = pytest.mark.needs_backend

TEXT = "The cat sat on the mat, näive and thin. " * 3


@pytest.fixture
def rwkv(small_model, backend):
    return rwkv_core.RWKV(small_model, backend)


def direct_nats(model, tokens):
    """Compute the score by its definition, in one piece."""
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


def log_probabilities(model, tokens):
    logits = model.to_numpy(model.forward([0, *tokens[:-1]], all_logits=True)[0])
    logits = logits.astype(np.float64)
    return logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))


def test_the_divergence_of_two_models_is_the_mean_over_what_the_first_expects(
    rwkv, small_model, tmp_path, backend
):
    write_pth(tmp_path / "other.pth", random_weights(2, 32, rwkv.model.n_vocab, seed=2))
    other = rwkv_core.load(tmp_path / "other.pth", backend)
    tokens = rwkv.tokenizer.encode(TEXT) * 3
    assert len(tokens) > 256
    nats, divergence, _ = compare_tokens(rwkv.model, other, tokens)
    p, q = (log_probabilities(model, tokens) for model in (rwkv.model, other))
    assert nats == pytest.approx(score_tokens(other, tokens), rel=1e-5)
    assert divergence == pytest.approx((np.exp(p) * (p - q)).sum(), rel=1e-4)
    assert compare_tokens(rwkv.model, rwkv.model, tokens)[1] == pytest.approx(0, abs=1e-6)


def compare(*arguments):
    return main(["perplexity", *map(str, arguments), "--compare", "--group-size", "32"])


def test_precisions_are_compared(texts, small_model, capsys, monkeypatch):
    folder = texts / "temporary"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    assert compare(texts / "a.txt", texts / "b.txt", "-m", small_model) == 0
    header, *rows = (line.split() for line in capsys.readouterr().out.splitlines())
    assert header == [
        "precision", "perplexity", "bits/byte", "divergence", "matrices", "tokens/s",
    ]  # fmt: skip
    divergences = {row[0]: float(row[3]) for row in rows}
    names = list(divergences)
    assert names[0] == "float32" and names[-2:] == ["int8", "int4"]
    assert divergences["float32"] == 0
    assert 1e-6 < divergences["int8"] < 0.1 * divergences["int4"]
    assert list(folder.iterdir()) == []


def test_precisions_as_json(texts, small_model, capsys):
    arguments = ["-m", small_model, "--max-tokens", "9", "--context", "4", "--json"]
    assert compare(texts / "a.txt", *arguments) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["group_size"] == 32 and found["context"] == 4
    rows = {row["precision"]: row for row in found["precisions"]}
    n_weights = rows["float32"]["matrix_bytes"] / 4
    # Two layers: five matrices of 32 x 32 and two of 128 x 32; and the head, as the vocabulary.
    assert n_weights == 2 * (5 * 32 * 32 + 2 * 128 * 32) + 262 * 32
    assert rows["int8"]["matrix_bytes"] == n_weights * (1 + 4 / 32)
    assert rows["int4"]["matrix_bytes"] == n_weights * (0.5 + 4 / 32)
    model = rwkv_core.RWKV(small_model)
    expected = score(model.model, model.tokenizer, TEXT, context=4, max_tokens=9)
    assert rows["float32"]["perplexity"] == pytest.approx(expected.perplexity)


def test_what_is_temporary_goes_with_ctrl_c(texts, small_model, monkeypatch):
    folder = texts / "temporary"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    precisions = Precisions(small_model, [("text", TEXT)], group_size=32)
    seen = []

    def interrupt(done, total):
        seen.append(sorted(folder.iterdir()))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        precisions.compare("int4", interrupt)
    assert seen and list(folder.iterdir()) == []


def test_a_backend_that_fails_at_a_precision_leaves_it_out(
    texts, small_model, capsys, install_plugin, monkeypatch
):
    pytest.importorskip("rwkv_backend_numpy.numpy_ops")
    monkeypatch.delenv("RWKV_PLUGINS", raising=False)
    install_plugin("narrow", NARROW)
    assert compare(texts / "b.txt", "-m", small_model, "-b", "narrow") == 0
    found = capsys.readouterr()
    assert "float16 is left out: no float16 here" in found.err
    assert [line.split()[0] for line in found.out.splitlines()[1:]] == ["float32", "int8", "int4"]


NARROW = """
import rwkv_core
from rwkv_core import Backend, Option, OptionError, Status
from rwkv_backend_numpy.numpy_ops import NumpyOps

@rwkv_core.hookimpl
def rwkv_backends():
    dtype = Option("dtype", str, "float16", "type", ("float16", "float32"))
    return [Backend("narrow", "a test's", 2, lambda: Status(True), (dtype,))]

@rwkv_core.hookimpl
def rwkv_tensor_ops(backend, options):
    if backend == "narrow":
        if options["dtype"] == "float16":
            raise OptionError("no float16 here")
        return NumpyOps(options["dtype"])
"""


def test_a_backend_without_float32_is_compared_with_one_that_has_it(
    texts, small_model, capsys, install_plugin, monkeypatch
):
    pytest.importorskip("rwkv_backend_numpy.numpy_ops")
    monkeypatch.delenv("RWKV_PLUGINS", raising=False)
    install_plugin(
        "narrow", NARROW.replace("(dtype,)", "()").replace('options["dtype"]', "'float32'")
    )
    assert compare(texts / "b.txt", "-m", small_model, "-b", "narrow") == 0
    found = capsys.readouterr()
    assert "narrow" not in found.err
    assert [line.split()[0] for line in found.out.splitlines()[1:]] == ["float32", "int8", "int4"]


def test_comparisons_that_there_are_not(texts, small_model, capsys):
    quantized = rwkv_core.prequantize(small_model, texts / "small.pqth", group_size=32)
    for arguments, message in (
        (["-m", quantized], "is quantized already"),
        (["-m", small_model, "-o", "dtype=float32"], "dtype: found one, expected none"),
        (["-m", small_model, "-b", "absent"], "no backend 'absent' is installed"),
    ):
        assert compare(texts / "a.txt", *arguments) == 2
        assert message in capsys.readouterr().err
    with pytest.raises(CheckpointError):
        Precisions(quantized, [("text", TEXT)])
    assert main(["perplexity", str(texts / "a.txt"), "--group-size", "32"]) == 2
    assert "--group-size: needs --compare" in capsys.readouterr().err
