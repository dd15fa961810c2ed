"""`rwkv-core vram`: shows the memory that models take, and the offload plan for a target."""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING, Any

from rwkv_core.cli.model_arguments import backend_options, filled
from rwkv_core.cli.table import print_table, readable_bytes
from rwkv_core.errors import OptionError
from rwkv_core.plugins.command import Command

if TYPE_CHECKING:
    from rwkv_core.backends.offload_plan import OffloadPlan
    from rwkv_core.evaluation.memory_estimate import Memory

_HEADER = ("model", "parameters", "float32", "16 bits", "8 bits", "4 bits", "state", "prefill")
_HEADER_OF_TARGET = ("model", "matrices", "resident", "slots", "total", "streamed", "least target")


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "-m", "--model", type=filled, metavar="MODEL",
        help="show only this model: a file or its address (default: the published sizes)",
    )  # fmt: skip
    parser.add_argument(
        "--target", type=float, metavar="GB",
        help="show which matrices stay on a device with this much room for weights, in GB (10^9 "
        "bytes)",
    )  # fmt: skip
    parser.add_argument(
        "-o", "--option", metavar="KEY=VALUE", action="append", default=[], dest="options",
        help="with --target: type of the matrices, such as dtype=float16 (default: float32)",
    )  # fmt: skip
    parser.add_argument(
        "--json", action="store_true", help="print a JSON list of objects, with sizes in bytes"
    )


def _run(args: argparse.Namespace) -> int:
    from rwkv_core.evaluation.memory_estimate import memory_of_file, memory_of_known_models

    options = backend_options(args.options)
    if args.target is None and options:
        raise OptionError("-o: goes with --target; without it every type is shown")
    rows = [memory_of_file(args.model)] if args.model is not None else memory_of_known_models()
    if args.target is not None:
        _print_plans(rows, args.target, options, args.json)
    elif args.json:
        print(json.dumps([_as_json(row) for row in rows], indent=2))
    else:
        print_table(_HEADER, [_cells(row) for row in rows], right=range(1, len(_HEADER)))
    return 0


def _print_plans(rows: list[Memory], target: float, options: dict[str, str], as_json: bool) -> None:
    from rwkv_core.backends.offload_plan import (
        model_bytes,
        plan_offload,
        smallest_target,
        target_bytes,
    )
    from rwkv_core.dtypes import BYTES_PER_WEIGHT

    dtype = options.pop("dtype", "float32")
    if options:
        raise OptionError(f"-o {next(iter(options))}: vram has only the option dtype")
    if dtype not in BYTES_PER_WEIGHT:
        known = ", ".join(BYTES_PER_WEIGHT)
        raise OptionError(f"option dtype: found {dtype!r}, expected one of: {known}")
    limit = target_bytes(target)
    found: list[tuple[Memory, OffloadPlan | None, int]] = []
    for row in rows:
        sizes, vectors = model_bytes(
            row.config.weights().values(), dtype, "float64" if dtype == "float64" else "float32"
        )
        least = smallest_target(sizes, vectors)
        # For a single model that does not fit, `plan_offload` raises the error.
        fits = limit >= least or len(rows) == 1
        found.append((row, plan_offload(sizes, vectors, limit) if fits else None, least))
    if as_json:
        print(json.dumps([_plan_as_json(*one, dtype, limit) for one in found], indent=2))
    else:
        cells = [_plan_cells(*one) for one in found]
        print_table(_HEADER_OF_TARGET, cells, right=range(1, len(_HEADER_OF_TARGET)))


def _plan_cells(row: Memory, chosen: OffloadPlan | None, least: int) -> tuple[str, ...]:
    from rwkv_core.backends.offload_plan import GB, as_target

    if chosen is None:
        return (row.name, *["-"] * 5, as_target(least))
    sizes = (chosen.resident, 2 * chosen.slot, chosen.total, chosen.streamed)
    matrices = f"{sum(chosen.stays)} of {len(chosen.stays)}"
    return (row.name, matrices, *(f"{size / GB:.3f}" for size in sizes), as_target(least))


def _plan_as_json(
    row: Memory, chosen: OffloadPlan | None, least: int, dtype: str, target: int
) -> dict[str, Any]:
    about = {
        "model": row.name, **row.config.sizes, "dtype": dtype, "target": target,
        "least_target": least, "fits": chosen is not None,
    }  # fmt: skip
    if chosen is None:
        return about
    return {
        **about,
        "matrices": len(chosen.stays),
        "resident_matrices": sum(chosen.stays),
        "resident": chosen.resident,
        "slot": chosen.slot,
        "total": chosen.total,
        "streamed": chosen.streamed,
    }


def _cells(row: Memory) -> tuple[str, ...]:
    weights = [row.weights[dtype] for dtype in ("float32", "float16", "int8", "int4")]
    sizes = [readable_bytes(size) for size in (*weights, row.state, row.prefill)]
    return (row.name, f"{row.parameters / 1e6:,.1f} M", *sizes)


def _as_json(row: Memory) -> dict[str, Any]:
    return {
        "model": row.name,
        **row.config.sizes,
        "parameters": row.parameters,
        "weights": row.weights,
        "state": row.state,
        "prefill": row.prefill,
    }


COMMAND = Command(
    "vram",
    "show how much memory models take in each precision",
    _add_arguments,
    _run,
    """\
The columns are computed from the model's shapes:
  float32, 16 bits  size of the weights, with matrices of this type, vectors of float32, and an
                    embedding of the type in the model file (16 bits for the published models)
  8 bits, 4 bits    estimate of the weights with quantized matrices: 64 weights share a scale and
                    an offset of 16 bits each
  state             memory per sequence: the logits, and for each layer 5 float32 vectors of width
                    D (2 + N vectors in RWKV-5 to 7, where N is the size of a head)
  prefill           memory for reading a prompt: the vectors of 512 tokens, about
                    4 D + max(12 D, 3 F) float32 numbers per token. D is the width of the model, F
                    the width of its channel mixing
The tensor library's own memory, such as a CUDA context, is not included.

--target shows what a streaming backend keeps on a device. The backend copies the other matrices to
the device just before they are used. Sizes are in GB (10^9 bytes):
  matrices      number of matrices that stay on the device, and number of all matrices
  resident      size of the matrices that stay on the device
  slots         size of the two buffers for the other matrices
  total         size of everything on the device, with the vectors. The embedding is in host memory
  streamed      size of the matrices that are copied for each token. A token takes at least as
                many seconds as this size divided by the rate of the bus
  least target  smallest --target with which the model runs

  rwkv-core vram
  rwkv-core vram --target 8 -o dtype=float16
  rwkv-core vram -m RWKV-4-Pile-430M.pth""",
)
