"""`rwkv-core verify`: checks that the installed backends compute correct results."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING

from rwkv_core.cli.model_arguments import add_backend_arguments, backend_options
from rwkv_core.cli.table import print_table
from rwkv_core.plugins.command import Command
from rwkv_core.util.printable import printable

if TYPE_CHECKING:
    from rwkv_core.evaluation.verify import Check

_HEADER = ("backend", "dtype", "device", "result", "error", "tolerance")


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    add_backend_arguments(parser, default="all")
    parser.add_argument("--json", action="store_true", help="print a JSON list of objects")


def _run(args: argparse.Namespace) -> int:
    options = backend_options(args.options)
    from rwkv_core.evaluation.verify import verify

    checks = []
    for check in verify(args.backend, options):
        checks.append(check)
        if sys.stderr.isatty():
            print(f"{check.backend} {check.dtype}: {check.status}", file=sys.stderr)
    if args.json:
        print(json.dumps([asdict(check) for check in checks], indent=2))
    else:
        print_table(_HEADER, [_cells(check) for check in checks])
        for check in checks:
            if check.reason:
                print(f"{check.backend} {check.dtype}: {printable(check.reason)}")
    statuses = {check.status for check in checks}
    return 0 if "pass" in statuses and "FAIL" not in statuses else 1


def _cells(check: Check) -> tuple[object, ...]:
    error = "-" if check.error is None else f"{check.error:.1e}"
    tolerance = "-" if check.tolerance is None else f"{check.tolerance:.0e}"
    return (check.backend, check.dtype or "-", check.device, check.status, error, tolerance)


COMMAND = Command(
    "verify",
    "check that the installed backends compute correct results",
    _add_arguments,
    _run,
    """\
Runs a small model of each architecture on each backend, with each of its dtypes, and compares the
logits with those of a float64 reference. The error is the largest difference, divided by the root
mean square of the logits. The exit status is 1 if a backend fails, or if there is none to check.

  rwkv-core verify
  rwkv-core verify -b torch -o device=cuda -o dtype=float16""",
)
