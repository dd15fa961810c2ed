"""Runs the conformance suite on backends of `planting`: reads names, prints what came of each.

One process for many, since starting pytest and NumPy takes longer than finding a fault. Names and
outcomes are lines of JSON.
"""

from __future__ import annotations

import json
import os
import sys
from contextlib import redirect_stdout

import pytest

from conformance_faults.plugin import FAULTS


class FirstFailure:
    """A pytest plugin that keeps the message of the first failing test."""

    message = ""

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed and not self.message:
            self.message = f"{report.nodeid}\n{report.longrepr}"


def outcome(name: str) -> tuple[int, str]:
    """The suite's exit status for the backend `name`, and its first failure."""
    options = [f"--rwkv-option=fault={name}"]
    if not name.startswith("dtype"):
        options.append("--rwkv-option=dtype=float32")
    if name in FAULTS:
        options += ["-k", FAULTS[name][1]]
    first = FirstFailure()
    suite = ["--pyargs", "rwkv_core.conformance", "--rwkv-backend=sample"]
    # What looks for unraisable exceptions collects garbage ten times, which takes half of the time.
    without = ["-p", "no:cacheprovider", "-p", "no:unraisableexception"]
    arguments = [*suite, *options, *without, "-x", "-q", "--tb=short"]
    return int(pytest.main(arguments, plugins=[first])), first.message


if __name__ == "__main__":
    for line in sys.stdin:
        with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere):
            found = outcome(json.loads(line))
        print(json.dumps(found), flush=True)
