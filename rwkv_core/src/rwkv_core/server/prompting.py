"""A conversation as tokens, and the place in them up to which others will begin alike."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from itertools import takewhile

from rwkv_core.server.templates.base import Conversation, Message, Template
from rwkv_core.tokenizer import Tokenizer

# Users' texts that have nothing in common.
_ONE, _OTHER = "0", "x"


def system_text(template: Template, conversation: Conversation) -> str:
    """What the prompt begins with whatever the user says: the system prompt and the tools."""
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
    """How many of `tokens` end within `text`, with which theirs begins."""
    n_bytes, n_tokens = len(text.encode()), 0
    for token in tokens:
        n_bytes -= len(tokenizer.token_bytes(token))
        if n_bytes < 0:
            break
        n_tokens += 1
    return n_tokens
