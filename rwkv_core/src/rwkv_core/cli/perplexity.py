"""`rwkv-core perplexity`: how well a model predicts texts."""

from __future__ import annotations

import argparse
import json
import os
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from rwkv_core.cli.command import Command
from rwkv_core.cli.model_arguments import add_model_arguments, add_tokenizer_argument, load_rwkv
from rwkv_core.cli.progress import progress_line
from rwkv_core.cli.table import print_table
from rwkv_core.errors import OptionError

if TYPE_CHECKING:
    from rwkv_core.perplexity import Score

_HEADER = ("text", "tokens", "bytes", "nats/token", "perplexity", "bits/byte", "seconds")


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("files", nargs="+", metavar="FILE", help="a UTF-8 text")
    add_model_arguments(parser)
    add_tokenizer_argument(parser)
    parser.add_argument("--context", type=int, metavar="N", help="begin anew after every N tokens")
    parser.add_argument(
        "--max-tokens", type=int, metavar="N", help="score the first N tokens of each file"
    )
    parser.add_argument("--json", action="store_true", help="print one object")


def _run(args: argparse.Namespace) -> int:
    for name, value in (("--context", args.context), ("--max-tokens", args.max_tokens)):
        if value is not None and value < 1:
            raise OptionError(f"{name}: found {value}, expected at least 1")
    from rwkv_core.perplexity import read_text, score, total

    # All of them first: a mistake in the last shows before a long load and longer scoring.
    texts = [(path, read_text(path)) for path in args.files]
    rwkv = load_rwkv(args)
    scores = []
    for path, text in texts:
        with progress_line(os.path.basename(path)) as progress:
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
Every token is scored, the first after token 0 (<|endoftext|>), with one state that runs through
the whole text. With --context N the state begins anew, at token 0, after every N tokens. Bits per
byte count the text's bytes in UTF-8, so they compare models of different tokenizers.

  rwkv-core perplexity novel.txt
  rwkv-core perplexity *.txt --context 1024 --json""",
)
