"""`rwkv-core list-plugins`: lists the installed plugins, what each offers, and their errors."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from typing import TYPE_CHECKING

from rwkv_core import plugins
from rwkv_core.cli.table import print_wrapped_table
from rwkv_core.plugins.command import Command
from rwkv_core.util.printable import printable

if TYPE_CHECKING:
    from rwkv_core.plugins.discovery import PluginInfo


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print a JSON list of objects")


def _run(args: argparse.Namespace) -> int:
    rows = plugins.list_plugins()
    if args.json:
        print(json.dumps([asdict(row) for row in rows], indent=2))
        return 0
    print_wrapped_table(
        ("plugin", "distribution", "offers, and what is wrong"),
        [(printable(row.name), printable(_origin(row)), _offers(row)) for row in rows],
    )
    for name, sampler in plugins.offered("rwkv_samplers").items():
        print(f"\nsampler {name}: {printable(sampler.summary)}")
        if sampler.options:
            print(f"options, given as --sampler {name}:KEY=VALUE,...")
            print_wrapped_table(
                ("name", "default", "what it is"),
                [(option.name, printable(option.default), printable(option.help))
                 for option in sampler.options],
            )  # fmt: skip
    limit = plugins.plugin_limit().removeprefix("; ")
    if limit:
        print(f"\n{limit}")
    return 0


def _origin(row: PluginInfo) -> str:
    return f"{row.distribution} {row.version}".strip() or "-"


def _offers(row: PluginInfo) -> str:
    parts = [f"{kind.replace('_', ' ')}: {', '.join(names)}" for kind, names in row.offers.items()]
    return "; ".join([*parts, *(f"broken: {problem}" for problem in row.problems)]) or "nothing"


COMMAND = Command(
    "list-plugins",
    "list the installed plugins and the samplers",
    _add_arguments,
    _run,
    "These environment variables apply to all commands:\n"
    "  RWKV_PLUGINS=NAME,...    load only these plugins or distributions; if empty, load none\n"
    "  RWKV_PLUGINS_STRICT=1    make a plugin's failure an error\n"
    "  RWKV_DEBUG=1             print the traceback of an error",
)
