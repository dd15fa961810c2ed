"""`rwkv-core vram`: how much memory models take."""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING, Any

from rwkv_core.cli.command import Command
from rwkv_core.cli.model_arguments import filled
from rwkv_core.cli.table import print_table, readable_bytes

if TYPE_CHECKING:
    from rwkv_core.memory import Memory

_HEADER = ("model", "parameters", "float32", "16 bits", "8 bits", "4 bits", "state", "prefill")


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "-m", "--model", type=filled, metavar="MODEL",
        help="this model file alone; without it the known sizes",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print a list of objects, in bytes")


def _run(args: argparse.Namespace) -> int:
    from rwkv_core.memory import memory_of_file, memory_of_known_models

    rows = [memory_of_file(args.model)] if args.model is not None else memory_of_known_models()
    if args.json:
        print(json.dumps([_as_json(row) for row in rows], indent=2))
    else:
        print_table(_HEADER, [_cells(row) for row in rows], right=range(1, len(_HEADER)))
    return 0


def _cells(row: Memory) -> tuple[str, ...]:
    weights = [row.weights[dtype] for dtype in ("float32", "float16", "int8", "int4")]
    sizes = [readable_bytes(size) for size in (*weights, row.state, row.prefill)]
    return (row.name, f"{row.parameters / 1e6:,.1f} M", *sizes)


def _as_json(row: Memory) -> dict[str, Any]:
    return {
        "model": row.name,
        **row.shape._asdict(),
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
Computed from the model's shapes:
  float32, 16 bits  the matrices in this type, vectors in float32, and the embedding as it is in
                    the file (16 bits for the known sizes)
  8 bits, 4 bits    the same, for matrices quantized in groups of 64 that share a scale and an
                    offset of 16 bits each: an estimate
  state             for each sequence: 5 float32 vectors a layer, and the logits
  prefill           while a prompt is read, 512 tokens at a time: their vectors, about
                    4 D + max(12 D, 3 F) float32 a token, D and F being the widths of the model
                    and of its channel mixing
A tensor library's own share, such as a CUDA context, comes on top.

  rwkv-core vram
  rwkv-core vram -m RWKV-4-Pile-430M.pth""",
)
