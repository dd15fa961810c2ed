"""The parser of `rwkv-core`: argparse with one-line errors that suggest the intended name."""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Collection, Sequence
from itertools import takewhile
from typing import Any, NoReturn

from rwkv_core.errors import OptionError


class Parser(argparse.ArgumentParser):
    """Raises OptionError for a mistake: one line that names the help page.

    A command's parser reports its unknown arguments itself. argparse would leave them to the
    program's parser, which does not know the command's options.
    """

    def error(self, message: str) -> NoReturn:
        raise OptionError(f"{message} (see {self.prog} --help)")

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        try:
            found, unknown = super().parse_known_args(args, namespace)
        except OptionError:
            # A mistyped option may be the reason why another argument is missing or wrong.
            if self._subparsers is None:
                self._refuse_unknown_options(args or [])
            raise
        if unknown:
            self._refuse_unknown_options(unknown)
            self.error(f"found {unknown[0]!r}, expected no more arguments")
        return found, unknown

    def _refuse_unknown_options(self, arguments: Sequence[str]) -> None:
        known = self._option_string_actions
        for argument in takewhile(lambda argument: argument != "--", arguments):
            name = argument.partition("=")[0]
            long = name.startswith("--") and " " not in name
            short = argument[:1] == "-" and argument[1:2].isalpha() and argument[:2] not in known
            if (long or short) and name not in known:
                self.error(f"unknown option {name}{hint_for(name, known)}")


def hint_for(name: str, known: Collection[str]) -> str:
    """Return the end of a message about an unknown `name`; "" if no known name is similar.

    Unlike `util.spelling`, it prefers names that begin with `name`: options may be shortened.
    """
    begun = [one for one in known if one.startswith(name) and len(name) > 2]
    close = begun or difflib.get_close_matches(name, known, 1)
    return f"; did you mean {close[0]}?" if close else ""
