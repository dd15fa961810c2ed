"""Several processes that run one command together, as torchrun starts them.

Each is told how many there are (WORLD_SIZE) and which it is (RANK). A backend lets them compute one
model; to the user they are one program.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout

from rwkv_core.errors import OptionError


def several_processes() -> bool:
    """Whether this is one of several."""
    return os.environ.get("WORLD_SIZE", "1") != "1" and "RANK" in os.environ


def refuse_stdin(what: str, instead: str) -> None:
    """Raise OptionError if several processes would each read a part of stdin."""
    if several_processes():
        raise OptionError(f"{what}: several processes cannot share one stdin; {instead}")


@contextmanager
def as_one_program() -> Iterator[None]:
    """Only the first process prints to stdout, and none asks anything. All may use stderr."""
    if not several_processes():
        yield
        return
    stdin = sys.stdin
    with open(os.devnull, encoding="utf-8") as nothing, open(os.devnull, "w") as nowhere:
        sys.stdin = nothing
        try:
            with redirect_stdout(sys.stdout if os.environ["RANK"] == "0" else nowhere):
                yield
        finally:
            sys.stdin = stdin
