"""`rwkv-core bench`: measures how fast a model runs, and how fast the machine could run it."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from itertools import product
from typing import TYPE_CHECKING, Any, NamedTuple

from rwkv_core.cli.model_arguments import add_option_argument, backend_options, filled
from rwkv_core.cli.signal_cleanup import cleanup_on_signal
from rwkv_core.cli.table import print_table, readable_bytes
from rwkv_core.errors import BackendError, OptionError, RWKVError
from rwkv_core.plugins.command import Command
from rwkv_core.util.addresses import without_secrets
from rwkv_core.util.printable import printable

if TYPE_CHECKING:
    from rwkv_core.architectures.base import Config
    from rwkv_core.bench import Combination, Report

_MAX_BUSY = 64
_YARDSTICKS = {"NumPy float32": "NumPy's W @ x, GB/s", "own": "own W @ x, GB/s"}


class _Outcome(NamedTuple):
    """Outcome of one combination: a report, or the reason for its failure."""

    combination: Combination
    report: Report | None
    error: str


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    which = parser.add_mutually_exclusive_group()
    which.add_argument(
        "-m", "--model", type=filled, metavar="MODEL",
        help="time this model: a file, its address, or the name of a model that is part of "
        "rwkv-core",
    )  # fmt: skip
    which.add_argument(
        "--shape", metavar="SHAPE", default="169M",
        help="time random weights of this shape: 169M, 430M, ... or LAYERSxWIDTH (default: "
        "%(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "-b", "--backend", type=filled, metavar="NAME", action="append",
        help="backend to time; list-backends shows all (default: the fastest one); may be repeated",
    )  # fmt: skip
    parser.add_argument(
        "--dtype", type=filled, metavar="DTYPE", action="append",
        help="type of the matrices: float32, bfloat16, int8, ... (default: the backend's default); "
        "may be repeated",
    )  # fmt: skip
    parser.add_argument(
        "--threads", type=int, metavar="N", action="append",
        help="number of CPU threads (default: chosen by the libraries); may be repeated",
    )  # fmt: skip
    parser.add_argument(
        "--busy", type=int, metavar="N",
        help="time each combination a second time, while N other processes each keep a core busy",
    )  # fmt: skip
    add_option_argument(parser)
    parser.add_argument(
        "--prefill", type=int, metavar="N", action="append",
        help="length of the prompt in tokens (default: 256 and 1024); may be repeated",
    )  # fmt: skip
    parser.add_argument(
        "--rounds", type=int, metavar="N", default=9,
        help="number of times that each measurement is repeated; slow measurements are repeated "
        "less often (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--json", action="store_true",
        help="print one JSON object, or a list of objects for several combinations",
    )  # fmt: skip


def _run(args: argparse.Namespace) -> int:
    options = backend_options(args.options)
    combinations = _combinations(args)
    arguments = {"lengths": args.prefill or [256, 1024], "rounds": args.rounds}
    outcomes: list[_Outcome] = []
    with cleanup_on_signal(), _model_file(args) as (name, path):
        try:
            for one in combinations:
                outcome = _outcome(one, path, options, name=name, on_stage=_show_stage, **arguments)
                outcomes.append(outcome)
        except KeyboardInterrupt:
            # Ctrl-C must not lose what was measured so far.
            if outcomes:
                _show(outcomes, args.json, len(combinations))
            raise
    if len(outcomes) == 1 and outcomes[0].report is None:
        raise BackendError(outcomes[0].error)
    _show(outcomes, args.json, len(combinations))
    if all(outcome.report is None for outcome in outcomes):
        raise BackendError(f"none of the {len(outcomes)} combinations could be timed")
    return 0


def _show(outcomes: list[_Outcome], as_json: bool, n_asked: int) -> None:
    if as_json:
        found = [_as_json(outcome) for outcome in outcomes]
        print(json.dumps(found if n_asked > 1 else found[0], indent=2))
    else:
        _print(outcomes)


def _combinations(args: argparse.Namespace) -> list[Combination]:
    """Return all combinations of the arguments, in the order of the arguments."""
    from rwkv_core.bench import Combination
    from rwkv_core.util.threads import available_threads

    most = available_threads()
    for threads in args.threads or ():
        if not 1 <= threads <= most:
            raise OptionError(f"--threads: found {threads}, expected 1 to {most}, the cores here")
    if args.busy is not None and not 1 <= args.busy <= _MAX_BUSY:
        raise OptionError(f"--busy: found {args.busy}, expected 1 to {_MAX_BUSY}")
    busy = [0] if args.busy is None else [0, args.busy]
    named = (args.backend or [None], args.dtype or [None], args.threads or [None], busy)
    return list(dict.fromkeys(Combination(*one) for one in product(*named)))


def _outcome(
    combination: Combination, path: str, options: dict[str, str], **arguments: Any
) -> _Outcome:
    from rwkv_core.bench import bench_alone

    try:
        return _Outcome(combination, bench_alone(combination, path, options, **arguments), "")
    except RWKVError as error:
        return _Outcome(combination, None, str(error))


@contextmanager
def _model_file(args: argparse.Namespace) -> Iterator[tuple[str, str]]:
    """Yield the model's name and file. A file of random weights is removed at the end."""
    from rwkv_core.bench import parse_shape
    from rwkv_core.evaluation.memory_estimate import memory_of_file
    from rwkv_core.evaluation.random_model import write_random_model
    from rwkv_core.util.atomic_write import temporary_folder

    if args.model is not None:
        memory_of_file(args.model)  # reports a wrong file once, not for each combination
        yield without_secrets(args.model), args.model
        return
    config = parse_shape(args.shape)
    _check_room(config)
    with temporary_folder(tempfile.gettempdir()) as folder:
        path = folder / "random.safetensors"
        _show_stage("writing random weights")
        try:
            write_random_model(path, config)
        except OSError as error:
            raise OptionError(
                f"{path}: cannot be written: {error.strerror or error}; TMPDIR names a folder "
                "with room"
            ) from None
        yield f"random {args.shape}", str(path)


