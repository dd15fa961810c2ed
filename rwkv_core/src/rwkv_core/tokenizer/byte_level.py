"""Byte-level BPE, in files of the `tokenizers` library, as RWKV-4 models of the Pile use it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import tokenizers

from rwkv_core.errors import TokenizerError
from rwkv_core.tokenizer import Tokenizer, utf8
from rwkv_core.tokenizer.json_file import MAX_BYTES, library_errors, parse, read_bounded


def byte_alphabet() -> dict[str, int]:
    """Return GPT-2's alphabet of byte-level vocabularies, as a dict of bytes by character.

    A byte that is a printable Latin-1 character is written as itself. The others are written, in
    order, as the characters from U+0100 on.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    rest = [byte for byte in range(256) if byte not in printable]
    alphabet = {chr(byte): byte for byte in printable}
    alphabet.update({chr(0x100 + i): byte for i, byte in enumerate(rest)})
    return alphabet


class ByteLevelTokenizer(Tokenizer):
    """A tokenizer of the `tokenizers` library, whose merges split the text."""

    def __init__(
        self, tokenizer: tokenizers.Tokenizer, vocabulary: Mapping[str, int], name: str
    ) -> None:
        """Wrap `tokenizer`; `vocabulary` is its vocabulary without added tokens.

        Raises TokenizerError unless every token stands for known bytes.
        """
        added = tokenizer.get_added_tokens_decoder()
        table = _token_table(vocabulary, added, name)
        super().__init__(table, name)
        self._tokenizer = tokenizer
        self._byte_tokens = {
            data[0]: token for token, data in table.items() if len(data) == 1 and token not in added
        }

    def encode(self, text: str) -> list[int]:
        data = utf8(text)
        with library_errors(f"{self._name}: cannot encode this text"):
            tokens: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        # The library silently drops bytes that it has no token for.
        if not self._byte_tokens.keys() >= set(data) and self.to_bytes(tokens) != data:
            self._check_bytes(data)
        return tokens

    def encode_bytes(self, data: bytes) -> list[int]:
        """See `Tokenizer.encode_bytes`.

        Text is encoded as text. Bytes that are not UTF-8, and text that the tokenizer would change
        (for example by normalizing Unicode), become one token per byte.
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


def _token_table(
    vocabulary: Mapping[str, int], added: Mapping[int, tokenizers.AddedToken], name: str
) -> dict[int, bytes]:
    """Return the bytes of each token. Added tokens are plain text, not in the byte alphabet."""
    alphabet = byte_alphabet()
    # A Latin-1 character outside the alphabet must not be taken for the byte of its number.
    codes = dict.fromkeys(range(0x100), 0xFFFF) | {ord(one): alphabet[one] for one in alphabet}
    table = {}
    for written, token in vocabulary.items():
        try:
            table[token] = written.translate(codes).encode("latin-1")
        except UnicodeEncodeError as error:
            if token not in added:
                raise TokenizerError(
                    f"{name}: not byte-level: token {token}, {written[:80]!r}, "
                    f"holds {written[error.start]!r}"
                ) from None
    table.update({token: entry.content.encode() for token, entry in added.items()})
    if not table:
        raise TokenizerError(f"{name}: a tokenizer with no tokens in it")
    return table


def read_byte_level(path: Path) -> ByteLevelTokenizer:
    """Read a tokenizer file. Raises TokenizerError unless it is a byte-level `tokenizers` JSON."""
    return byte_level(read_bounded(path, MAX_BYTES), str(path))


def byte_level(text: str | bytes, name: str) -> ByteLevelTokenizer:
    """Return the tokenizer that `text`, a `tokenizers` JSON, describes.

    Raises TokenizerError if it is damaged or not byte-level.
    """
    content = parse(text, name)
    with library_errors(f"{name}: not a tokenizer's JSON file"):
        tokenizer = tokenizers.Tokenizer.from_str(json.dumps(content, ensure_ascii=False))
        seen = _as_the_model_sees(tokenizer, _PROBE)
    if seen != _PROBE:
        found = type(tokenizer.pre_tokenizer).__name__ if tokenizer.pre_tokenizer else "none"
        raise TokenizerError(
            f"{name}: found pre-tokenizer {found}, which loses characters; expected ByteLevel"
        )
    return ByteLevelTokenizer(tokenizer, content["model"]["vocab"], name)


# Spaces and a character of two bytes, which usual normalizers do not change.
_PROBE = "a \N{LATIN SMALL LETTER SHARP S} b"


def _as_the_model_sees(tokenizer: tokenizers.Tokenizer, text: str) -> str:
    """Return the text after normalization and pre-tokenization, in the byte alphabet."""
    if tokenizer.normalizer:
        text = tokenizer.normalizer.normalize_str(text)
    if tokenizer.pre_tokenizer:
        text = "".join(piece for piece, _ in tokenizer.pre_tokenizer.pre_tokenize_str(text))
    alphabet = byte_alphabet()
    data = bytes(alphabet[character] for character in text if character in alphabet)
    # The tokenizer may add a space before the text.
    return data.decode("utf-8", "replace").strip()
