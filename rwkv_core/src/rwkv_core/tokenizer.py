"""Text to tokens and back, through bytes: a token stands for bytes, text is what they decode to.

Reads byte-level BPE files of the `tokenizers` library, such as the `20B_tokenizer.json` of the
RWKV-4 Pile models.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from rwkv_core.errors import TokenizerError

if TYPE_CHECKING:
    import tokenizers

FILE_NAMES = ("tokenizer.json", "20B_tokenizer.json")


def byte_alphabet() -> dict[str, int]:
    """GPT-2's alphabet, in which byte-level vocabularies are written: character -> byte.

    A byte that is a printable Latin-1 character is written as itself; the others, in order, are
    written as the characters from U+0100 on.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    rest = [byte for byte in range(256) if byte not in printable]
    alphabet = {chr(byte): byte for byte in printable}
    alphabet.update({chr(0x100 + i): byte for i, byte in enumerate(rest)})
    return alphabet


class Tokenizer:
    """A byte-level vocabulary; `load_tokenizer` makes one.

    Attributes:
        n_vocab: one more than the highest token number.
        holes: the token numbers below n_vocab that no token has; they stand for no bytes.
    """

    def __init__(self, tokenizer: tokenizers.Tokenizer, name: str) -> None:
        """Raises TokenizerError unless every token of `tokenizer` stands for known bytes."""
        self._tokenizer, self._name = tokenizer, name
        table = _token_table(tokenizer, name)
        self.n_vocab = max(table) + 1
        self.holes = tuple(sorted(set(range(self.n_vocab)) - table.keys()))
        self._bytes = [table.get(token, b"") for token in range(self.n_vocab)]
        added = tokenizer.get_added_tokens_decoder().keys()
        self._byte_tokens = {
            data[0]: token for token, data in table.items() if len(data) == 1 and token not in added
        }

    def encode(self, text: str) -> list[int]:
        """The tokens of `text`.

        Raises TokenizerError for text that UTF-8 cannot express, and for a byte that the vocabulary
        lacks.
        """
        try:
            data = text.encode()
        except UnicodeEncodeError as error:
            raise TokenizerError(
                f"text: found a lone surrogate {text[error.start]!r} at {error.start}, "
                "expected text that UTF-8 can express"
            ) from None
        tokens: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        # The library drops what it has no token for.
        if not self._byte_tokens.keys() >= set(data) and self.to_bytes(tokens) != data:
            self._check_bytes(data)
        return tokens

    def encode_bytes(self, data: bytes) -> list[int]:
        """Tokens that stand for exactly `data`, which need not be whole characters.

        Text is encoded as text. Bytes that no character holds, and text that the tokenizer would
        alter (one that normalizes Unicode, say), become one token per byte. Raises TokenizerError
        if the vocabulary lacks a byte that this needs.
        """
        text = data.decode("utf-8", "surrogateescape")
        if not any("\udc80" <= character <= "\udcff" for character in text):
            tokens = self.encode(text)
            if self.to_bytes(tokens) == data:
                return tokens
        self._check_bytes(data)
        return [self._byte_tokens[byte] for byte in data]

    def _check_bytes(self, data: bytes) -> None:
        missing = set(data) - self._byte_tokens.keys()
        if missing:
            raise TokenizerError(f"{self._name}: has no token for the byte 0x{min(missing):02x}")

    def decode(self, tokens: list[int]) -> str:
        """The text of `tokens`; bytes that are not UTF-8 become U+FFFD."""
        return self.to_bytes(tokens).decode("utf-8", "replace")

    def to_bytes(self, tokens: list[int]) -> bytes:
        """The bytes of `tokens`. Raises TokenizerError for a number that is no token's."""
        return b"".join(map(self.token_bytes, tokens))

    def token_bytes(self, token: int) -> bytes:
        """The bytes of one token. Raises TokenizerError for a number out of range."""
        if not 0 <= token < self.n_vocab:
            raise TokenizerError(f"token: found {token}, expected 0 to {self.n_vocab - 1}")
        return self._bytes[token]


