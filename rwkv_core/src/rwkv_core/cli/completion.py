"""Completion of the command line with the Tab key, with the extra `completion`."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Iterable
from contextlib import suppress


def complete(parser: argparse.ArgumentParser) -> None:
    """If a shell asks for completions, print them and end the process."""
    if "_ARGCOMPLETE" in os.environ:
        # The shell asks, but argcomplete is not installed: nothing is completed.
        with suppress(ImportError):
            import argcomplete

            argcomplete.autocomplete(parser, always_complete_options="long")


def complete_with(argument: argparse.Action, names: Callable[[], Iterable[str]]) -> None:
    """Complete an argument with `names()` instead of files."""
    argument.completer = lambda **_: names()  # type: ignore[attr-defined]
