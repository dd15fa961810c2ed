"""The forms of the answers, for the OpenAPI description."""

from __future__ import annotations

from typing import Any, Literal, NotRequired

# On Python 3.11, pydantic refuses the standard library's.
from typing_extensions import TypedDict

FinishReason = Literal["stop", "length", "tool_calls"]
Status = Literal["in_progress", "completed", "incomplete", "cancelled"]


def described(form: Any, *other_types: str) -> dict[int | str, dict[str, Any]]:
    """Return the description of an answer: its form, and the media types that it has besides."""
    content: dict[str, Any] = {name: {} for name in other_types}
    return {200: {"model": form} | ({"content": content} if content else {})}


class CachedTokens(TypedDict):
    cached_tokens: int


class ReasoningTokens(TypedDict):
    reasoning_tokens: int


class Usage(TypedDict):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: CachedTokens
    completion_tokens_details: ReasoningTokens


class CalledFunction(TypedDict):
    name: str
    arguments: str


class Call(TypedDict):
    id: str
    type: Literal["function"]
    function: CalledFunction


class TopLogprob(TypedDict):
    token: str
    logprob: float
    bytes: list[int]


class ChatLogprob(TopLogprob):
    top_logprobs: list[TopLogprob]


class ChatLogprobs(TypedDict):
    content: list[ChatLogprob]
    refusal: None


class AnswerMessage(TypedDict):
    role: Literal["assistant"]
    content: str | None
    refusal: None
    annotations: list[Any]
    reasoning_content: NotRequired[str | None]
    tool_calls: NotRequired[list[Call]]


class ChatChoice(TypedDict):
    index: int
    message: AnswerMessage
    logprobs: ChatLogprobs | None
    finish_reason: FinishReason


class ChatCompletion(TypedDict):
    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChatChoice]
    usage: Usage


class TextLogprobs(TypedDict):
    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None] | None
    text_offset: list[int]


class TextChoice(TypedDict):
    index: int
    text: str
    logprobs: TextLogprobs | None
    finish_reason: FinishReason


class TextCompletion(TypedDict):
    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[TextChoice]
    usage: Usage


class Embedding(TypedDict):
    object: Literal["embedding"]
    index: int
    embedding: list[float] | str


class EmbeddingUsage(TypedDict):
    prompt_tokens: int
    total_tokens: int


class Embeddings(TypedDict):
    object: Literal["list"]
    data: list[Embedding]
    model: str
    usage: EmbeddingUsage


class OutputText(TypedDict):
    type: Literal["output_text"]
    text: str
    annotations: list[Any]
    logprobs: list[Any]


class OutputMessage(TypedDict):
    id: str
    type: Literal["message"]
    status: Status
    role: Literal["assistant"]
    content: list[OutputText]


class OutputCall(TypedDict):
    id: str
    type: Literal["function_call"]
    status: Status
    call_id: str
    name: str
    arguments: str


class OutputThought(TypedDict):
    id: str
    type: Literal["reasoning"]
    summary: list[Any]
    content: list[dict[str, str]]


class ResponseUsage(TypedDict):
    input_tokens: int
    input_tokens_details: CachedTokens
    output_tokens: int
    output_tokens_details: ReasoningTokens
    total_tokens: int


class Reason(TypedDict):
    reason: str


class Response(TypedDict):
    id: str
    object: Literal["response"]
    created_at: int
    status: Status
    error: None
    incomplete_details: Reason | None
    instructions: str | None
    max_output_tokens: int | None
    model: str
    output: list[OutputMessage | OutputCall | OutputThought]
    parallel_tool_calls: bool
    previous_response_id: str | None
    reasoning: dict[str, str | None]
    store: bool
    temperature: float
    text: dict[str, Any]
    tool_choice: str | dict[str, Any]
    tools: list[dict[str, Any]]
    top_p: float
    truncation: Literal["disabled"]
    usage: ResponseUsage
    metadata: dict[str, str]


class Deleted(TypedDict):
    id: str
    object: str
    deleted: Literal[True]


class Model(TypedDict):
    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    max_model_len: int
    architecture: str
    chat_template: str


class Models(TypedDict):
    object: Literal["list"]
    data: list[Model]


class NamedState(TypedDict):
    id: str
    object: Literal["state"]
    created: int
    bytes: int
    tuned: bool


class NamedStates(TypedDict):
    object: Literal["list"]
    data: list[NamedState]


class TokenPiece(TypedDict):
    id: int
    piece: str | list[int]


class Tokens(TypedDict):
    count: int
    max_model_len: int
    tokens: list[int] | list[TokenPiece]
    token_strs: NotRequired[list[str]]


class DetokenizedText(TypedDict):
    prompt: str
    content: str


class TokenizerInfo(TypedDict):
    tokenizer_class: str
    vocab_size: int
    eos_token: str | None
    eos_token_id: int | None
    model_max_length: int
    chat_template: str
    stop_strings: list[str]
