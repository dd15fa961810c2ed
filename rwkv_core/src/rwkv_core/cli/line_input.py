"""Reads lines for a chat: from a terminal, with editing and history, or from a pipe.

GNU readline, where Python has it, returns several pasted lines as one line with newlines in it.
libedit, or Python without either library, does not. So if more lines are waiting when a line is
read, this module takes them for a part of the same paste. prompt_toolkit handles pastes everywhere,
but takes 0.06 s to import and loses keys typed between prompts.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress

ReadLine = Callable[[str], str]
# Seconds within which lines belong to one paste: a terminal sends a paste at once, and nobody types
# two lines so fast.
_PASTE_SECONDS = 0.02


def line_reader(history: Sequence[str]) -> ReadLine:
    """Return a function that shows a prompt and reads a line.

    The function raises EOFError at the end of the input, and KeyboardInterrupt for Ctrl-C.
    `history` holds the lines for the arrow keys, the oldest first.
    """
    if not is_interactive():
        return lambda prompt: input()
    if not sys.stdout.isatty():
        return _read_beside_stdout
    with suppress(ImportError):  # Windows has none
        if _set_up_readline(history):
            return input
    return _read_paste


def is_interactive() -> bool:
    """Return whether the lines are typed on a terminal."""
    return sys.stdin.isatty()


def _read_beside_stdout(prompt: str) -> str:
    """Read a line without printing the prompt on stdout, where stdout is a file or a pipe."""
    print(prompt, end="", file=sys.stderr, flush=True)
    return input()


def _read_paste(prompt: str) -> str:
    """Read a line and the lines that were pasted with it."""
    lines = [input(prompt)]
    while _has_more():
        try:
            lines.append(input())
        except EOFError:
            break
    return "\n".join(lines)


def _has_more() -> bool:
    """Return whether the terminal has unread input."""
    try:
        import msvcrt
    except ImportError:
        import select

        return bool(select.select([sys.stdin], [], [], _PASTE_SECONDS)[0])
    time.sleep(_PASTE_SECONDS)
    return bool(msvcrt.kbhit())  # type: ignore[attr-defined]


def _set_up_readline(history: Sequence[str]) -> bool:
    """Make `input` edit lines, with `history`. Return whether it handles pastes."""
    import readline

    # Off by default before readline 8.1.
    readline.parse_and_bind("set enable-bracketed-paste on")
    # Tab must not complete names of Python.
    readline.parse_and_bind("tab: self-insert")
    for entry in history:
        readline.add_history(entry)
    return "libedit" not in (readline.__doc__ or "")
