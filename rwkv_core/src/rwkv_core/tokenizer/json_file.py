"""Reads and checks a `tokenizers` JSON file before the `tokenizers` library gets it.

The library trusts its files: a small file can make it panic (a BaseException in Python), allocate
gigabytes until the process is killed, or compute forever. So this module limits sizes, and refuses
steps that no byte-level tokenizer needs. The library then gets the checked content, written again
as JSON: if a key occurs twice, two parsers may choose different values.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rwkv_core.errors import TokenizerError
from rwkv_core.util.printable import printable

MAX_BYTES = 32 * 2**20  # of a file; known ones have up to 17 MB
MAX_TOKENS = 2**20
MAX_ADDED_BYTES = 2**20  # of all added tokens' text
MAX_STEPS = 16
MAX_DEPTH = 3
MAX_STRING = 2000
MAX_REPEATS = 1000

# fmt: off
_NORMALIZERS = {
    "NFC", "NFD", "NFKC", "NFKD", "Nmt", "Lowercase", "Strip", "StripAccents", "BertNormalizer",
    "ByteLevel", "Prepend",
}
_PRE_TOKENIZERS = {
    "ByteLevel", "Split", "Digits", "Punctuation", "Whitespace", "WhitespaceSplit",
    "BertPreTokenizer", "CharDelimiterSplit", "Metaspace", "UnicodeScripts",
}
# fmt: on


def read_bounded(path: Path, max_bytes: int) -> bytes:
    """Return the file's content. Raises TokenizerError if it is unreadable or over `max_bytes`."""
    try:
        with path.open("rb") as file:
            content = file.read(max_bytes + 1)
    except OSError as error:
        raise TokenizerError(f"{path}: cannot be read: {error.strerror or error}") from None
    if len(content) > max_bytes:
        raise TokenizerError(
            f"{path}: found more than {max_bytes >> 20} MiB, expected a tokenizer's file, "
            "which is smaller"
        )
    return content


@contextmanager
def library_errors(problem: str) -> Iterator[None]:
    """Turn all errors of the `tokenizers` library, also panics, into TokenizerError."""
    try:
        yield
    except TokenizerError:
        raise
    # The library raises plain Exception for every error in a file.
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise TokenizerError(f"{problem} ({printable(error)})") from None


def parse(text: str | bytes, name: str) -> dict[str, Any]:
    """Return the content of a tokenizer's JSON. Raises TokenizerError if it cannot be used."""
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise TokenizerError(f"{name}: not a tokenizer's JSON file ({printable(error)})") from None
    try:
        _check(content)
    except _Refused as reason:
        raise TokenizerError(f"{name}: {reason}") from None
    except (KeyError, TypeError, AttributeError):
        raise TokenizerError(f"{name}: not a tokenizer's JSON file") from None
    # Neither is used here, and both could make the library fail.
    return {**content, "truncation": None, "padding": None, "post_processor": None}


class _Refused(Exception):
    """The content is refused; the caller adds the file's name to the message."""


def _check(content: dict[str, Any]) -> None:
    model, added = content["model"], content.get("added_tokens") or []
    decoder = _type(content.get("decoder"))
    if decoder != "ByteLevel":
        raise _Refused(f"found decoder {printable(decoder)}, expected a byte-level tokenizer")
    # Files from before 2021 do not name the kind of model.
    if model.get("type", "BPE") != "BPE":
        raise _Refused(f"found a model of kind {printable(model['type'])}, expected BPE")
    if sum(len(token["content"]) for token in added) > MAX_ADDED_BYTES:
        raise _Refused(f"found more than {MAX_ADDED_BYTES} characters in added tokens")
    for number in (*model["vocab"].values(), *(token["id"] for token in added)):
        if type(number) is not int or not 0 <= number < MAX_TOKENS:
            raise _Refused(
                f"found the token number {printable(number, 40)}, expected 0 to {MAX_TOKENS - 1}"
            )
    _check_steps("normalizer", content.get("normalizer"), "normalizers", _NORMALIZERS)
    _check_steps("pre-tokenizer", content.get("pre_tokenizer"), "pretokenizers", _PRE_TOKENIZERS)


def _check_steps(what: str, part: Any, key: str, known: set[str]) -> None:
    steps = list(_steps(what, part, key))
    if len(steps) > MAX_STEPS:
        raise _Refused(f"found {len(steps)} steps in its {what}, expected at most {MAX_STEPS}")
    kinds = [_type(step) for step in steps]
    for kind, step in zip(kinds, steps, strict=True):
        if kind not in known:
            raise _Refused(
                f"found {what} {printable(kind)}, expected one that a byte-level tokenizer needs"
            )
        _check_step(f"{what} {kind}", step)
    # Each of these steps doubles the text, except ASCII.
    if kinds.count("ByteLevel") > 1:
        raise _Refused(f"found {what} ByteLevel more than once")


def _steps(what: str, part: Any, key: str, depth: int = 0) -> Iterator[dict[str, Any]]:
    """Yield all steps, with sequences replaced by their steps."""
    if depth > MAX_DEPTH:
        raise _Refused(f"found sequences more than {MAX_DEPTH} deep in its {what}")
    if _type(part) == "Sequence":
        for inner in part[key]:
            yield from _steps(what, inner, key, depth + 1)
    elif part is not None:
        yield part


def _type(part: Any) -> Any:
    return "none" if part is None else part["type"]


def _check_step(what: str, step: dict[str, Any]) -> None:
    for name, value in step.items():
        if isinstance(value, dict) and name == "pattern":
            value = _check_pattern(what, value)
        if not isinstance(value, str | bool | int | float | None):
            raise _Refused(f"{what}: found {name} as a {type(value).__name__}")
        # The library takes the first character of this text without checking that it has one.
        if isinstance(value, str) and not 0 < len(value) <= MAX_STRING:
            raise _Refused(
                f"{what}: found {len(value)} characters as {name}, expected 1 to {MAX_STRING}"
            )


def _check_pattern(what: str, pattern: dict[str, Any]) -> Any:
    """Return the text of a pattern, after checking its repeat counts.

    A large count takes gigabytes to compile. Slow matches are no problem: the library stops after
    about ten million steps.
    """
    ((kind, text),) = pattern.items()
    if kind == "Regex" and isinstance(text, str):
        counts = re.findall(r"\{(\d*),?(\d*)\}", text[: MAX_STRING + 1])
        repeats = math.prod(max(1, *(int(one[:9] or 1) for one in pair)) for pair in counts)
        if repeats > MAX_REPEATS:
            raise _Refused(f"{what}: found a pattern that repeats a part {repeats} times")
    return text
