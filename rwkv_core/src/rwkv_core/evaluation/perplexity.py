"""Measures how well a model predicts a text: nats per token, perplexity, bits per byte.

Every token of a text is scored, also the first token. For this, the model first reads token 0
(<|endoftext|> in the Pile and World vocabularies), which precedes every document in training.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from rwkv_core.errors import OptionError, RWKVError
from rwkv_core.generation.stream import FIRST_TOKEN
from rwkv_core.util.progress import OnProgress

if TYPE_CHECKING:
    from rwkv_core.model import Model
    from rwkv_core.tokenizer import Tokenizer

_CHUNK = 256
# Rows of logits that are converted to float64 per step.
_ROWS = 32


@dataclass(frozen=True)
class Score:
    """Score of a text.

    Attributes:
        name: name of the text, such as its file.
        tokens, bytes: number of scored tokens, and number of their bytes in UTF-8.
        nats: minus the natural logarithm of the probability that the model gave to the text.
        seconds: time of scoring.
    """

    name: str
    tokens: int
    bytes: int
    nats: float
    seconds: float

    @property
    def nats_per_token(self) -> float:
        return self.nats / self.tokens

    @property
    def perplexity(self) -> float:
        # exp overflows above 709; a model with such a score is broken.
        return math.exp(min(self.nats_per_token, 709.0))

    @property
    def bits_per_byte(self) -> float:
        return self.nats / math.log(2) / self.bytes


def total(scores: Iterable[Score], name: str = "total") -> Score:
    """Return the sum of several texts' scores."""
    rows = list(scores)
    return Score(
        name,
        sum(row.tokens for row in rows),
        sum(row.bytes for row in rows),
        math.fsum(row.nats for row in rows),
        math.fsum(row.seconds for row in rows),
    )


def read_text(path: str | os.PathLike[str]) -> str:
    """Return a file's text. Raises OptionError if it is empty, unreadable or not UTF-8."""
    try:
        text = Path(path).read_bytes().decode()
    except OSError as error:
        raise OptionError(f"{path}: cannot be read: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise OptionError(
            f"{path}: not UTF-8 at byte {error.start}; convert it, or name a text file"
        ) from None
    if not text:
        raise OptionError(f"{path}: is empty, expected a text to score")
    return text


def score(
    model: Model,
    tokenizer: Tokenizer,
    text: str,
    name: str = "text",
    context: int | None = None,
    max_tokens: int | None = None,
    on_progress: OnProgress | None = None,
) -> Score:
    """Score a text.

    Arguments:
        context: number of tokens after which the model starts again with an empty state; None:
            keep the state through the whole text.
        max_tokens: score only this number of tokens from the beginning.
        on_progress: called with the number of tokens scored so far and in all.

    Raises OptionError for an empty text and for a number below 1.
    """
    for option, value in (("context", context), ("max_tokens", max_tokens)):
        if value is not None and value < 1:
            raise OptionError(f"{option}: found {value}, expected at least 1")
    tokens, n_bytes = encode(tokenizer, text, name, max_tokens)
    began = time.perf_counter()
    nats = score_tokens(model, tokens, context, on_progress)
    return Score(name, len(tokens), n_bytes, nats, time.perf_counter() - began)


def encode(
    tokenizer: Tokenizer, text: str, name: str = "text", max_tokens: int | None = None
) -> tuple[list[int], int]:
    """Return a text's first `max_tokens` tokens (None: all), and the number of their bytes.

    Raises OptionError for an empty text.
    """
    tokens = tokenizer.encode(text)
    if not tokens:
        raise OptionError(f"{name}: is empty, expected a text to score")
    if max_tokens is None or max_tokens >= len(tokens):
        return tokens, len(text.encode())
    tokens = tokens[:max_tokens]
    return tokens, len(tokenizer.to_bytes(tokens))


@np.errstate(all="ignore")
def score_tokens(
    model: Model,
    tokens: Sequence[int],
    context: int | None = None,
    on_progress: OnProgress | None = None,
) -> float:
    """Return the nats of all `tokens` together, the first one predicted after token 0.

    `context` is as in `score`. Raises OptionError for tokens outside the vocabulary, and RWKVError
    if logits are NaN or infinite.
    """
    nats, done = [], 0
    for logits, targets in _predictions(model, tokens, context):
        for part in _parts(targets):
            nats.append(_nats(_log_probabilities(logits[part]), targets[part]))
        done += len(targets)
        if on_progress is not None:
            on_progress(done, len(tokens))
    return _finite_sum(nats)


@np.errstate(all="ignore")
def compare_tokens(
    reference: Model,
    model: Model,
    tokens: Sequence[int],
    context: int | None = None,
    on_progress: OnProgress | None = None,
) -> tuple[float, float, float]:
    """Score `tokens` with `model`, and compare it with `reference`, which has the same vocabulary.

    Returns the nats of all tokens under `model`; the KL divergence of its predictions from the
    reference's predictions, in nats, summed over all tokens; and the time of `model` in seconds.
    Both models read the text chunk by chunk, and only one chunk's logits are held in memory. Raises
    the errors of `score_tokens`.
    """
    nats, divergences, seconds, done = [], [], 0.0, 0
    predictions = _predictions(model, tokens, context)
    for expected, targets in _predictions(reference, tokens, context):
        began = time.perf_counter()
        found, _ = next(predictions)
        seconds += time.perf_counter() - began
        for part in _parts(targets):
            p, q = _log_probabilities(expected[part]), _log_probabilities(found[part])
            nats.append(_nats(q, targets[part]))
            divergences.append(float((np.exp(p) * (p - q)).sum()))
        done += len(targets)
        if on_progress is not None:
            on_progress(done, len(tokens))
    return _finite_sum(nats), _finite_sum(divergences), seconds


def _predictions(
    model: Model, tokens: Sequence[int], context: int | None
) -> Iterator[tuple[NDArray[np.float32], NDArray[np.int64]]]:
    """Yield for each chunk the model's logits [T, V], and the tokens [T] that followed."""
    length = context or len(tokens)
    for start in range(0, len(tokens), length):
        window = tokens[start : start + length]
        read = [FIRST_TOKEN, *window[:-1]]
        state = None
        for i in range(0, len(window), _CHUNK):
            logits, state = model.forward(read[i : i + _CHUNK], state, all_logits=True)
            yield model.to_numpy(logits), np.asarray(window[i : i + _CHUNK], np.int64)


def _parts(targets: NDArray[np.int64]) -> Iterator[slice]:
    return (slice(i, i + _ROWS) for i in range(0, len(targets), _ROWS))


def _log_probabilities(logits: NDArray[Any]) -> NDArray[np.float64]:
    rows = logits.astype(np.float64)
    rows -= rows.max(axis=1, keepdims=True)
    rows -= np.log(np.exp(rows).sum(axis=1, keepdims=True))
    return rows


def _nats(log_probabilities: NDArray[np.float64], targets: NDArray[np.int64]) -> float:
    return -float(log_probabilities[np.arange(len(targets)), targets].sum())


def _finite_sum(nats: list[float]) -> float:
    result = math.fsum(nats)
    if not math.isfinite(result):
        raise RWKVError(
            "the model's logits are not all numbers: a dtype too narrow for this model, or a "
            "damaged file; try dtype=float32"
        )
    return result
