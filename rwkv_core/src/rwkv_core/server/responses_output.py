"""The output of `/v1/responses`, as items and as the events that build them."""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Sequence
from typing import Any

from rwkv_core.server import sse
from rwkv_core.server.tool_calls import Parts

_NO_LOGPROBS: list[Any] = []


def output_items(parts: Parts, thought: str) -> list[dict[str, Any]]:
    """Return the items of a complete answer."""
    found = [_thought(thought)] if thought else []
    if parts.content or not parts.calls:
        found.append(_message(f"msg_{secrets.token_hex(16)}", "completed", [_text(parts.content)]))
    found += [_call(call, "completed") for call in parts.calls]
    if parts.is_cut:
        found[-1]["status"] = "incomplete"
    return found


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


def _call(call: dict[str, Any], status: str) -> dict[str, Any]:
    function = call["function"]
    return {
        "id": f"fc_{secrets.token_hex(16)}", "type": "function_call", "status": status,
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
        self._open_call: dict[str, Any] | None = None

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

    def calls(self, deltas: Sequence[dict[str, Any]], is_open: bool) -> Iterator[bytes]:
        """Yield the events for new parts of calls, as a `CallStream` gives them.

        `is_open` tells whether more arguments of the last call will come.
        """
        for delta in deltas:
            if "id" in delta:
                yield from self._end_call("completed")
                self._open_call = item = _call(delta, "in_progress")
                yield self.of("response.output_item.added", output_index=self._place, item=item)
            else:
                assert self._open_call is not None
                arguments = delta["function"]["arguments"]
                self._open_call["arguments"] += arguments
                place = {"item_id": self._open_call["id"], "output_index": self._place}
                kind = "response.function_call_arguments.delta"
                yield self.of(kind, **place, delta=arguments)
        if not is_open:
            yield from self._end_call("completed")

    def _end_call(self, status: str) -> Iterator[bytes]:
        item, self._open_call = self._open_call, None
        if item is None:
            return
        item["status"] = status
        place = {"item_id": item["id"], "output_index": self._place}
        if status == "completed":
            kind = "response.function_call_arguments.done"
            yield self.of(kind, **place, arguments=item["arguments"], name=item["name"])
        yield self.of("response.output_item.done", output_index=self._place, item=item)
        self.output.append(item)

    def end(self, parts: Parts, thought: str) -> Iterator[bytes]:
        """Yield the events that complete the message, and the calls that have not been sent."""
        if self._open_call is not None:
            yield from self._end_call("incomplete")
        if any(item["type"] == "function_call" for item in self.output):
            return
        rest = parts.content.removeprefix(self._content)
        if rest or not (self._message_id or parts.calls):
            yield from self.text(rest, thought)
        if self._message_id:
            text = self._content
            yield self._of_part("response.output_text.done", text=text, logprobs=_NO_LOGPROBS)
            yield self._of_part("response.content_part.done", part=_text(text))
            item = _message(self._message_id, "completed", [_text(text)])
            yield self.of("response.output_item.done", output_index=self._place, item=item)
            self.output.append(item)
        for call in parts.calls:
            function = call["function"]
            head = call | {"function": function | {"arguments": ""}}
            yield from self.calls([head, {"function": function}], is_open=False)

    @property
    def _place(self) -> int:
        return len(self.output)

    def _of_part(self, kind: str, **fields: Any) -> bytes:
        place = {"item_id": self._message_id, "output_index": self._place, "content_index": 0}
        return self.of(kind, **place, **fields)

    def _whole(self, item: dict[str, Any]) -> Iterator[bytes]:
        """Yield the events of an item that is sent in one piece."""
        yield self.of("response.output_item.added", output_index=self._place, item=item)
        yield self.of("response.output_item.done", output_index=self._place, item=item)
        self.output.append(item)
