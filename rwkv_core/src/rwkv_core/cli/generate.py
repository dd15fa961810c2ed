"""`rwkv-core generate`: continues a text."""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

from rwkv_core.cli.model_arguments import (
    add_model_arguments,
    add_tokenizer_argument,
    check_initial_state,
    filled,
    load_rwkv,
)
from rwkv_core.cli.printing import print_pieces, print_text, speed
from rwkv_core.cli.processes import refuse_stdin
from rwkv_core.cli.progress import read_prompt
from rwkv_core.cli.sampling_arguments import add_sampling_arguments, sampling_options
from rwkv_core.errors import OptionError
from rwkv_core.plugins.command import Command
from rwkv_core.state import check_place


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "prompt", nargs="?", metavar="PROMPT", help="text to continue; - reads it from stdin"
    )
    parser.add_argument(
        "--prompt-file", type=filled, metavar="FILE", help="read the prompt from this UTF-8 file"
    )
    parser.add_argument(
        "--echo", action="store_true", help="print the prompt before the continuation"
    )
    add_model_arguments(parser)
    add_tokenizer_argument(parser)
    add_sampling_arguments(parser, 200, {})
    parser.add_argument(
        "--state",
        type=filled,
        metavar="FILE",
        help="start from this file's state: a saved state or conversation, or a state-tuned file "
        "(a trained initial state)",
    )
    parser.add_argument(
        "--save-state", type=filled, metavar="FILE", help="save the state after the text in a file"
    )
    parser.add_argument(
        "--json-schema",
        type=filled,
        metavar="FILE",
        help="generate JSON that follows the schema in this file",
    )
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object at the end, instead of the text"
    )


def _run(args: argparse.Namespace) -> int:
    prompt = _prompt(args)
    options = sampling_options(args)
    if args.json_schema is not None:
        options["json_schema"] = _json_schema(args.json_schema)
    # Checked before the model is loaded and the text is generated.
    if args.state is not None:
        check_initial_state(args.state)
    if args.save_state is not None:
        check_place(args.save_state)
    rwkv = load_rwkv(args, options)
    if args.state is not None:
        rwkv.load_state(args.state)
    began = time.perf_counter()
    read_prompt(rwkv, prompt)
    prompt_seconds = time.perf_counter() - began
    if args.echo and not args.json:
        print_text(prompt)
    began = time.perf_counter()
    running = rwkv.stream(args.max_tokens, **options)
    print_pieces(running, quiet=args.json)
    result = running.result
    assert result is not None
    seconds = time.perf_counter() - began
    if args.save_state is not None:
        rwkv.save_state(args.save_state)
    n_prompt = len(rwkv.tokenizer.encode(prompt)) if args.json or args.verbose else 0
    if args.verbose:
        print(
            f"prompt: {speed(n_prompt, prompt_seconds)}\n"
            f"text: {speed(len(result.tokens), seconds)} "
            f"(ended by {result.stop_reason}, seed {options['seed']})",
            file=sys.stderr,
        )
    if args.json:
        summary: dict[str, Any] = {
            "text": result.text,
            "tokens": result.tokens,
            "stop_reason": result.stop_reason,
            "prompt_tokens": n_prompt,
            "seconds": seconds,
            "tokens_per_second": len(result.tokens) / seconds,
            "model": str(rwkv.model.path),
            "backend": rwkv.model.backend,
            "seed": options["seed"],
        }
        print(json.dumps(summary))
    if result.stop_reason != "interrupted":
        return 0
    print(f"interrupted after {len(result.tokens)} tokens", file=sys.stderr)
    return 130


def _prompt(args: argparse.Namespace) -> str:
    """Return the prompt from the argument, a file or stdin.

    Raises OptionError if there is none or it cannot be read.
    """
    if args.prompt is not None and args.prompt_file is not None:
        raise OptionError("found both PROMPT and --prompt-file, expected one of them")
    if args.prompt is None and args.prompt_file is None:
        if args.state is not None:
            return ""
        raise OptionError("no prompt; give PROMPT, - for stdin, --prompt-file FILE or --state FILE")
    if args.prompt not in (None, "-"):
        return str(args.prompt)
    source = args.prompt_file or "-"
    if source == "-":
        refuse_stdin("generate -", "give PROMPT or --prompt-file FILE")
    try:
        data = sys.stdin.buffer.read() if source == "-" else Path(source).read_bytes()
        return data.decode()
    except OSError as error:
        raise OptionError(f"{source}: cannot be read: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise OptionError(f"{source}: not UTF-8 at byte {error.start}; expected a text") from None


def _json_schema(path: str) -> str:
    """Return the text of the file `path`.

    Raises OptionError if the file cannot be read or holds no valid JSON schema.
    """
    from rwkv_core.generation.grammar import json_schema_grammar

    try:
        text = Path(path).read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise OptionError(f"--json-schema {path}: cannot be read: {error}") from None
    json_schema_grammar(text)
    return text


COMMAND = Command(
    "generate",
    "continue a text",
    _add_arguments,
    _run,
    "Prints only the continuation on stdout (with --echo, the prompt too), while it is generated.\n"
    "Everything else is on stderr.\n\n"
    '  rwkv-core generate "It was a dark and stormy night" -n 100 --top-p 0.9\n'
    "  rwkv-core generate --prompt-file story.txt --save-state story.state\n"
    "  rwkv-core generate --state story.state",
)
