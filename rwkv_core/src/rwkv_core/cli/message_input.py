'''Joins lines into messages. A line is a message, unless it ends with \\ or is in """ and """.'''

from __future__ import annotations

from rwkv_core.cli.line_input import ReadLine

_QUOTES = '"""'
_MORE = "... "


def read_message(read_line: ReadLine, prompt: str) -> str:
    """Return the next message as it was typed; `message_text` extracts the text from it.

    The end of the input also ends a message. If no line is left, raises EOFError, like `read_line`.
    Raises KeyboardInterrupt for Ctrl-C.
    """
    lines = [read_line(prompt)]
    while _goes_on(lines):
        try:
            lines.append(read_line(_MORE))
        except EOFError:
            break
    return "\n".join(lines)


def message_text(typed: str) -> str:
    r"""Return a message's text, without the quotes around it and without \ before newlines."""
    text = typed.strip()
    if text.startswith(_QUOTES):
        return text.removeprefix(_QUOTES).removesuffix(_QUOTES).strip("\n")
    return text.replace("\\\n", "\n").removesuffix("\\").strip()


def is_quoted(typed: str) -> bool:
    """Return whether a message is within quotes, and so is text, not a command."""
    return typed.lstrip().startswith(_QUOTES)


def _goes_on(lines: list[str]) -> bool:
    if is_quoted(lines[0]):
        text = "\n".join(lines).strip()
        return len(text) < 2 * len(_QUOTES) or not text.endswith(_QUOTES)
    return lines[-1].endswith("\\")
