"""What a command of `rwkv-core` is; plugins offer theirs through the hook `rwkv_commands`."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Command:
    """A command: `rwkv-core NAME ...`.

    Attributes:
        name: as it is typed.
        help: one line for the listing of `rwkv-core --help`.
        add_arguments: declares the command's arguments; called at every start of the program, so
            it imports nothing heavy.
        run: does the work and returns the exit status. Errors that a user can cause are raised as
            RWKVError and end as one line on stderr.
        description: further lines for the command's own --help, shown as they are.
    """

    name: str
    help: str
    add_arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], int]
    description: str = ""
