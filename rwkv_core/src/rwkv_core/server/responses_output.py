"""The output of `/v1/responses`, as items and as the events that build them."""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Sequence
from typing import Any

from rwkv_core.server import sse

_NO_LOGPROBS: list[Any] = []


def output_items(
    content: str, calls: Sequence[dict[str, Any]], thought: str
) -> list[dict[str, Any]]:
    """Return the items of a complete answer."""
    found = [_thought(thought)] if thought else []
    if content or not calls:
        found.append(_message(f"msg_{secrets.token_hex(16)}", "completed", [_text(content)]))
    return [*found, *map(_call, calls)]


def _thought(text: str) -> dict[str, Any]:
    content = [{"type": "reasoning_text", "text": text}]
    item_id = f"rs_{secrets.token_hex(16)}"
    return {"id": item_id, "type": "reasoning", "summary": [], "content": content}


def _message(item_id: str, status: str, content: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "id": item_id, "type": "message", "status": status, "role": "assistant",
        "content": content,
    }  # fmt: skip


def _text(text: str) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": _NO_LOGPROBS}


def _call(call: dict[str, Any]) -> dict[str, Any]:
    function = call["function"]
    return {
        "id": f"fc_{secrets.token_hex(16)}", "type": "function_call", "status": "completed",
        "call_id": call["id"], "name": function["name"], "arguments": function["arguments"],
    }  # fmt: skip


class ResponseEvents:
    """Numbers the events of one answer, and keeps its items.

    Attributes:
        output: the complete items.
    """

    def __init__(self) -> None:
        self.output: list[dict[str, Any]] = []
        self._n_events = 0
        self._message_id = ""
        self._content = ""

    def of(self, kind: str, **fields: Any) -> bytes:
        """Return the next event."""
        self._n_events += 1
        data = {"type": kind, "sequence_number": self._n_events - 1} | fields
        return sse.event(data, kind)

    def text(self, delta: str, thought: str) -> Iterator[bytes]:
        """Yield the events for new text of the message. `thought` is sent before the first text."""
        if not self._message_id:
            if thought:
                yield from self._whole(_thought(thought))
            self._message_id = f"msg_{secrets.token_hex(16)}"
            item = _message(self._message_id, "in_progress", [])
            yield self.of("response.output_item.added", output_index=self._place, item=item)
            yield self._of_part("response.content_part.added", part=_text(""))
        self._content += delta
        yield self._of_part("response.output_text.delta", delta=delta, logprobs=_NO_LOGPROBS)

    def end(self, content: str, calls: Sequence[dict[str, Any]], thought: str) -> Iterator[bytes]:
        """Yield the events that complete the message and add the calls."""
        rest = content.removeprefix(self._content)
        if rest or not (self._message_id or calls):
            yield from self.text(rest, thought)
        if self._message_id:
            text = self._content
            yield self._of_part("response.output_text.done", text=text, logprobs=_NO_LOGPROBS)
            yield self._of_part("response.content_part.done", part=_text(text))
            item = _message(self._message_id, "completed", [_text(text)])
            yield self.of("response.output_item.done", output_index=self._place, item=item)
            self.output.append(item)
        for call in calls:
            yield from self._whole(_call(call))

    @property
    def _place(self) -> int:
        return len(self.output)

    def _of_part(self, kind: str, **fields: Any) -> bytes:
        place = {"item_id": self._message_id, "output_index": self._place, "content_index": 0}
        return self.of(kind, **place, **fields)

    def _whole(self, item: dict[str, Any]) -> Iterator[bytes]:
        """Yield the events of an item that is sent in one piece."""
        yield self.of("response.output_item.added", output_index=self._place, item=item)
        if item["type"] == "function_call":
            place = {"item_id": item["id"], "output_index": self._place}
            arguments = item["arguments"]
            yield self.of("response.function_call_arguments.delta", **place, delta=arguments)
            yield self.of(
                "response.function_call_arguments.done", **place, arguments=arguments,
                name=item["name"],
            )  # fmt: skip
        yield self.of("response.output_item.done", output_index=self._place, item=item)
        self.output.append(item)
