"""The command line: parse, call, print. Each command has a file of its own.

Exit status: 0, or 1 where a command reports a failure that it was asked to look for (`verify`),
2 for an error of one line on stderr, 130 for Ctrl-C, 141 where the reader of a pipe went away.
RWKV_DEBUG=1 adds the traceback to an error.
"""

from __future__ import annotations

import argparse
import os
import sys
import traceback
from collections.abc import Sequence
from typing import Any, NoReturn

import rwkv_core
from rwkv_core import plugins
from rwkv_core.cli import bench, chat, generate, list_backends, perplexity, verify, vram
from rwkv_core.cli.command import Command
from rwkv_core.errors import OptionError, RWKVError

__all__ = ["BUILTIN_COMMANDS", "Command", "main"]

BUILTIN_COMMANDS: tuple[Command, ...] = (
    list_backends.COMMAND,
    generate.COMMAND,
    chat.COMMAND,
    vram.COMMAND,
    perplexity.COMMAND,
    verify.COMMAND,
    bench.COMMAND,
)

_EXAMPLE = """\
example:
  rwkv-core generate "It was a dark and stormy night" -n 100 --seed 1

rwkv-core COMMAND --help shows what a command takes."""


class _Parser(argparse.ArgumentParser):
    """Argparse, whose errors are this program's: one line, and where to look."""

    def error(self, message: str) -> NoReturn:
        raise OptionError(f"{message} (see {self.prog} --help)")


class _Version(argparse.Action):
    """Looks the version up when it is asked for: that takes a while."""

    def __init__(self, option_strings: Sequence[str], dest: str, help: str) -> None:
        super().__init__(option_strings, argparse.SUPPRESS, nargs=0, help=help)

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        print(f"rwkv-core {rwkv_core.__version__}")
        parser.exit()


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line `argv` (by default the process's own); returns the exit status."""
    if hasattr(sys.stdout, "reconfigure"):
        # Generated text may hold a character that a terminal's encoding lacks.
        sys.stdout.reconfigure(errors="replace")
    try:
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
    # A plugin's or a library's own failure; hiding its traceback must not hide its kind.
    except Exception as error:
        return _fail(_one_line(error))


def _run(argv: Sequence[str] | None) -> int:
    args = _parser(_commands()).parse_args(argv)
    command: Command = args.command
    return command.run(args)


def _commands() -> list[Command]:
    """The built-in commands, then those of plugins; one that is faulty is a line on stderr."""
    commands = list(BUILTIN_COMMANDS)
    names = [command.name for command in commands]
    for name, command in plugins.offered("rwkv_commands").items():
        problem = f"{name} is a built-in command" if name in names else _problem(command)
        if problem:
            print(f"rwkv-core: a plugin's command {name} is left out: {problem}", file=sys.stderr)
        else:
            commands.append(command)
    return commands


def _problem(command: Any) -> str:
    if not isinstance(command, Command):
        return f"found a {type(command).__name__}, expected rwkv_core.cli.Command"
    try:
        command.add_arguments(_Parser())
    # One plugin must not keep the other commands from running.
    except Exception as error:
        return _one_line(error)
    return ""


def _one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def _parser(commands: Sequence[Command]) -> argparse.ArgumentParser:
    raw: Any = argparse.RawDescriptionHelpFormatter
    parser = _Parser(
        prog="rwkv-core",
        description="Runs RWKV-4 language models on whichever tensor library is installed.",
        epilog=_EXAMPLE,
        formatter_class=raw,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action=_Version, help="print the version and exit")
    choices = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for command in commands:
        description = f"{command.help}\n\n{command.description}".strip()
        child = choices.add_parser(
            command.name,
            help=command.help.replace("%", "%%"),
            description=description,
            formatter_class=raw,
            allow_abbrev=False,
        )
        command.add_arguments(child)
        child.set_defaults(command=command)
    return parser


def _fail(message: str) -> int:
    if os.environ.get("RWKV_DEBUG", "0") not in ("", "0"):
        traceback.print_exc()
    print(f"rwkv-core: error: {message}", file=sys.stderr)
    return 2


def _discard_stdout() -> None:
    """Keep Python from complaining, as it exits, about text that nobody reads."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
