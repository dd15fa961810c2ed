"""A line of progress on stderr, if that is a terminal."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rwkv_core.util.progress import OnProgress

if TYPE_CHECKING:
    from rwkv_core.rwkv import RWKV

_CLEAR = "\r\x1b[K"


@contextmanager
def progress_line(label: str) -> Iterator[OnProgress]:
    """Yield a function (done, total) that shows the progress. Erases the line at the end."""
    shown = -1

    def show(done: int, total: int) -> None:
        nonlocal shown
        percent = 100 * done // max(total, 1)
        if percent != shown and sys.stderr.isatty():
            print(f"{_CLEAR}{label} {percent}%", end="", file=sys.stderr, flush=True)
            shown = percent

    try:
        yield show
    finally:
        if shown >= 0:
            print(_CLEAR, end="", file=sys.stderr, flush=True)


def read_prompt(rwkv: RWKV, text: str) -> None:
    """Read `text` into `rwkv`'s running state, and show the progress."""
    with progress_line("reading the prompt") as progress:
        rwkv.load_context(text, on_progress=progress)
