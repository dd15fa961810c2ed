"""Our backends and the peers from PyPI, timed side by side, as a table, a plot and JSON.

    PYTHONPATH=tests python tests/peers/speed.py [--shape 169M] [--only torch] [--output FOLDER]

All have the same random weights. Each is a process of its own that is started once; those of one
precision take turns, round after round, so that a busy moment of the machine hits all of them.
Figures are medians over the rounds. What takes long is measured with fewer tokens.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from contender_process import ContenderProcess, Failed
from contenders import GROUPS, Contender, Files, all_contenders, write_files
from machine import NumpyRates, describe
from speed_report import PAGE, RESULTS, write_report, write_summary

PREFILL, LONG_PREFILL = 256, 1024
# A prompt is tried at growing lengths, as long as the next should take at most so many seconds.
_LENGTHS, _MAX_SECONDS = (16, 64, PREFILL, LONG_PREFILL), 15.0
# Seconds after which threads that wait for the next call have left the cores.
_REST = 0.1
# In so many rounds at most the long prompt is read, too.
_LONG_ROUNDS = 2


def main(arguments: Sequence[str] | None = None) -> None:
    args = parse_arguments(arguments)
    rates = NumpyRates()
    rates.measure()
    results: dict[str, Any] = {"machine": describe(), "rounds": args.rounds, "shapes": {}}
    numpy_rates = []
    contenders = [
        one for one in all_contenders() if any(part in one.label for part in args.only or [""])
    ]
    for shape in args.shape or ["169M", "430M"]:
        results["shapes"][shape] = rows = []
        with tempfile.TemporaryDirectory() as folder:
            files = write_files(Path(folder), shape)
            for group in GROUPS:
                members = [one for one in contenders if one.group == group]
                if not members:
                    continue
                timed = Group(members, files, args, rates)
                rows += timed.run(shape)
                numpy_rates += timed.numpy_rates
        read, multiplied = zip(*numpy_rates, strict=True)
        results["numpy"] = {
            "read_bytes_per_second": median(read), "gemm_flops_per_second": median(multiplied)
        }  # fmt: skip
        args.output.mkdir(parents=True, exist_ok=True)
        (args.output / "speed.json").write_text(json.dumps(results, indent=1) + "\n")
        write_report(results, args.output)
    if args.output == RESULTS:
        write_summary(results, PAGE)
    print((args.output / "speed.md").read_text())


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--shape", action="append", metavar="SHAPE",
        help="169M, 430M, ... or LAYERSxWIDTH; may be repeated (default: 169M and 430M)",
    )  # fmt: skip
    parser.add_argument(
        "--only", action="append", metavar="TEXT",
        help="contenders whose name has this in it, such as float32; may be repeated",
    )  # fmt: skip
    parser.add_argument("--rounds", type=int, default=5, help="turns of each (default 5)")
    parser.add_argument(
        "--tokens", type=int, default=200, help="decoded in a turn, at most (default 200)"
    )
    parser.add_argument(
        "--seconds", type=float, default=2.0, help="of decoding in a turn, at most (default 2)"
    )
    parser.add_argument(
        "--output", type=Path, default=RESULTS, metavar="FOLDER",
        help="for speed.json, speed.md, speed.png and ratio.png (default: results, beside this "
        "script, and then a summary goes into rwkv_core/docs/results.md)",
    )  # fmt: skip
    return parser.parse_args(arguments)


class Group:
    """Contenders of one precision, in memory together.

    Attributes:
        numpy_rates: what NumPy reached, round for round.
    """

    def __init__(
        self, contenders: list[Contender], files: Files, args: argparse.Namespace, rates: NumpyRates
    ) -> None:
        self._contenders, self._files, self._args, self._rates = contenders, files, args, rates
        self.numpy_rates: list[tuple[float, float]] = []

    def run(self, shape: str) -> list[dict[str, Any]]:
        """A row of the results for each contender."""
        timed = [Timed(one, self._files, self._args) for one in self._contenders]
        try:
            for one in timed:
                show(f"{shape}: {one.contender.label}: loading, warming up")
                one.attempt(one.begin)
            for i in range(self._args.rounds):
                show(f"{shape}: round {i + 1} of {self._args.rounds}")
                self.numpy_rates.append(self._rates.measure())
                for one in timed:
                    time.sleep(_REST)
                    one.attempt(one.take_turn)
        finally:
            for one in timed:
                one.process.end()
        return [one.row() for one in timed]


class Timed:
    """A contender and what was measured of it."""

    def __init__(self, contender: Contender, files: Files, args: argparse.Namespace) -> None:
        self.contender, self._args = contender, args
        self.process = ContenderProcess(contender, files)
        self._error: str | None = None
        self._about: dict[str, Any] = {}
        self._decode: list[float] = []
        self._prefill: dict[int, list[float]] = {}

    def attempt(self, step: Any) -> None:
        """Do a step, unless one has failed before."""
        try:
            if self._error is None:
                step()
        except Failed as error:
            show(f"{self.contender.label}: {error}")
            self._error = str(error)

    def begin(self) -> None:
        loaded = self.process.load()
        self._about = {"load_seconds": loaded.seconds, "peak_bytes": loaded.peak_bytes}
        self.process.prompt(_LENGTHS[0])
        lengths, a_token = [], 0.0
        for length in _LENGTHS:
            if a_token * length > _MAX_SECONDS:
                break
            a_token = self.process.prompt(length) / length
            lengths.append(length)
        self.process.decode(2, self._args.seconds)
        # The longest up to the usual length, and the long one.
        usual = max(length for length in lengths if length <= PREFILL)
        self._prefill = {usual: []} | ({LONG_PREFILL: []} if LONG_PREFILL in lengths else {})

    def take_turn(self) -> None:
        for length, rates in self._prefill.items():
            if length <= PREFILL or len(rates) < _LONG_ROUNDS:
                rates.append(length / self.process.prompt(length))
        self._decode.append(self.process.decode(self._args.tokens, self._args.seconds))

    def row(self) -> dict[str, Any]:
        """Medians, with what each round gave."""
        contender = self.contender
        about = {
            "name": contender.name, "precision": contender.precision, "group": contender.group,
            "ours": contender.ours, **self._about,
        }  # fmt: skip
        if self._error is not None:
            return about | {"error": self._error}
        prefill = [
            {"tokens": length, "tokens_per_second": median(rates), "rounds": rates}
            for length, rates in self._prefill.items()
        ]
        decode = {"tokens_per_second": median(self._decode), "rounds": self._decode}
        return about | {"decode": decode, "prefill": prefill}


def show(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
