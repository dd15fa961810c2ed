"""Chooses the model if -m is absent: asks the user on a terminal, or takes the bundled model."""

from __future__ import annotations

import sys
from pathlib import Path

from rwkv_core import bundled
from rwkv_core.errors import OptionError
from rwkv_core.util.printable import printable

_MAX_NAMED = 3


def choose_model(named: str | None) -> str:
    """Return `named` if it is given, else the user's choice among the models in the current folder.

    The user is asked only on a terminal, and only if the folder has models. Otherwise the name of
    the bundled model is returned. Raises OptionError if the user chooses no model.
    """
    if named is not None:
        return named
    from rwkv_core.model_file import model_files

    files = model_files(Path())
    if not files:
        return bundled.NAME
    names = [str(path) for path in files]
    if sys.stdin.isatty() and sys.stderr.isatty():
        return _ask(names)
    more = ", ..." if len(names) > _MAX_NAMED else ""
    listed = ", ".join(map(printable, names[:_MAX_NAMED])) + more
    print(f"-m names a model; in this folder: {listed}", file=sys.stderr)
    return bundled.NAME


def _ask(names: list[str]) -> str:
    choices = [*names, bundled.NAME]
    from rwkv_core.checkpoint.folder import model_bytes

    notes = [f"{model_bytes(Path(name)) / 2**20:.0f} MiB" for name in names]
    notes.append("ships with rwkv-core")
    for i, (choice, note) in enumerate(zip(choices, notes, strict=True), 1):
        print(f"{i:3}  {printable(choice)}  ({note})", file=sys.stderr)
    while True:
        print(f"which model? 1 to {len(choices)} [1]: ", end="", file=sys.stderr, flush=True)
        line = sys.stdin.readline()
        if not line:
            raise OptionError("no model chosen; name one with -m")
        answer = line.strip() or "1"
        if answer in choices:
            return answer
        if answer.isdecimal() and 1 <= int(answer) <= len(choices):
            return choices[int(answer) - 1]
