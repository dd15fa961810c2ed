"""Tokenizers: text to tokens and back. A token stands for bytes, which are decoded as UTF-8."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Mapping

from rwkv_core import sources
from rwkv_core.errors import TokenizerError

# Token 0 of the Pile vocabulary. That of the World vocabulary has no bytes.
_END_OF_TEXT = b"<|endoftext|>"
_KINDS = "a tokenizer's JSON file or World's vocabulary"


class Tokenizer(ABC):
    """A vocabulary of byte strings; `load_tokenizer` makes one.

    Attributes:
        n_vocab: one more than the highest token number.
        holes: unused token numbers below n_vocab, which have no bytes.
        end_of_text: the token that ends a document, 0 in the Pile and World vocabularies; None if
            token 0 is ordinary text.
    """

    def __init__(self, table: Mapping[int, bytes], name: str) -> None:
        """Make a tokenizer with `table`, each token's bytes; errors call it `name`."""
        self._name = name
        self.n_vocab = max(table) + 1
        self.holes = tuple(sorted(set(range(self.n_vocab)) - table.keys()))
        self.end_of_text = 0 if table.get(0, b"") in (b"", _END_OF_TEXT) else None
        self._bytes = [table.get(token, b"") for token in range(self.n_vocab)]

    @abstractmethod
    def encode(self, text: str) -> list[int]:
        """Return the tokens of `text`.

        Raises TokenizerError for text that UTF-8 cannot express, and for a byte that the vocabulary
        lacks.
        """

    @abstractmethod
    def encode_bytes(self, data: bytes) -> list[int]:
        """Return tokens whose bytes are exactly `data`, which may end inside a character.

        Raises TokenizerError if the vocabulary lacks a byte of `data`.
        """

    def decode(self, tokens: list[int]) -> str:
        """Return the text of `tokens`; bytes that are not UTF-8 become U+FFFD.

        Raises TokenizerError for a number out of range.
        """
        return self.to_bytes(tokens).decode("utf-8", "replace")

    def to_bytes(self, tokens: list[int]) -> bytes:
        """Return the bytes of `tokens`. Raises TokenizerError for a number out of range."""
        return b"".join(map(self.token_bytes, tokens))

    def token_bytes(self, token: int) -> bytes:
        """Return the bytes of one token. Raises TokenizerError for a number out of range."""
        if not 0 <= token < self.n_vocab:
            raise TokenizerError(f"token: found {token}, expected 0 to {self.n_vocab - 1}")
        return self._bytes[token]

    def lacks(self, byte: int) -> TokenizerError:
        """Return the error for a byte that no token begins with."""
        return TokenizerError(f"{self._name}: has no token for the byte 0x{byte:02x}")


def utf8(text: str) -> bytes:
    """Return `text` in UTF-8.

    Raises TokenizerError for a lone surrogate, which UTF-8 cannot express, and if `text` is no str.
    """
    if not isinstance(text, str):
        raise TokenizerError(f"text: found a {type(text).__name__}, expected a str")
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise TokenizerError(
            f"text: found a lone surrogate {text[error.start]!r} at {error.start}, "
            "expected text that UTF-8 can express"
        ) from None


def load_tokenizer(file: str | os.PathLike[str]) -> Tokenizer:
    """Read a tokenizer file. The kind of the file is recognized by its content.

    Arguments:
        file: a path or an address, as for `sources.local_file`. The file is a byte-level BPE of the
            `tokenizers` library (JSON), or a vocabulary of RWKV's World models (text).

    Raises TokenizerError for a file of another kind or a damaged one, and DownloadError if an
    address cannot be downloaded.
    """
    path = sources.local_file(file)
    if not path.is_file():
        found = "not a file" if path.exists() else "no such file"
        raise TokenizerError(f"{path}: {found}, expected {_KINDS}")
    try:
        with path.open("rb") as opened:
            head = opened.read(64).removeprefix(b"\xef\xbb\xbf").lstrip()
    except OSError as error:
        raise TokenizerError(f"{path}: cannot be read: {error.strerror or error}") from None
    # A World vocabulary begins with a digit, a JSON object with a brace.
    if head[:1].isdigit():
        from rwkv_core.tokenizer.world import read_world_vocabulary

        return read_world_vocabulary(path)
    if not head.startswith(b"{"):
        raise TokenizerError(f"{path}: begins with {head[:8]!r}, expected {_KINDS}")
    from rwkv_core.tokenizer.byte_level import read_byte_level

    return read_byte_level(path)


def as_tokenizer(given: object) -> Tokenizer:
    """Return the Tokenizer for a Tokenizer, a file's path or address, or one of `tokenizers`.

    Raises TokenizerError for anything else, and for a tokenizer that is not byte-level.
    """
    if isinstance(given, Tokenizer):
        return given
    if isinstance(given, str | os.PathLike):
        return load_tokenizer(given)
    import tokenizers

    if isinstance(given, tokenizers.Tokenizer):
        from rwkv_core.tokenizer.byte_level import byte_level

        return byte_level(given.to_str(), "tokenizer")
    raise TokenizerError(
        f"tokenizer: found a {type(given).__name__}, expected a tokenizer's file, a Tokenizer "
        "of rwkv_core or one of the tokenizers library"
    )


def check_fits(tokenizer: Tokenizer, n_vocab: int) -> None:
    """Raise TokenizerError if `tokenizer` has more tokens than a model of `n_vocab` tokens.

    A smaller tokenizer fits: models are trained with vocabularies padded to a round size.
    """
    if tokenizer.n_vocab > n_vocab:
        raise TokenizerError(
            f"the tokenizer has {tokenizer.n_vocab} tokens, the model knows {n_vocab}: "
            "name the tokenizer that the model was trained with (--tokenizer)"
        )
