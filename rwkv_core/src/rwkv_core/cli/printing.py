"""A generation's text on stdout, as it comes."""

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
    """Print `label`, the text and a newline, or nothing if `quiet`; Ctrl-C ends it in order.

    What there is by then is the result, and printed.
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
    """Print text of a model or a file as it is, but to a terminal nothing that steers it."""
    print(without_control(text) if sys.stdout.isatty() else text, end="", flush=True)


def speed(n_tokens: int, seconds: float) -> str:
    """Return how many tokens took how long."""
    return f"{n_tokens} tokens in {seconds:.2f} s, {n_tokens / max(seconds, 1e-9):.1f} tokens/s"


@contextmanager
def _noting_ctrl_c() -> Iterator[Callable[[], None]]:
    """Gives a function that raises KeyboardInterrupt if Ctrl-C was pressed.

    Python raises it in whatever runs: where that is called from a library's C code that clears
    errors, such as NumPy looking for an attribute, it is lost.
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

    # Ignored Ctrl-C, as of a program in the background, stays ignored.
    if before is not signal.default_int_handler:
        yield check
        return
    signal.signal(signal.SIGINT, press)
    try:
        yield check
    finally:
        signal.signal(signal.SIGINT, before)
