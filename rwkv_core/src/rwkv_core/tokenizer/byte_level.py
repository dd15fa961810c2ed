"""Byte-level BPE, in files of the `tokenizers` library such as the RWKV-4 Pile models' 20B."""

from __future__ import annotations

import os

import tokenizers

from rwkv_core.errors import TokenizerError
from rwkv_core.tokenizer import Tokenizer, utf8


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


class ByteLevelTokenizer(Tokenizer):
    """A vocabulary of the `tokenizers` library, whose merges decide how text is cut."""

    def __init__(self, tokenizer: tokenizers.Tokenizer, name: str) -> None:
        """Raises TokenizerError unless every token of `tokenizer` stands for known bytes."""
        table = _token_table(tokenizer, name)
        super().__init__(table, name)
        self._tokenizer = tokenizer
        added = tokenizer.get_added_tokens_decoder().keys()
        self._byte_tokens = {
            data[0]: token for token, data in table.items() if len(data) == 1 and token not in added
        }

    def encode(self, text: str) -> list[int]:
        data = utf8(text)
        tokens: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        # The library drops what it has no token for.
        if not self._byte_tokens.keys() >= set(data) and self.to_bytes(tokens) != data:
            self._check_bytes(data)
        return tokens

    def encode_bytes(self, data: bytes) -> list[int]:
        """As for any tokenizer.

        Text is encoded as text. Bytes that no character holds, and text that the tokenizer would
        alter (one that normalizes Unicode, say), become one token per byte.
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
            raise self.lacks(min(missing))


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


def read_byte_level(path: str | os.PathLike[str]) -> ByteLevelTokenizer:
    """Read a file. Raises TokenizerError unless it is a byte-level `tokenizers` JSON."""
    try:
        tokenizer = tokenizers.Tokenizer.from_file(os.fspath(path))
    # The library raises plain Exception for every fault of a file.
    except Exception as error:
        reason = " ".join(str(error).split())
        raise TokenizerError(f"{path}: not a tokenizer's JSON file ({reason})") from None
    return byte_level(tokenizer, str(path))


def byte_level(tokenizer: tokenizers.Tokenizer, name: str) -> ByteLevelTokenizer:
    """A Tokenizer of the library's, which is changed. Raises TokenizerError for another kind."""
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
    return ByteLevelTokenizer(tokenizer, name)


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