def _check_room(config: Config) -> None:
    # The file is in float16.
    needed = 2 * config.count_parameters().total
    folder = tempfile.gettempdir()
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise OptionError(
            f"shape: its weights take {readable_bytes(needed)}, {folder} has "
            f"{readable_bytes(free)} free; TMPDIR names a folder with room"
        )


def _show_stage(stage: str) -> None:
    if sys.stderr.isatty():
        print(f"{stage} ...", file=sys.stderr)


def _as_json(outcome: _Outcome) -> dict[str, Any]:
    combination, report, error = outcome
    if report is None:
        return {**asdict(combination), "error": error}
    return {**asdict(report), "threads": combination.threads, "busy": combination.busy}


def _print(outcomes: list[_Outcome]) -> None:
    """Print a column for each combination, and below the table the errors of failed ones."""
    found = [(combination, report) for combination, report, _ in outcomes if report is not None]
    if found:
        first = found[0][1]
        print(f"{printable(first.model)}: {first.parameters / 1e6:,.1f} M parameters\n")
        columns = [_column(*one) for one in found]
        rows = [(cells[0][0], *(cell for _, cell in cells)) for cells in zip(*columns, strict=True)]
        print_table(rows[0], rows[1:], right=range(1, len(columns) + 1))
    for combination, report, error in outcomes:
        if report is None:
            print(f"{_named(combination)}: {error}")


def _column(combination: Combination, report: Report) -> list[tuple[str, str]]:
    """Return (label, cell) pairs; the labels are the same for all combinations."""
    first, decode, peak = report.first_token, report.decode, report.peak_memory
    threads = combination.threads
    cells = [
        ("backend", report.backend),
        ("dtype", report.dtype),
        ("threads", "-" if threads is None else str(threads)),
        ("busy processes", str(combination.busy)),
        ("load, s", f"{report.load_seconds:.1f}"),
        ("peak memory", "-" if peak is None else readable_bytes(peak)),
        (f"first token after {first.tokens}, s", f"{first.seconds:.2f}"),
        ("  when cold", f"{first.cold_seconds:.2f}"),
        ("decode, tokens/s", f"{decode.tokens_per_second:.1f}"),
        ("  reads, GB/s", _giga(decode.bytes_per_second)),
        (f"  {_YARDSTICKS[decode.yardstick]}", _giga(decode.stream_bytes_per_second)),
        ("  share", _percent(decode.share)),
        ("  overhead, ms", f"{1e3 * decode.overhead_seconds:.2f}"),
        ("    of it sampling", f"{1e3 * decode.sampling_seconds:.2f}"),
    ]
    for prefill in report.prefill:
        cells += [
            (f"prefill {prefill.tokens}, tokens/s", f"{prefill.tokens_per_second:.0f}"),
            ("  GFLOP/s", _giga(prefill.flops_per_second)),
            ("  bare products", _giga(prefill.gemm_flops_per_second)),
            ("  share", _percent(prefill.share)),
        ]
    for batch in report.batches:
        cells += [
            (f"batch of {batch.sequences}, tokens/s", f"{batch.tokens_per_second:.1f}"),
            ("  times one's", f"{batch.ratio:.1f}"),
        ]
    return cells


def _named(combination: Combination) -> str:
    backend, dtype, threads = combination.backend, combination.dtype, combination.threads
    busy = f"{combination.busy} busy processes" if combination.busy else None
    parts = (backend, dtype, f"threads {threads}" if threads else None, busy)
    return ", ".join(filter(None, parts)) or "the fastest backend"


def _giga(value: float | None) -> str:
    return "-" if value is None else f"{value / 1e9:.1f}"


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.0f}%"


COMMAND = Command(
    "bench",
    "time a model, and compare it with the limits of the machine",
    _add_arguments,
    _run,
    """\
Each combination of the given backends, dtypes and numbers of threads is timed in a process of its
own, and has a column in the table. A failed combination has a line below the table. All times are
medians:
  load, peak memory  time until the model is ready, and peak memory of the process until then
  first token        time from the prompt to the first token's text. "When cold" is the first
                     measurement in the process, which includes compilation
  decode             rate of decoding one sequence, for the model without sampling
    reads            rate of reading the stored weights, each once per token
    NumPy's W @ x    yardstick for reads: the rate at which NumPy reads large float32 matrices while
                     it computes products, the same for all backends. On a GPU the row is "own W @
                     x", the rate of the backend's own products
    share            reads / yardstick
    overhead         time per generated token, minus the time of its matrix products alone (or of
                     the model's step, if that is shorter)
    of it sampling   part of the overhead for sampling with top_p 0.9, detokenizing and bookkeeping:
                     time per generated token, minus the time of the model's step
  prefill            rate of reading a prompt. GFLOP/s counts the matrix products; "bare products"
                     is the rate of the same products alone
  batch              rate of decoding several sequences together, and its ratio to one sequence

  rwkv-core bench --shape 430M -b numpy -b torch
  rwkv-core bench -m prose --busy 2
  rwkv-core bench -b torch --dtype float32 --dtype bfloat16 --threads 1 --threads 2
  rwkv-core bench -m model.pth -b torch -o dtype=bfloat16 --prefill 64 --prefill 512""",
)
