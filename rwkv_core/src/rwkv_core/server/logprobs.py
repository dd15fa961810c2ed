"""Logprobs in OpenAI's two formats. The texts of all tokens join to the generated text."""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from rwkv_core.generation.transcript import bytes_of
from rwkv_core.serving import TokenLogprob
from rwkv_core.tokenizer import Tokenizer


@dataclass(frozen=True)
class TokenText:
    """A token and the text that it adds. A character belongs to the token with its last byte."""

    text: str
    found: TokenLogprob


class TokenTexts:
    """Splits a growing text into the texts of its tokens."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def of(self, logprobs: Iterable[TokenLogprob]) -> list[TokenText]:
        """Return the texts of the next tokens."""
        return [TokenText(self._decoder.decode(one.bytes), one) for one in logprobs]


def chat_logprobs(tokenizer: Tokenizer, tokens: Sequence[TokenText]) -> dict[str, Any]:
    """Return the `logprobs` of a choice of `/v1/chat/completions`."""
    return {"content": [_chat_entry(tokenizer, one) for one in tokens], "refusal": None}


def _chat_entry(tokenizer: Tokenizer, one: TokenText) -> dict[str, Any]:
    return {
        "token": one.text,
        "logprob": one.found.logprob,
        "bytes": list(one.found.bytes),
        "top_logprobs": [
            {
                "token": bytes_of(tokenizer, token).decode("utf-8", "replace"),
                "logprob": logprob,
                "bytes": list(bytes_of(tokenizer, token)),
            }
            for token, logprob in one.found.top
        ],
    }


def text_logprobs(
    tokenizer: Tokenizer, tokens: Sequence[TokenText], n_top: int, offset: int
) -> dict[str, Any]:
    """Return the `logprobs` of a choice of `/v1/completions`.

    `offset` is the character of the choice's text at which the first token begins.
    """
    offsets = []
    for one in tokens:
        offsets.append(offset)
        offset += len(one.text)
    return {
        "tokens": [one.text for one in tokens],
        "token_logprobs": [one.found.logprob for one in tokens],
        "top_logprobs": [_top(tokenizer, one) for one in tokens] if n_top else None,
        "text_offset": offsets,
    }


def _top(tokenizer: Tokenizer, one: TokenText) -> dict[str, float] | None:
    if one.found.logprob is None:
        return None
    found: dict[str, float] = {}
    for token, logprob in one.found.top:
        # Tokens may have the same text, for example parts of characters: keep the likeliest.
        found.setdefault(bytes_of(tokenizer, token).decode("utf-8", "replace"), logprob)
    found.setdefault(one.text, one.found.logprob)
    return found
