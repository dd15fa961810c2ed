"""Prints text on stdout while it is generated."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rwkv_core.util.printable import without_control

if TYPE_CHECKING:
    from rwkv_core.generation.stream import GenerationStream


def print_pieces(running: GenerationStream, label: str = "", quiet: bool = False) -> None:
    """Print `label`, the generated text and a newline. If `quiet`, print nothing.

    After Ctrl-C, the result is the text that was printed before.
    """
    try:
        with _noting_ctrl_c() as check:
            if not quiet:
                print_text(label)
            for piece in running:
                if not quiet:
                    print_text(piece)
                check()
    except KeyboardInterrupt:
        running.close()
    finally:
        if not quiet:
            print(flush=True)


def print_text(text: str) -> None:
    """Print a model's or a file's text, on a terminal without control characters."""
    print(without_control(text) if sys.stdout.isatty() else text, end="", flush=True)


def speed(n_tokens: int, seconds: float) -> str:
    """Return a text with the number of tokens, their time and their rate."""
    return f"{n_tokens} tokens in {seconds:.2f} s, {n_tokens / max(seconds, 1e-9):.1f} tokens/s"


@contextmanager
def _noting_ctrl_c() -> Iterator[Callable[[], None]]:
    """Yield a function that raises KeyboardInterrupt if Ctrl-C was pressed.

    Python's own KeyboardInterrupt can get lost: it is raised in whatever code runs, and some C code
    discards errors, for example when NumPy looks for an attribute.
    """
    pressed = False
    before = signal.getsignal(signal.SIGINT)

    def press(number: int, frame: object) -> None:
        nonlocal pressed
        pressed = True
        raise KeyboardInterrupt

    def check() -> None:
        if pressed:
            raise KeyboardInterrupt

    # Where Ctrl-C is ignored, as in a background program, it stays ignored.
    if before is not signal.default_int_handler:
        yield check
        return
    signal.signal(signal.SIGINT, press)
    try:
        yield check
    finally:
        signal.signal(signal.SIGINT, before)
