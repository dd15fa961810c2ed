"""The tokenizer of RWKV's World models: a text file of tokens; text is split by longest match.

A line holds a token's number, its bytes as a Python literal (a str stands for its UTF-8) and their
count: `33125 ' story' 6`, `132 b'\\x83' 1`. Token 0, the end of a text, has no line and no bytes.
Source: rwkv_vocab_v20230424.txt and its reader in https://github.com/BlinkDL/ChatRWKV
"""

from __future__ import annotations

import ast
import re
import warnings
from collections.abc import Mapping
from pathlib import Path

from rwkv_core.errors import TokenizerError
from rwkv_core.tokenizer import Tokenizer, utf8
from rwkv_core.tokenizer.json_file import read_bounded

FILE_NAME = "rwkv_vocab_v20230424.txt"
N_VOCAB = 65536
"""Rows in a World model's embedding; the vocabulary itself has 65,530 tokens with token 0."""
MAX_BYTES = 8 * 2**20  # the published file has 1.1 MB

_LINE = re.compile(r"(\d{1,7}) (b?(?:'.*'|\".*\")) (\d{1,7})", re.ASCII)


class WorldTokenizer(Tokenizer):
    """Splits text greedily: at each place it takes the longest token that matches."""

    def __init__(self, table: Mapping[int, bytes], name: str) -> None:
        super().__init__(table, name)
        self._tokens = {data: token for token, data in table.items()}
        # By a token's first two bytes: the lengths of all such tokens, the longest first.
        lengths: dict[bytes, set[int]] = {}
        for data in self._tokens:
            lengths.setdefault(data[:2], set()).add(len(data))
        self._lengths = {
            start: tuple(sorted(found, reverse=True)) for start, found in lengths.items()
        }

    def encode(self, text: str) -> list[int]:
        return self.encode_bytes(utf8(text))

    def encode_bytes(self, data: bytes) -> list[int]:
        tokens: list[int] = []
        known, lengths = self._tokens, self._lengths
        at, end = 0, len(data)
        while at < end:
            for length in lengths.get(data[at : at + 2], ()):
                token = known.get(data[at : at + length])
                if token is not None and at + length <= end:
                    break
            else:
                length = 1
                token = known.get(data[at : at + 1])
                if token is None:
                    raise self.lacks(data[at])
            tokens.append(token)
            at += length
        return tokens


def read_world_vocabulary(path: Path) -> WorldTokenizer:
    """Read a vocabulary, without running code in it. Raises TokenizerError, with the wrong line."""
    try:
        text = read_bounded(path, MAX_BYTES).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise TokenizerError(f"{path}: not UTF-8 at byte {error.start}; expected text") from None
    table: dict[int, bytes] = {}
    seen: set[bytes] = set()
    for number, line in enumerate(text.removesuffix("\n").split("\n"), 1):
        try:
            token, data = _parse(line)
            if token in table or data in seen:
                raise ValueError("a token of this number or of these bytes came before")
        except ValueError as error:
            raise TokenizerError(
                f"{path}, line {number}: {line[:40]!r}: {error}; expected lines such as "
                "33125 ' story' 6; download the file again"
            ) from None
        table[token] = data
        seen.add(data)
    return WorldTokenizer(table, str(path))


def _parse(line: str) -> tuple[int, bytes]:
    """Return a line's token and its bytes. Raises ValueError, with the reason."""
    found = _LINE.fullmatch(line.rstrip("\r"))
    if found is None:
        raise ValueError("not a number, a literal and a length")
    token, length = int(found[1]), int(found[3])
    if not 0 < token < N_VOCAB:
        raise ValueError(f"found token {token}, expected 1 to {N_VOCAB - 1}")
    data = _bytes(found[2])
    if not data or len(data) != length:
        raise ValueError(f"found {len(data)} bytes, expected {length}, and at least one")
    return token, data


def _bytes(literal: str) -> bytes:
    """Return the bytes of a literal of str or bytes. Raises ValueError."""
    if "\\" not in literal:
        quote = literal[literal[0] == "b"]
        inner = literal.removeprefix("b")[1:-1]
        if quote not in inner and (literal[0] != "b" or inner.isascii()):
            return inner.encode()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", SyntaxWarning)
            warnings.simplefilter("error", DeprecationWarning)
            value = ast.literal_eval(literal)
        return value.encode() if isinstance(value, str) else bytes(value)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        raise ValueError("not a literal of text or bytes") from None
