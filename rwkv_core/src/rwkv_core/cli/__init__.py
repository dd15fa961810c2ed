# PYTHON_ARGCOMPLETE_OK (argcomplete's global completion looks for this)
"""The command line: parse, call, print. Each command has a file of its own.

The exit status is 0 for success, 1 if `verify` finds a failure, 2 for an error, 130 for Ctrl-C, and
141 if the program that reads the output through a pipe has ended. An error is one line on stderr.
RWKV_DEBUG=1 adds the traceback to it.
"""

from __future__ import annotations

import argparse
import errno
import os
import sys
import traceback
import warnings
from collections.abc import Sequence
from contextlib import redirect_stdout
from typing import Any, TextIO

import rwkv_core
from rwkv_core import plugins
from rwkv_core.cli import (
    bench,
    chat,
    generate,
    list_backends,
    list_plugins,
    perplexity,
    prequantize,
    serve,
    verify,
    vram,
)
from rwkv_core.cli.completion import complete, complete_with
from rwkv_core.cli.model_arguments import (
    add_backend_arguments,
    add_model_arguments,
    add_tokenizer_argument,
    backend_options,
    load_model,
    load_rwkv,
)
from rwkv_core.cli.parser import Parser, hint_for
from rwkv_core.cli.printing import print_pieces
from rwkv_core.cli.processes import as_one_program
from rwkv_core.cli.sampling_arguments import add_sampling_arguments, sampling_options
from rwkv_core.errors import BackendWarning, RWKVError
from rwkv_core.plugins.command import Command
from rwkv_core.util.printable import one_line

# The helpers are public, so that a plugin's command can take -m, -b and -o like the built-in ones.
__all__ = [
    "BUILTIN_COMMANDS",
    "Command",
    "add_backend_arguments",
    "add_model_arguments",
    "add_sampling_arguments",
    "add_tokenizer_argument",
    "backend_options",
    "load_model",
    "load_rwkv",
    "main",
    "print_pieces",
    "sampling_options",
]


def _add_help_arguments(parser: argparse.ArgumentParser) -> None:
    name = parser.add_argument(
        "name", nargs="?", metavar="COMMAND", help="command to explain (default: list all commands)"
    )
    complete_with(name, lambda: [command.name for command in BUILTIN_COMMANDS])


# Never run: `help COMMAND` is read as `COMMAND --help`.
_HELP = Command("help", "show the help of a command", _add_help_arguments, lambda args: 0)

BUILTIN_COMMANDS: tuple[Command, ...] = (
    list_backends.COMMAND,
    generate.COMMAND,
    chat.COMMAND,
    serve.COMMAND,
    prequantize.COMMAND,
    vram.COMMAND,
    perplexity.COMMAND,
    verify.COMMAND,
    bench.COMMAND,
    list_plugins.COMMAND,
    _HELP,
)

_EXAMPLE = """\
example:
  rwkv-core generate "It was a dark and stormy night" -n 100 --seed 1

rwkv-core help COMMAND shows the options of a command."""


_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class _Version(argparse.Action):
    """Prints the version. It is looked up only here, since the look-up takes a while."""

    def __init__(self, option_strings: Sequence[str], dest: str, help: str) -> None:
        super().__init__(option_strings, argparse.SUPPRESS, nargs=0, help=help)

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        print(f"rwkv-core {rwkv_core.__version__}")
        parser.exit()


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line `argv` (by default the process's own). Return the exit status."""
    _open_closed_streams()
    if hasattr(sys.stdout, "reconfigure"):
        # Generated text may hold a character that a terminal's encoding lacks.
        sys.stdout.reconfigure(errors="replace")
    try:
        with as_one_program(), warnings.catch_warnings():
            warnings.showwarning = _print_warning
            status = _run(argv)
        sys.stdout.flush()
        return status
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        _discard_stdout()
        return 141
    except RWKVError as error:
        return _fail(str(error))
    # A failure of a plugin or library: without the traceback, the message must name its type.
    except Exception as error:
        if isinstance(error, OSError) and error.errno in _FULL and error.filename is None:
            _discard_stdout()
            return _fail(f"standard output cannot be written: {error.strerror}")
        return _fail(one_line(error) + plugins.whose_code(error))


def _print_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """Print the project's own warnings as one line, and others as usual."""
    if issubclass(category, BackendWarning):
        print(f"rwkv-core: {message}", file=sys.stderr)
    else:
        print(warnings.formatwarning(message, category, filename, lineno), end="", file=sys.stderr)


def _open_closed_streams() -> None:
    """Open the null device for standard streams that the shell closed, such as with `>&-`."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            stream = open(os.devnull, mode, encoding="utf-8", errors="replace")  # noqa: SIM115
            setattr(sys, name, stream)


def _run(argv: Sequence[str] | None) -> int:
    arguments = list(sys.argv[1:] if argv is None else argv) or ["--help"]
    if arguments[0] == "help":
        arguments = [*arguments[1:2], "--help"]
    commands = _commands()
    parser = _parser(commands)
    complete(parser)
    _check_command(parser, arguments[0], [command.name for command in commands])
    args = parser.parse_args(arguments)
    command: Command = args.command
    return command.run(args)


def _check_command(parser: Parser, first: str, names: list[str]) -> None:
    options = parser._option_string_actions
    if first.startswith("-") and first not in (*options, "--"):
        hint = hint_for(first, options) or "; the options of a command come after it"
        parser.error(f"unknown option {first}{hint}")
    if not first.startswith("-") and first not in names:
        parser.error(f"unknown command {first!r}{hint_for(first, names)}")


def _commands() -> list[Command]:
    """Return the built-in commands and the plugins' commands.

    A plugin's faulty command is left out, with a line on stderr.
    """
    commands = list(BUILTIN_COMMANDS)
    names = [command.name for command in commands]
    for name, command in plugins.offered("rwkv_commands").items():
        if name in names:
            _leave_out(name, f"{name} is a built-in command")
        elif not isinstance(command, Command):
            _leave_out(name, f"found a {type(command).__name__}, expected rwkv_core.cli.Command")
        else:
            commands.append(command)
    return commands


def _leave_out(name: str, problem: str) -> None:
    print(f"rwkv-core: a plugin's command {name} is left out: {problem}", file=sys.stderr)


def _parser(commands: Sequence[Command]) -> Parser:
    parser = Parser(
        prog="rwkv-core",
        description="Runs RWKV-4 to RWKV-7 models on whichever tensor library is installed.",
        epilog=_EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action=_Version, help="print the version and exit")
    choices = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for command in commands:
        try:
            with redirect_stdout(sys.stderr):
                _add_command(choices, command)
        except KeyboardInterrupt:
            raise
        # One plugin must not keep the other commands from running.
        except BaseException as error:
            if command in BUILTIN_COMMANDS:
                raise
            _leave_out(command.name, one_line(error))
            return _parser([other for other in commands if other is not command])
    return parser


def _add_command(choices: Any, command: Command) -> None:
    child = choices.add_parser(
        command.name,
        help=command.help.replace("%", "%%"),
        description=f"{command.help}\n\n{command.description}".strip(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    command.add_arguments(child)
    child.set_defaults(command=command)


def _fail(message: str) -> int:
    if os.environ.get("RWKV_DEBUG", "0") not in ("", "0"):
        traceback.print_exc()
    print(f"rwkv-core: error: {message}", file=sys.stderr)
    return 2


def _discard_stdout() -> None:
    """Discard unwritten text, so that Python prints no error about it when it exits."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
