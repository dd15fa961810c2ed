"""`/tokenize`, `/detokenize` and `/tokenizer_info`, in the formats of vLLM and llama.cpp."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter

from rwkv_core.errors import OptionError
from rwkv_core.generation.transcript import bytes_of
from rwkv_core.server import forms
from rwkv_core.server.access import Served
from rwkv_core.server.chat_body import ChatMessage
from rwkv_core.server.errors import invalid
from rwkv_core.server.fields import Body
from rwkv_core.server.service import Running
from rwkv_core.server.templates.base import Conversation
from rwkv_core.tokenizer import Tokenizer

router = APIRouter()


class TokenizeBody(Body):
    """The text as `prompt` (vLLM) or `content` (llama.cpp), or a conversation as `messages`."""

    model: str | None = None
    prompt: str | None = None
    content: str | None = None
    messages: list[ChatMessage] | None = None
    return_token_strs: bool | None = None
    with_pieces: bool | None = None


class DetokenizeBody(Body):
    """The tokens to decode to text."""

    model: str | None = None
    tokens: list[int]


@router.post("/tokenize", response_model=None, responses=forms.described(forms.Tokens))
def tokenize(body: TokenizeBody, served: Served) -> dict[str, Any]:
    """Return the tokens of a text."""
    served.check_model(body.model)
    tokenizer = served.engine.tokenizer
    tokens = tokenizer.encode(_text(body, served))
    found: dict[str, Any] = {
        "count": len(tokens),
        "max_model_len": served.settings.max_prompt,
        "tokens": tokens,
    }
    if body.return_token_strs:
        found["token_strs"] = [_text_or_bytes(tokenizer.token_bytes(one))[0] for one in tokens]
    if body.with_pieces:
        found["tokens"] = [
            {"id": one, "piece": _text_or_bytes(tokenizer.token_bytes(one))[1]} for one in tokens
        ]
    return found


@router.post("/detokenize")
def detokenize(body: DetokenizeBody, served: Served) -> forms.DetokenizedText:
    """Return the text of tokens."""
    served.check_model(body.model)
    n_vocab = served.engine.model.n_vocab
    for token in body.tokens:
        if not 0 <= token < n_vocab:
            raise OptionError(f"tokens: found {token}, expected 0 to {n_vocab - 1}")
    data = b"".join(bytes_of(served.engine.tokenizer, token) for token in body.tokens)
    text = data.decode("utf-8", "replace")
    return {"prompt": text, "content": text}


@router.get("/tokenizer_info")
def tokenizer_info(served: Served) -> forms.TokenizerInfo:
    """Describe the tokenizer and the chat template."""
    tokenizer, template = served.engine.tokenizer, served.template
    return {
        "tokenizer_class": type(tokenizer).__name__,
        "vocab_size": tokenizer.n_vocab,
        "eos_token": _end_of_text(tokenizer),
        "eos_token_id": tokenizer.end_of_text,
        "model_max_length": served.settings.max_prompt,
        "chat_template": template.name.rpartition("/")[2],
        "stop_strings": list(template.stops),
    }


def _text(body: TokenizeBody, served: Running) -> str:
    given = [one for one in (body.prompt, body.content, body.messages) if one is not None]
    if len(given) != 1:
        raise invalid("expected exactly one of prompt, content and messages", "prompt")
    if body.messages is None:
        return given[0]  # type: ignore[return-value]
    if not body.messages:
        raise invalid("messages: found an empty list, expected messages", "messages")
    messages = [message.as_message() for message in body.messages]
    return served.template.render(Conversation(messages)).text


def _end_of_text(tokenizer: Tokenizer) -> str | None:
    """Return the text of the token that ends a document; None if no text stands for it."""
    if tokenizer.end_of_text is None:
        return None
    return tokenizer.token_bytes(tokenizer.end_of_text).decode() or None


def _text_or_bytes(data: bytes) -> tuple[str, str | list[int]]:
    """Return a token's text, and its piece in llama.cpp's format: bytes if not valid UTF-8."""
    text = data.decode("utf-8", "replace")
    return text, text if text.encode() == data else list(data)
