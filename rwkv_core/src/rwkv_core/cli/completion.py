"""Completion of the command line by the shell's Tab key, which the extra `completion` brings."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Iterable
from contextlib import suppress


def complete(parser: argparse.ArgumentParser) -> None:
    """Where a shell asks for completions, print them and end the process."""
    if "_ARGCOMPLETE" in os.environ:
        # Registered with the shell, and not installed here: nothing is completed.
        with suppress(ImportError):
            import argcomplete

            argcomplete.autocomplete(parser, always_complete_options="long")


def complete_with(argument: argparse.Action, names: Callable[[], Iterable[str]]) -> None:
    """Offer `names` for an argument. Without this, files are offered."""
    argument.completer = lambda **_: names()  # type: ignore[attr-defined]
