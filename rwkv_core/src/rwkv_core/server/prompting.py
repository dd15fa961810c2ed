"""Finds the prefix of a chat prompt that other conversations share: its system prompt."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from itertools import takewhile

from rwkv_core.server.templates.base import Conversation, Message, Template
from rwkv_core.tokenizer import Tokenizer

# Two user messages without a common prefix.
_ONE, _OTHER = "0", "x"


def system_text(template: Template, conversation: Conversation) -> str:
    """Return the prefix of the prompt that does not depend on what the user says.

    The prefix holds the system prompt and the tools. It is "" without a system prompt and tools.
    """
    systems = list(takewhile(lambda message: message.role == "system", conversation.messages))
    if not systems and not conversation.tools:
        return ""
    texts = [
        template.render(replace(conversation, messages=[*systems, Message("user", said)])).text
        for said in (_ONE, _OTHER)
    ]
    same = takewhile(lambda pair: pair[0] == pair[1], zip(*texts, strict=False))
    return "".join(one for one, _ in same)


def tokens_within(tokenizer: Tokenizer, tokens: Iterable[int], text: str) -> int:
    """Return how many of `tokens` end within `text`, which is a prefix of the tokens' text."""
    n_bytes, n_tokens = len(text.encode()), 0
    for token in tokens:
        n_bytes -= len(tokenizer.token_bytes(token))
        if n_bytes < 0:
            break
        n_tokens += 1
    return n_tokens
