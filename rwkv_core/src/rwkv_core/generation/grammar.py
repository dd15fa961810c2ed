"""Restricts text to a JSON schema, a regular expression or a grammar, with llguidance.

This needs the extra `[grammar]`. A grammar says which tokens may come next, and which must.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from rwkv_core.errors import OptionError
from rwkv_core.util.printable import printable

if TYPE_CHECKING:
    from rwkv_core.tokenizer import Tokenizer

# No optional white space: a weak model would never stop writing it.
_JSON_OPTIONS = {"whitespace_flexible": False}
ANY_OBJECT = {"type": "object"}


def json_schema_grammar(schema: str | Mapping[str, Any]) -> str:
    """Return the grammar for JSON that follows a schema (an object or JSON). Raises OptionError."""
    llguidance = _llguidance()
    try:
        parsed = json.loads(schema) if isinstance(schema, str) else dict(schema)
        if not isinstance(parsed, dict):
            raise ValueError("it is no object")
        text = json.dumps(parsed)
    except (ValueError, TypeError, RecursionError) as error:
        raise OptionError(f"json_schema: is not valid JSON: {printable(error)}") from None
    return _checked(
        "json_schema",
        llguidance.LLMatcher.grammar_from_json_schema(text, overrides=_JSON_OPTIONS),
    )


def regex_grammar(regex: str) -> str:
    """Return the grammar for text that matches a whole regular expression, in Rust's syntax.

    Raises OptionError if `regex` is not text or not a valid expression.
    """
    if not isinstance(regex, str):
        raise OptionError(f"regex: found a {type(regex).__name__}, expected text")
    return _checked("regex", _llguidance().LLMatcher.grammar_from_regex(regex))


def lark_grammar(grammar: str) -> str:
    """Return the grammar for a text in llguidance's variant of Lark. Raises OptionError."""
    if not isinstance(grammar, str):
        raise OptionError(f"grammar: found a {type(grammar).__name__}, expected text")
    return _checked("grammar", _llguidance().LLMatcher.grammar_from_lark(grammar))


def chosen_grammar(json_schema: Any, regex: str | None, grammar: str | None) -> str | None:
    """Return the grammar for the argument that is given; None without one. Raises OptionError."""
    if sum(one is not None for one in (json_schema, regex, grammar)) > 1:
        raise OptionError("json_schema, regex, grammar: found several, expected one of them")
    if json_schema is not None:
        return json_schema_grammar(json_schema)
    if regex is not None:
        return regex_grammar(regex)
    return None if grammar is None else lark_grammar(grammar)


class GrammarConstraint:
    """Restricts one text's tokens by a grammar. A `Constraint` of the engine."""

    def __init__(self, tokenizer: Tokenizer, grammar: str) -> None:
        """`grammar` is what one of this module's functions returned. Raises OptionError."""
        found = _tokens_of(tokenizer)
        self._matcher = _llguidance().LLMatcher(found, grammar, log_level=0)
        self._end = tokenizer.end_of_text
        self._n_vocab = tokenizer.n_vocab
        self._bits = np.zeros((1, (found.vocab_size + 31) // 32), np.int32)
        self._check()

    def mask(self) -> NDArray[np.bool]:
        """Return which tokens may come next, [V]; no token where the text is complete."""
        if self._matcher.is_stopped():
            return np.zeros(self._n_vocab, np.bool)
        self._matcher.unsafe_compute_mask_ptr(self._bits.ctypes.data, self._bits.nbytes)
        self._check()
        found = np.unpackbits(self._bits.view(np.uint8)[0], bitorder="little")
        return found[: self._n_vocab].astype(np.bool)

    def accept(self, token: int) -> None:
        """Advance by `token`, the next token of the text."""
        if not self._matcher.is_stopped():
            self._matcher.consume_token(token)
            self._check()

    def forced(self) -> list[int]:
        """Return the tokens that must come next."""
        if self._matcher.is_stopped():
            return []
        found = self._matcher.compute_ff_tokens()
        return found[: found.index(self._end)] if self._end in found else list(found)

    def _check(self) -> None:
        if self._matcher.is_error():
            raise OptionError(f"grammar: {printable(self._matcher.get_error(), 400)}")


class GrammarProcessor:
    """A grammar as a step of the sampling chain."""

    def __init__(self, constraint: GrammarConstraint) -> None:
        self._constraint, self._n_read = constraint, 0
        self._mask: NDArray[np.bool] | None = None

    def is_complete(self, history: Sequence[int]) -> bool:
        """Return whether no token may come after `history`."""
        return not self._mask_after(history).any()

    def __call__(self, logits: NDArray[Any], history: Sequence[int]) -> NDArray[Any]:
        mask = self._mask_after(history)
        allowed = np.zeros(len(logits), np.bool)
        allowed[: len(mask)] = mask[: len(logits)]
        return np.where(allowed, logits, -np.inf)

    def _mask_after(self, history: Sequence[int]) -> NDArray[np.bool]:
        if self._mask is None or self._n_read < len(history):
            for token in history[self._n_read :]:
                self._constraint.accept(token)
            self._n_read = len(history)
            self._mask = self._constraint.mask()
        return self._mask


def _llguidance() -> Any:
    try:
        import llguidance
    except ImportError:
        raise OptionError(
            "json_schema, regex, grammar: llguidance is not installed: pip install "
            "'rwkv-core[grammar]'"
        ) from None
    return llguidance


def _checked(name: str, grammar: str) -> str:
    is_error, messages = _llguidance().LLMatcher.validate_grammar_with_warnings(grammar)
    if is_error:
        raise OptionError(f"{name}: {printable('; '.join(messages), 400)}")
    return grammar


class _Vocabulary:
    """A tokenizer in the form that llguidance takes.

    llguidance needs a token that ends a document. If the vocabulary has none, a number beyond the
    vocabulary stands for such a token, and the model cannot choose it.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokens = [tokenizer.token_bytes(token) for token in range(tokenizer.n_vocab)]
        self.eos_token_id = tokenizer.end_of_text
        if self.eos_token_id is None:
            self.eos_token_id = len(self.tokens)
            self.tokens.append(b"<end>")
        self.bos_token_id = None
        self.special_token_ids = [self.eos_token_id]
        self._encode = tokenizer.encode_bytes

    def __call__(self, text: bytes | str) -> list[int]:
        return self._encode(text.encode() if isinstance(text, str) else text)


_vocabularies: WeakKeyDictionary[Tokenizer, Any] = WeakKeyDictionary()
_lock = threading.Lock()


def _tokens_of(tokenizer: Tokenizer) -> Any:
    """Return llguidance's tables of a vocabulary. They are made only once, since that is slow."""
    with _lock:
        if tokenizer not in _vocabularies:
            from llguidance import LLTokenizer
            from llguidance._tokenizer import TokenizerWrapper

            _vocabularies[tokenizer] = LLTokenizer(TokenizerWrapper(_Vocabulary(tokenizer)))
        return _vocabularies[tokenizer]
