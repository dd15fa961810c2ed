"""`rwkv-core prequantize`: writes a model with its matrices in 8 or 4 bits."""

from __future__ import annotations

import argparse
import os

from rwkv_core.cli.model_arguments import add_lora_arguments, filled, lora_of
from rwkv_core.cli.progress import progress_line
from rwkv_core.cli.signal_cleanup import cleanup_on_signal
from rwkv_core.cli.table import readable_bytes
from rwkv_core.dtypes import GROUP_SIZE
from rwkv_core.plugins.command import Command
from rwkv_core.util.printable import printable


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "model", type=filled, metavar="MODEL",
        help="model file, its address, or the name of a model that is part of rwkv-core",
    )  # fmt: skip
    parser.add_argument(
        "--bits", type=int, default=8, metavar="N",
        help="number of bits per weight: 8 or 4 (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--group-size", type=int, default=GROUP_SIZE, metavar="N",
        help="number of weights that share a scale and an offset (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--output",
        type=filled,
        metavar="FILE",
        help="file to write; an existing .pqth file is replaced (default: the model file's name "
        "with .pqth)",
    )
    add_lora_arguments(parser)


def _run(args: argparse.Namespace) -> int:
    from rwkv_core.model_file import prequantize

    with cleanup_on_signal(), progress_line("quantizing") as progress:
        path = prequantize(
            args.model, args.output, args.bits, args.group_size, progress, lora_of(args)
        )
    print(f"{printable(path)}: {args.bits} bits, {readable_bytes(os.path.getsize(path))}")
    return 0


COMMAND = Command(
    "prequantize",
    "write a model with its matrices in 8 or 4 bits",
    _add_arguments,
    _run,
    """\
Every backend can load the file with -m. A backend with a kernel for the file keeps the matrices
quantized (see list-backends NAME). The other backends dequantize them to their dtype. Vectors and
the embedding are not quantized. A state saved with the model works with the quantized file, and the
other way round.
To measure the loss of quality, run: rwkv-core perplexity TEXT -m MODEL --compare

  rwkv-core prequantize RWKV-4-Pile-430M.pth
  rwkv-core prequantize RWKV-4-Pile-430M.pth --bits 4 --output small.pqth""",
)
