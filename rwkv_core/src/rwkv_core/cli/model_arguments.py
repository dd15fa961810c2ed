"""The arguments -m, -b, -o, --lora and --tokenizer, which mean the same in every command."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from rwkv_core import bundled, plugins
from rwkv_core.cli.completion import complete_with
from rwkv_core.cli.model_choice import choose_model
from rwkv_core.cli.progress import progress_line
from rwkv_core.errors import OptionError
from rwkv_core.state import check_state_file
from rwkv_core.util.printable import printable

if TYPE_CHECKING:
    from rwkv_core.checkpoint.lora import Lora
    from rwkv_core.model import Model
    from rwkv_core.rwkv import RWKV

# Names of `load`'s own arguments, which a backend's option cannot have.
_RESERVED = ("model", "backend", "on_progress", "lora")


def filled(text: str) -> str:
    """Return `text` unless it is empty, such as from an unset variable. For argparse's `type`."""
    if not text:
        raise argparse.ArgumentTypeError("found nothing, expected a name (an unset variable?)")
    return text


def add_backend_arguments(
    parser: argparse.ArgumentParser, default: str = "the fastest one for the model's size"
) -> None:
    """Declare -b and -o. `default` is the help's description of what runs without -b."""
    name = parser.add_argument(
        "-b",
        "--backend",
        type=filled,
        metavar="NAME",
        help=f"backend to use; list-backends shows all (default: {default})",
    )
    complete_with(name, lambda: plugins.offered("rwkv_backends"))
    add_option_argument(parser)


def add_option_argument(parser: argparse.ArgumentParser) -> None:
    """Declare -o."""
    parser.add_argument(
        "-o", "--option", metavar="KEY=VALUE", action="append", default=[], dest="options",
        help="option of the backend, such as dtype=bfloat16; may be repeated",
    )  # fmt: skip


def add_lora_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare --lora and --lora-alpha."""
    parser.add_argument(
        "--lora", type=filled, metavar="FILE",
        help="merge the LoRA weights in this file, from RWKV-LM-LoRA or PEFT, into the model",
    )  # fmt: skip
    parser.add_argument(
        "--lora-alpha", type=float, metavar="A",
        help="alpha with which the LoRA was trained; required unless PEFT's adapter_config.json "
        "has it. If --lora is absent, the LoRA weights in the model's own file are merged with "
        "this alpha",
    )  # fmt: skip


def lora_of(args: argparse.Namespace) -> Lora | None:
    """Return the LoRA of --lora and --lora-alpha; None without them."""
    if args.lora is None and args.lora_alpha is None:
        return None
    from rwkv_core.checkpoint.lora import Lora

    return Lora(args.lora, args.lora_alpha)


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare -m, -b, -o, --lora and --lora-alpha."""
    parser.add_argument(
        "-m", "--model", type=filled, metavar="MODEL",
        help="path or address (hf://owner/repo/file or http(s)://...) of a model, or the name of "
        f"a small model that is part of rwkv-core: {' or '.join(bundled.MODELS)} (default: "
        f"{bundled.NAME}; if the current folder has models, the command asks on a terminal which "
        "one to use)",
    )  # fmt: skip
    add_backend_arguments(parser)
    add_lora_arguments(parser)


def add_tokenizer_argument(parser: argparse.ArgumentParser) -> None:
    """Declare --tokenizer."""
    parser.add_argument(
        "--tokenizer", type=filled, metavar="FILE",
        help="tokenizer file or its address (default: the tokenizer file beside the model. For a "
        "model trained on the Pile data set, if there is no such file: the tokenizer of "
        "EleutherAI/gpt-neox-20b on the hub)",
    )  # fmt: skip


def backend_options(pairs: list[str]) -> dict[str, str]:
    """Return the KEY=VALUE pairs of -o. Raises OptionError for a malformed or repeated pair."""
    options: dict[str, str] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or not name:
            raise OptionError(f"-o {pair}: expected KEY=VALUE, such as -o dtype=float32")
        if name in _RESERVED:
            raise OptionError(
                f"-o {name}: not an option of a backend; -m, -b, --lora and --lora-alpha give those"
            )
        if name in options:
            raise OptionError(f"-o {name}: given twice, as {options[name]!r} and {value!r}")
        options[name] = value
    return options


def load_model(args: argparse.Namespace) -> Model:
    """Load the model that the arguments name, for a command that needs no tokenizer."""
    return _load_model(args, choose_model(args.model))


def _load_model(args: argparse.Namespace, name: str) -> Model:
    """Load the model called `name`, and print the choice on stderr."""
    options = backend_options(args.options)
    from rwkv_core.loading import load

    with progress_line("loading") as progress:
        model = load(name, args.backend, progress, lora_of(args), **options)
    if name == bundled.NAME:
        name += " (ships with rwkv-core; -m names another)" if args.model is None else ""
    print(f"model: {printable(name)}  backend: {model.backend} on {model.device}", file=sys.stderr)
    return model


def load_rwkv(args: argparse.Namespace, options: Mapping[str, Any] | None = None) -> RWKV:
    """Load the model that the arguments name, with its tokenizer.

    `options` are those of `sampling_options`: if they name a token that the model does not have,
    OptionError is raised before the model is loaded.
    """
    from rwkv_core.generation.sampling import check_vocabulary
    from rwkv_core.model_file import vocabulary_size
    from rwkv_core.rwkv import RWKV
    from rwkv_core.tokenizer import load_tokenizer
    from rwkv_core.tokenizer.search import tokenizer_before_load

    backend_options(args.options)
    name = choose_model(args.model)
    # The tokenizer comes first, so that its errors show before a long download and load.
    given = load_tokenizer(args.tokenizer) if args.tokenizer else None
    tokenizer = tokenizer_before_load(name, given)
    if options is not None and (n_vocab := vocabulary_size(name)) is not None:
        check_vocabulary(options["sampling"], options["stop_tokens"], n_vocab)
    return RWKV(_load_model(args, name), tokenizer=tokenizer)


def check_initial_state(path: str | os.PathLike[str]) -> None:
    """Raise StateError unless a file begins like a saved state, or is a state-tuned file."""
    from rwkv_core.checkpoint.tuned_state import is_tuned_state

    if not is_tuned_state(path):
        check_state_file(path)