def _token_table(tokenizer: tokenizers.Tokenizer, name: str) -> dict[int, bytes]:
    """Token number -> its bytes. An added token is written as plain text, not in the alphabet."""
    alphabet = byte_alphabet()
    added = tokenizer.get_added_tokens_decoder()
    table = {token: entry.content.encode() for token, entry in added.items()}
    for written, token in tokenizer.get_vocab(with_added_tokens=False).items():
        if token in added:
            continue
        try:
            table[token] = bytes([alphabet[character] for character in written])
        except KeyError as error:
            raise TokenizerError(
                f"{name}: not byte-level: token {token}, {written!r}, holds {error}"
            ) from None
    if not table:
        raise TokenizerError(f"{name}: a tokenizer with no tokens in it")
    return table


def load_tokenizer(path: str | os.PathLike[str]) -> Tokenizer:
    """Read a tokenizer file. Raises TokenizerError unless it is a byte-level `tokenizers` JSON."""
    import tokenizers

    if not Path(path).is_file():
        raise TokenizerError(f"{path}: no such file, expected a tokenizer's JSON file")
    try:
        tokenizer = tokenizers.Tokenizer.from_file(os.fspath(path))
    # The library raises plain Exception for every fault of a file.
    except Exception as error:
        reason = " ".join(str(error).split())
        raise TokenizerError(f"{path}: not a tokenizer's JSON file ({reason})") from None
    return _byte_level(tokenizer, str(path))


def as_tokenizer(given: object) -> Tokenizer:
    """The Tokenizer that `given` is, names the file of, or, one of `tokenizers`, is copied to.

    Raises TokenizerError for anything else, and for one that is not byte-level.
    """
    if isinstance(given, Tokenizer):
        return given
    if isinstance(given, str | os.PathLike):
        return load_tokenizer(given)
    import tokenizers

    if isinstance(given, tokenizers.Tokenizer):
        return _byte_level(tokenizers.Tokenizer.from_str(given.to_str()), "tokenizer")
    raise TokenizerError(
        f"tokenizer: found a {type(given).__name__}, expected a tokenizer's JSON file, a Tokenizer "
        "of rwkv_core or one of the tokenizers library"
    )


def _byte_level(tokenizer: tokenizers.Tokenizer, name: str) -> Tokenizer:
    import tokenizers

    if not isinstance(tokenizer.decoder, tokenizers.decoders.ByteLevel):
        found = type(tokenizer.decoder).__name__ if tokenizer.decoder else "none"
        raise TokenizerError(f"{name}: found decoder {found}, expected a byte-level tokenizer")
    if _as_the_model_sees(tokenizer, _PROBE) != _PROBE:
        found = type(tokenizer.pre_tokenizer).__name__ if tokenizer.pre_tokenizer else "none"
        raise TokenizerError(
            f"{name}: found pre-tokenizer {found}, which loses characters; expected ByteLevel"
        )
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return Tokenizer(tokenizer, name)


# Spaces and a character of two bytes, neither of which any usual normalizer alters.
_PROBE = "a \N{LATIN SMALL LETTER SHARP S} b"


def _as_the_model_sees(tokenizer: tokenizers.Tokenizer, text: str) -> str:
    """The text that the pieces before tokenization spell, in the byte alphabet."""
    if tokenizer.normalizer:
        text = tokenizer.normalizer.normalize_str(text)
    if tokenizer.pre_tokenizer:
        text = "".join(piece for piece, _ in tokenizer.pre_tokenizer.pre_tokenize_str(text))
    alphabet = byte_alphabet()
    data = bytes(alphabet[character] for character in text if character in alphabet)
    # A space may be put before the text.
    return data.decode("utf-8", "replace").strip()


def find_tokenizer(model_path: str | os.PathLike[str]) -> Path:
    """The tokenizer file beside a model file. Raises TokenizerError if there is none."""
    folder = Path(model_path).parent
    for name in FILE_NAMES:
        if (folder / name).is_file():
            return folder / name
    raise TokenizerError(
        f"no {' or '.join(FILE_NAMES)} in {folder}: name one with tokenizer=... (--tokenizer)\n"
        "RWKV-4 Pile models take BlinkDL's 20B_tokenizer.json; others the file published with them"
    )


def check_fits(tokenizer: Tokenizer, n_vocab: int) -> None:
    """Raise TokenizerError if `tokenizer` has tokens that a model of `n_vocab` does not know.

    A smaller tokenizer fits: models are trained with vocabularies padded to a round size.
    """
    if tokenizer.n_vocab > n_vocab:
        raise TokenizerError(
            f"the tokenizer has {tokenizer.n_vocab} tokens, the model knows {n_vocab}: "
            "name the tokenizer that the model was trained with (--tokenizer)"
        )
