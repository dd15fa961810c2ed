"""Several processes that run one command together, for example started by torchrun.

The environment variables WORLD_SIZE and RANK hold the number of processes and the number of this
process. A backend computes one model in all processes, and the user sees one program.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout

from rwkv_core.errors import OptionError


def several_processes() -> bool:
    """Return whether this process is one of several."""
    return os.environ.get("WORLD_SIZE", "1") != "1" and "RANK" in os.environ


def refuse_stdin(what: str, instead: str) -> None:
    """Raise OptionError if several processes would each read a part of stdin."""
    if several_processes():
        raise OptionError(f"{what}: several processes cannot share one stdin; {instead}")


@contextmanager
def as_one_program() -> Iterator[None]:
    """Let only the first process print to stdout, and no process ask the user. All use stderr."""
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
