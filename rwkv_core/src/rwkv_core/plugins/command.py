"""The type of `rwkv-core`'s commands; plugins add some with the hook `rwkv_commands`."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Command:
    """A command: `rwkv-core NAME ...`.

    Attributes:
        name: the name that a user types.
        help: one line for the list of commands in `rwkv-core --help`.
        add_arguments: declares the command's arguments. It is called at every start of the program,
            so it must not import large libraries.
        run: runs the command and returns the exit status. For an error that a user can cause, it
            raises RWKVError, which is shown as one line on stderr.
        description: further lines for the command's own --help, shown unchanged.
    """

    name: str
    help: str
    add_arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], int]
    description: str = ""
