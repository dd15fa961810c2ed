"""Runs the conformance suite on each backend of `planting`, and prints what came of it as JSON.

All in one process, since starting pytest and NumPy takes longer than finding a fault.
"""

from __future__ import annotations

import json
import os
import sys
from contextlib import redirect_stdout

import pytest

from conformance_faults.plugin import FAULTS, RIGHT


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
    arguments = [*suite, *options, "-x", "-q", "-p", "no:cacheprovider", "--tb=short"]
    return int(pytest.main(arguments, plugins=[first])), first.message


if __name__ == "__main__":
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere):
        outcomes = {name: outcome(name) for name in [*RIGHT, *FAULTS]}
    json.dump(outcomes, sys.stdout)
