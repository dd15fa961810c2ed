"""`rwkv-core perplexity`: measures how well a model predicts texts."""

from __future__ import annotations

import argparse
import json
import os
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from rwkv_core.cli.model_arguments import (
    add_model_arguments,
    add_tokenizer_argument,
    backend_options,
    load_rwkv,
    lora_of,
)
from rwkv_core.cli.model_choice import choose_model
from rwkv_core.cli.progress import progress_line
from rwkv_core.cli.signal_cleanup import cleanup_on_signal
from rwkv_core.cli.table import print_table, readable_bytes
from rwkv_core.dtypes import GROUP_SIZE
from rwkv_core.errors import BackendError, OptionError
from rwkv_core.plugins.command import Command
from rwkv_core.util.printable import printable

if TYPE_CHECKING:
    from rwkv_core.evaluation.perplexity import Score
    from rwkv_core.evaluation.precision_comparison import Comparison

_COMPARISON_HEADER = (
    "precision", "perplexity", "bits/byte", "divergence", "matrices", "tokens/s",
)  # fmt: skip
_HEADER = ("text", "tokens", "bytes", "nats/token", "perplexity", "bits/byte", "seconds")


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("files", nargs="+", metavar="FILE", help="UTF-8 text to score")
    add_model_arguments(parser)
    add_tokenizer_argument(parser)
    parser.add_argument(
        "--context", type=int, metavar="N",
        help="start again with an empty state after every N tokens (default: never)",
    )  # fmt: skip
    parser.add_argument(
        "--max-tokens", type=int, metavar="N",
        help="score only the first N tokens of each file (default: all)",
    )  # fmt: skip
    parser.add_argument(
        "--compare", action="store_true", help="compare the model's precisions on these texts"
    )
    parser.add_argument(
        "--group-size", type=int, metavar="N",
        help="with --compare: number of weights that share a scale in int8 and int4 (default: "
        f"{GROUP_SIZE})",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def _run(args: argparse.Namespace) -> int:
    for name, value in (("--context", args.context), ("--max-tokens", args.max_tokens)):
        if value is not None and value < 1:
            raise OptionError(f"{name}: found {value}, expected at least 1")
    if args.group_size is not None and not args.compare:
        raise OptionError("--group-size: needs --compare")
    from rwkv_core.evaluation.perplexity import read_text

    # All files are read first, so that an error in the last one shows before loading and scoring.
    texts = [(path, read_text(path)) for path in args.files]
    return _compare(args, texts) if args.compare else _score(args, texts)


def _score(args: argparse.Namespace, texts: list[tuple[str, str]]) -> int:
    from rwkv_core.evaluation.perplexity import score, total

    rwkv = load_rwkv(args)
    scores = []
    for path, text in texts:
        with progress_line(os.path.basename(path)) as progress:
            progress(0, 1)
            scores.append(
                score(
                    rwkv.model, rwkv.tokenizer, text, path, args.context, args.max_tokens, progress
                )
            )
    overall = total(scores)
    if args.json:
        summary = {
            "model": str(rwkv.model.path),
            "backend": rwkv.model.backend,
            "context": args.context,
            "files": [_as_json(score) for score in scores],
            "total": _as_json(overall),
        }
        print(json.dumps(summary, indent=2))
    else:
        rows = [*scores, overall] if len(scores) > 1 else scores
        print_table(_HEADER, [_cells(row) for row in rows], right=range(1, len(_HEADER)))
    return 0


def _compare(args: argparse.Namespace, texts: list[tuple[str, str]]) -> int:
    from rwkv_core.evaluation.precision_comparison import Precisions

    group_size = GROUP_SIZE if args.group_size is None else args.group_size
    with progress_line("loading") as progress:
        precisions = Precisions(
            choose_model(args.model),
            texts,
            args.backend,
            args.tokenizer,
            group_size=group_size,
            context=args.context,
            max_tokens=args.max_tokens,
            lora=lora_of(args),
            on_load=progress,
            **backend_options(args.options),
        )
    print(
        f"float32: {printable(precisions.reference.path)} on {precisions.reference.backend}",
        file=sys.stderr,
    )
    rows = []
    for name in precisions.names:
        try:
            with cleanup_on_signal(), progress_line(name) as progress:
                rows.append(precisions.compare(name, progress))
        except (BackendError, OptionError) as error:
            print(f"{name} is left out: {error}", file=sys.stderr)
    if args.json:
        summary = {
            "model": str(precisions.reference.path),
            "backend": precisions.backend,
            "context": args.context,
            "group_size": group_size,
            "precisions": [_comparison_as_json(row) for row in rows],
        }
        print(json.dumps(summary, indent=2))
    else:
        cells = [_comparison_cells(row) for row in rows]
        print_table(_COMPARISON_HEADER, cells, right=range(1, len(_COMPARISON_HEADER)))
    return 0


def _comparison_cells(row: Comparison) -> tuple[object, ...]:
    return (
        row.precision,
        f"{row.score.perplexity:.3f}",
        f"{row.score.bits_per_byte:.4f}",
        f"{row.divergence:.2g}",
        readable_bytes(row.matrix_bytes),
        f"{row.score.tokens / row.score.seconds:.0f}",
    )


def _comparison_as_json(row: Comparison) -> dict[str, Any]:
    return {
        "precision": row.precision,
        "perplexity": row.score.perplexity,
        "bits_per_byte": row.score.bits_per_byte,
        "divergence": row.divergence,
        "matrix_bytes": row.matrix_bytes,
        "tokens_per_second": row.score.tokens / row.score.seconds,
    }


def _cells(score: Score) -> tuple[object, ...]:
    return (
        score.name,
        score.tokens,
        score.bytes,
        f"{score.nats_per_token:.4f}",
        f"{score.perplexity:.3f}",
        f"{score.bits_per_byte:.4f}",
        f"{score.seconds:.1f}",
    )


def _as_json(score: Score) -> dict[str, Any]:
    derived = ("nats_per_token", "perplexity", "bits_per_byte")
    return {**asdict(score), **{name: getattr(score, name) for name in derived}}


COMMAND = Command(
    "perplexity",
    "measure how well a model predicts texts",
    _add_arguments,
    _run,
    """\
Every token is scored. The model first reads token 0 (<|endoftext|>), and keeps its state through
the whole text. With --context N, the model starts again at token 0 after every N tokens. Bits per
byte is the loss of the text in bits, divided by its size in UTF-8. This number does not depend on
the tokenizer, so models with different tokenizers can be compared.

--compare prints a row for each precision: the backend's dtypes, int8 and int4. The columns are:
  divergence  mean KL divergence from float32's predictions, in nats per token
  matrices    size of the matrices that decoding reads for each token
  tokens/s    rate at which the text was read

  rwkv-core perplexity novel.txt
  rwkv-core perplexity *.txt --context 1024 --json
  rwkv-core perplexity novel.txt -m RWKV-4-Pile-430M.pth --compare""",
)
