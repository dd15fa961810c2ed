"""`rwkv-core list-backends`: lists the installed backends with their status."""

from __future__ import annotations

import argparse
import json
import shutil
import textwrap
from typing import TYPE_CHECKING, Any

from rwkv_core import plugins
from rwkv_core.cli.completion import complete_with
from rwkv_core.cli.table import print_wrapped_table
from rwkv_core.errors import BackendError
from rwkv_core.plugins.command import Command
from rwkv_core.plugins.install_advice import install_recommended
from rwkv_core.util.printable import printable

if TYPE_CHECKING:
    from rwkv_core.backends.descriptor import BackendInfo, Option


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    name = parser.add_argument(
        "name", nargs="?", metavar="NAME", help="show only this backend, with its options"
    )
    complete_with(name, lambda: plugins.offered("rwkv_backends"))
    parser.add_argument("--json", action="store_true", help="print a JSON list of objects")


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
        print(f"no backend is installed; {install_recommended()}{plugins.plugin_limit()}")
        return
    ready = [row for row in rows if row.status == "ready"]
    ready.sort(key=lambda row: (row.score, row.name), reverse=True)
    rows = [*ready, *(row for row in rows if row.status != "ready")]
    print_wrapped_table(
        ("name", "status", "device", "summary, or what is wrong"),
        [(row.name, row.status, row.device or "-", row.reason or row.summary) for row in rows],
    )
    if ready:
        print(f"\nWithout -b, {_defaults(ready)}.")


def _defaults(ready: list[BackendInfo]) -> str:
    """Return the line that names the default backends; `ready` has the best first."""
    large = ready[0]
    small = next((row for row in ready if row.min_bytes <= 0), large)
    if large is small:
        return f"{large.name} is used"
    return f"{large.name} is used; for models under {large.min_bytes / 1e6:.0f} MB, {small.name}"


def _print_one(row: BackendInfo) -> None:
    title = f"{row.name}: {row.summary}" if row.summary else row.name
    print(textwrap.fill(title, shutil.get_terminal_size().columns))
    contract = "" if row.contract is None else f" (contract {row.contract})"
    print(f"from {row.distribution} {row.version}{contract}, {row.status}", end="")
    print(f" on {row.device}" if row.device else "")
    if row.reason:
        print(row.reason)
    if row.status == "ready":
        print(f"matrices of prequantized files: {_prequantized(row)}")
    if row.options:
        print("\noptions, each given as -o name=value:")
        header = ("name", "type", "what it is")
        print_wrapped_table(header, [_option_cells(option) for option in row.options])


def _prequantized(row: BackendInfo) -> str:
    """Return how this backend treats a prequantized file's matrices."""
    if row.status != "ready":
        return "-"
    kept = " and ".join(row.quantized_dtypes)
    return f"kept as {kept}" if kept else "restored"


def _option_cells(option: Option) -> tuple[str, ...]:
    notes = []
    if option.choices:
        notes.append(f"one of {', '.join(map(printable, option.choices))}")
    if option.default is not None:
        notes.append(f"default: {printable(option.default)}")
    text = printable(option.help) + (f" ({'; '.join(notes)})" if notes else "")
    return (option.name, option.type.__name__, text)


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
        "quantized_dtypes": list(row.quantized_dtypes),
        "options": options,
    }


COMMAND = Command(
    "list-backends",
    "list the installed backends, their status and their options",
    _add_arguments,
    _run,
    "This command imports no tensor library.\n\n"
    "  rwkv-core list-backends          lists all backends, the fastest first\n"
    "  rwkv-core list-backends torch    shows one backend: its version, how it loads prequantized\n"
    "                                   files, and its options for -o",
)
