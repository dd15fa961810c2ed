"""`rwkv-core list-backends`: which backends are installed, and how they are."""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING, Any

from rwkv_core import plugins
from rwkv_core.backend import install_line
from rwkv_core.cli.command import Command
from rwkv_core.cli.table import print_table
from rwkv_core.errors import BackendError
from rwkv_core.printable import printable

if TYPE_CHECKING:
    from rwkv_core.backend import BackendInfo, Option


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "name", nargs="?", metavar="NAME", help="show this backend alone, with the options it takes"
    )
    parser.add_argument("--json", action="store_true", help="print a list of objects")


def _run(args: argparse.Namespace) -> int:
    rows = plugins.list_backends()
    if args.name is not None:
        rows = [row for row in rows if row.name == args.name]
        if not rows:
            raise BackendError(plugins.why_not(args.name))
    if args.json:
        print(json.dumps([_as_json(row) for row in rows], indent=2))
    elif args.name is not None:
        for row in rows:
            _print_one(row)
    else:
        _print_all(rows)
    return 0


def _print_all(rows: list[BackendInfo]) -> None:
    if not rows:
        lines = " or ".join(install_line(f"rwkv-core[{extra}]") for extra in plugins.own_extras())
        print(f"no backend is installed; {lines}{plugins.plugin_limit()}")
        return
    header = (
        "name", "distribution", "version", "contract", "status", "device", "prequantized", "summary"
    )  # fmt: skip
    print_table(
        header,
        [
            (row.name, row.distribution, row.version, "-" if row.contract is None else row.contract,
             row.status, row.device or "-", _prequantized(row), row.summary)
            for row in rows
        ],
    )  # fmt: skip
    for row in rows:
        if row.reason:
            print(f"{row.name}: {row.reason}")


def _print_one(row: BackendInfo) -> None:
    print(f"{row.name}: {row.summary}" if row.summary else row.name)
    print(f"from {row.distribution} {row.version}, {row.status}", end="")
    print(f" on {row.device}" if row.device else "")
    if row.reason:
        print(row.reason)
    if row.status == "ready":
        print(f"matrices of prequantized files: {_prequantized(row)}")
    if row.options:
        print("\noptions, each given as -o name=value:")
        header = ("name", "type", "default", "choices", "what it is")
        print_table(header, [_option_cells(option) for option in row.options])


def _prequantized(row: BackendInfo) -> str:
    """What becomes of a prequantized file's matrices on this backend."""
    if row.status != "ready":
        return "-"
    kept = " and ".join(map(str, row.quantized_bits))
    return f"kept in {kept} bits" if kept else "restored"


def _option_cells(option: Option) -> tuple[str, ...]:
    default = "-" if option.default is None else printable(option.default)
    choices = ", ".join(map(printable, option.choices)) or "-"
    return (option.name, option.type.__name__, default, choices, printable(option.help))


def _as_json(row: BackendInfo) -> dict[str, Any]:
    options = [
        {
            "name": option.name,
            "type": option.type.__name__,
            "default": option.default,
            "choices": list(option.choices),
            "help": option.help,
        }
        for option in row.options
    ]
    names = ("name", "distribution", "version", "contract", "status", "device", "summary", "reason")
    return {
        **{name: getattr(row, name) for name in names},
        "quantized_bits": list(row.quantized_bits),
        "options": options,
    }


COMMAND = Command(
    "list-backends",
    "list the installed backends, their status and their options",
    _add_arguments,
    _run,
    "Imports no tensor library. The column prequantized says what becomes of the matrices of a\n"
    "prequantized file: kept as they are, or restored when they are loaded.\n\n"
    "  rwkv-core list-backends          all of them\n"
    "  rwkv-core list-backends torch    one, with the options that -o takes",
)
