"""`rwkv-core bench`: how fast a model runs here, and how fast it could."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from rwkv_core.cli.command import Command
from rwkv_core.cli.model_arguments import add_backend_arguments, backend_options
from rwkv_core.cli.signals import ending_in_order
from rwkv_core.cli.table import print_table, readable_bytes
from rwkv_core.errors import OptionError

if TYPE_CHECKING:
    from rwkv_core.bench import Report
    from rwkv_core.checkpoint import Shape


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    which = parser.add_mutually_exclusive_group()
    which.add_argument(
        "-m", "--model", metavar="MODEL", help="time this model (a file or its address)"
    )
    which.add_argument(
        "--shape", metavar="SHAPE", default="169M",
        help="time random weights of this shape: 169M, 430M, ... or LAYERSxWIDTH (default 169M)",
    )  # fmt: skip
    add_backend_arguments(parser)
    parser.add_argument(
        "--prefill", type=int, metavar="N", action="append",
        help="tokens of the prompt to time (default 256); may be repeated",
    )  # fmt: skip
    parser.add_argument(
        "--rounds", type=int, metavar="N", default=9,
        help="turns of each measurement and its yardstick (default 9)",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print one object")


def _run(args: argparse.Namespace) -> int:
    options = backend_options(args.options)
    lengths = args.prefill or [256]
    from rwkv_core.bench import bench, parse_shape
    from rwkv_core.random_weights import write_random_model

    if args.model is not None:
        report = bench(
            args.model, args.backend, options, lengths, args.rounds, on_progress=_show_stage
        )
    else:
        shape = parse_shape(args.shape)
        _check_room(shape)
        with _temporary_folder() as folder:
            path = folder / "random.safetensors"
            _show_stage("writing random weights")
            try:
                write_random_model(path, shape)
            except OSError as error:
                raise OptionError(
                    f"{path}: cannot be written: {error.strerror or error}; TMPDIR names a folder "
                    "with room"
                ) from None
            name = f"random {args.shape}"
            report = bench(
                str(path), args.backend, options, lengths, args.rounds, name, _show_stage
            )
    if args.json:
        print(json.dumps(asdict(report), indent=2))
    else:
        _print(report)
    return 0


def _check_room(shape: Shape) -> None:
    from rwkv_core.memory import count_parameters

    # In float16.
    needed = 2 * count_parameters(shape).total
    folder = tempfile.gettempdir()
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise OptionError(
            f"shape: its weights take {readable_bytes(needed)}, {folder} has "
            f"{readable_bytes(free)} free; TMPDIR names a folder with room"
        )


@contextmanager
def _temporary_folder() -> Iterator[Path]:
    """A folder that is removed at the end, also where SIGTERM is the end."""
    with ending_in_order(), tempfile.TemporaryDirectory(prefix="rwkv-core-bench-") as folder:
        yield Path(folder)


def _show_stage(stage: str) -> None:
    if sys.stderr.isatty():
        print(f"{stage} ...", file=sys.stderr)


def _print(report: Report) -> None:
    decode = report.decode
    peak = report.peak_memory
    memory = "" if peak is None else f", peak memory {readable_bytes(peak)}"
    print(f"{report.model}: {report.parameters / 1e6:,.1f} M parameters")
    print(f"{report.backend} on {report.device}, {report.dtype}")
    print(f"loaded in {report.load_seconds:.1f} s{memory}\n")
    rows = [
        (
            "decode",
            f"{decode.tokens_per_second:.1f}",
            _rate(decode.bytes_per_second, "GB/s"),
            _rate(decode.stream_bytes_per_second, "GB/s"),
            _percent(decode.share),
        )
    ]
    rows += [
        (
            f"prefill {prefill.tokens}",
            f"{prefill.tokens_per_second:.1f}",
            _rate(prefill.flops_per_second, "GFLOP/s"),
            _rate(prefill.gemm_flops_per_second, "GFLOP/s"),
            _percent(prefill.share),
        )
        for prefill in report.prefill
    ]
    print_table(("", "tokens/s", "rate", "yardstick", "share"), rows, right=range(1, 5))


def _rate(value: float | None, unit: str) -> str:
    return "-" if value is None else f"{value / 1e9:.1f} {unit}"


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.0f}%"


COMMAND = Command(
    "bench",
    "time a model, beside what the backend's own products reach",
    _add_arguments,
    _run,
    """\
Decoding reads all weights once a token: its rate is bytes a second, and its yardstick the bare
matrix-vector product of the backend over large matrices that are as big as the model together.
Reading a prompt is matrix products: its rate is operations a second, and its yardstick the bare
products of the model's own shapes for as many tokens. Each is timed in turn with its yardstick in
one process; figures are medians. Twice the model's memory is needed.

  rwkv-core bench --shape 430M -b numpy
  rwkv-core bench -m model.pth -b torch -o dtype=bfloat16 --prefill 64 --prefill 512""",
)
