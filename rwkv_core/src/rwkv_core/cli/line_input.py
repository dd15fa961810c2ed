"""Reads lines for a chat: from a terminal, with editing and history, or from a pipe.

GNU readline, where Python has it, takes a paste of several lines as one line with newlines in it.
libedit and a Python without either do not: there, lines that wait when one is read belong to it.
prompt_toolkit has pastes everywhere, but takes 0.06 s to import and loses keys typed between
prompts.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress

ReadLine = Callable[[str], str]
# Terminals send a paste at once, and people type no two lines within this.
_PASTE_SECONDS = 0.02


def line_reader(history: Sequence[str]) -> ReadLine:
    """Return a function that shows a prompt and reads a line.

    It raises EOFError at the end of the input and KeyboardInterrupt for Ctrl-C. `history` holds
    what the arrow keys bring back, the oldest first.
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
    """Return whether somebody types the lines."""
    return sys.stdin.isatty()


def _read_beside_stdout(prompt: str) -> str:
    """Read a line where stdout goes to a file or a pipe, which is to hold answers alone."""
    print(prompt, end="", file=sys.stderr, flush=True)
    return input()


def _read_paste(prompt: str) -> str:
    """Read a line, and those that were pasted with it."""
    lines = [input(prompt)]
    while _has_more():
        try:
            lines.append(input())
        except EOFError:
            break
    return "\n".join(lines)


def _has_more() -> bool:
    """Return whether the terminal has a line, or the beginning of one, that was not read."""
    try:
        import msvcrt
    except ImportError:
        import select

        return bool(select.select([sys.stdin], [], [], _PASTE_SECONDS)[0])
    time.sleep(_PASTE_SECONDS)
    return bool(msvcrt.kbhit())  # type: ignore[attr-defined]


def _set_up_readline(history: Sequence[str]) -> bool:
    """Make `input` edit lines, with these to go back to. Returns whether it knows pastes."""
    import readline

    # Before 8.1 it is off by default.
    readline.parse_and_bind("set enable-bracketed-paste on")
    # No names of Python's to complete.
    readline.parse_and_bind("tab: self-insert")
    for entry in history:
        readline.add_history(entry)
    return "libedit" not in (readline.__doc__ or "")
