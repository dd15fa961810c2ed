"""How well a model predicts a text: nats per token, perplexity, bits per byte.

Every token of a text is scored, the first one too: the model first reads token 0, <|endoftext|> in
the Pile and World vocabularies, which is what documents begin after.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from rwkv_core.errors import OptionError, RWKVError
from rwkv_core.generation import FIRST_TOKEN

if TYPE_CHECKING:
    from rwkv_core.model import Model
    from rwkv_core.tokenizer import Tokenizer

_CHUNK = 256
# Rows of logits that are taken to float64 at a time.
_ROWS = 32

OnTokens = Callable[[int, int], object]


@dataclass(frozen=True)
class Score:
    """How a text scored.

    Attributes:
        name: the text's, such as its file.
        tokens, bytes: how many were scored; bytes are those of the text in UTF-8.
        nats: minus the natural logarithm of the probability that the model gave the text.
        seconds: what scoring took.
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
        # exp overflows past 709, where a model is broken anyway.
        return math.exp(min(self.nats_per_token, 709.0))

    @property
    def bits_per_byte(self) -> float:
        return self.nats / math.log(2) / self.bytes


def total(scores: Iterable[Score], name: str = "total") -> Score:
    """Several texts' scores as one."""
    rows = list(scores)
    return Score(
        name,
        sum(row.tokens for row in rows),
        sum(row.bytes for row in rows),
        math.fsum(row.nats for row in rows),
        math.fsum(row.seconds for row in rows),
    )


def read_text(path: str | os.PathLike[str]) -> str:
    """The text of a file. Raises OptionError for one that is empty, unreadable or not UTF-8."""
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
    on_progress: OnTokens | None = None,
) -> Score:
    """Score a text, of one character at least.

    Arguments:
        context: begin anew after every so many tokens; None: one state through the whole text.
        max_tokens: score only this many from the beginning.
        on_progress: called with the tokens scored so far and in all.

    Raises OptionError for an empty text and for a number below 1.
    """
    for option, value in (("context", context), ("max_tokens", max_tokens)):
        if value is not None and value < 1:
            raise OptionError(f"{option}: found {value}, expected at least 1")
    tokens = tokenizer.encode(text)
    if not tokens:
        raise OptionError(f"{name}: is empty, expected a text to score")
    n_bytes = len(text.encode())
    if max_tokens is not None and max_tokens < len(tokens):
        tokens = tokens[:max_tokens]
        n_bytes = len(tokenizer.to_bytes(tokens))
    began = time.perf_counter()
    nats = score_tokens(model, tokens, context, on_progress)
    return Score(name, len(tokens), n_bytes, nats, time.perf_counter() - began)


def score_tokens(
    model: Model,
    tokens: Sequence[int],
    context: int | None = None,
    on_progress: OnTokens | None = None,
) -> float:
    """Nats of all `tokens` in order, the first given token 0; `context` as for `score`.

    Raises OptionError for tokens that the model does not know, RWKVError for logits that are not
    numbers.
    """
    nats = []
    length = context or len(tokens)
    for start in range(0, len(tokens), length):
        window = tokens[start : start + length]
        read = [FIRST_TOKEN, *window[:-1]]
        state = None
        for i in range(0, len(window), _CHUNK):
            logits, state = model.forward(read[i : i + _CHUNK], state, all_logits=True)
            chunk = window[i : i + _CHUNK]
            nats.append(_nats(model.to_numpy(logits), np.asarray(chunk)))
            if on_progress is not None:
                on_progress(start + i + len(chunk), len(tokens))
    result = math.fsum(nats)
    if not math.isfinite(result):
        raise RWKVError(
            "the model's logits are not all numbers: a dtype too narrow for this model, or a "
            "damaged file; try dtype=float32"
        )
    return result


def _nats(logits: NDArray[Any], targets: NDArray[np.integer[Any]]) -> float:
    """Minus the log-probability of `targets` [T] under `logits` [T, V], summed."""
    nats = 0.0
    for i in range(0, len(targets), _ROWS):
        rows = logits[i : i + _ROWS].astype(np.float64)
        top = rows.max(axis=1)
        log_sums = top + np.log(np.exp(rows - top[:, None]).sum(axis=1))
        chosen = rows[np.arange(len(rows)), targets[i : i + _ROWS]]
        nats += float((log_sums - chosen).sum())
    return nats
