"""The arguments for generation, such as --temperature and --stop, of `generate` and `chat`."""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping
from typing import Any

from rwkv_core.errors import OptionError
from rwkv_core.generation.sampling_parameters import PARAMETERS, Sampling, check_tokens

_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "\\": "\\"}


def add_sampling_arguments(
    parser: argparse.ArgumentParser, max_tokens: int, defaults: Mapping[str, float]
) -> None:
    """Declare the arguments; `defaults` replaces defaults of `Sampling`, by name."""
    group = parser.add_argument_group("generation")
    group.add_argument(
        "-n", "--max-tokens", type=int, default=max_tokens, metavar="N",
        help="largest number of tokens to generate (default: %(default)s)",
    )  # fmt: skip

    for one in PARAMETERS:
        if one.kind is not None:
            default = defaults.get(one.name, one.default)
            group.add_argument(
                one.flag, dest=one.name, type=one.kind, default=default, metavar=one.metavar,
                help=f"{one.help} (default: {default})",
            )  # fmt: skip
        else:
            group.add_argument(
                one.flag, dest=one.name, type=int if one.metavar == "TOKEN" else str,
                action="append", default=[], metavar=one.metavar,
                help=f"{one.help}; may be repeated",
            )  # fmt: skip
    group.add_argument(
        "--stop", metavar="STRING", action="append", default=[],
        help=r"end the text before this string, in which \n, \t, \r and \\ are escapes; "
        "may be repeated",
    )  # fmt: skip
    group.add_argument(
        "--stop-token", metavar="TOKEN", type=int, action="append", default=[],
        help="end the text before this token, given by its number; may be repeated",
    )  # fmt: skip
    group.add_argument(
        "--ignore-eos", action="store_true",
        help="do not stop at token 0, which marks the end of a document",
    )  # fmt: skip
    group.add_argument(
        "--seed", type=int, metavar="N",
        help="seed of the random numbers; the same seed gives the same text (default: random)",
    )  # fmt: skip
    group.add_argument(
        "--verbose", action="store_true", help="print the speed of generation on stderr"
    )
    group.add_argument(
        "--sampler", metavar="NAME:KEY=VALUE,...", action="append", default=[],
        help="additional sampling step, such as mirostat:tau=3 or dry; list-plugins shows all "
        "samplers; may be repeated",
    )  # fmt: skip


def sampling_options(args: argparse.Namespace) -> dict[str, Any]:
    """Return keyword arguments for `RWKV.stream`, always with a seed.

    Raises OptionError for all mistakes that can be found without a model, before it is loaded.
    """
    import secrets

    from rwkv_core.generation.samplers import started
    from rwkv_core.generation.stop_strings import encode_stop_strings

    if args.max_tokens < 0:
        raise OptionError(f"max_tokens: found {args.max_tokens}, expected a whole number >= 0")
    encode_stop_strings(args.stop)
    check_tokens("stop_tokens", args.stop_token)
    started(args.sampler)
    if args.seed is not None and args.seed < 0:
        raise OptionError(f"--seed: found {args.seed}, expected a whole number >= 0")
    parameters = {one.name: getattr(args, one.name) for one in PARAMETERS}
    parameters["logit_bias"] = _logit_bias(args.logit_bias)
    return {
        "sampling": Sampling(**parameters),
        "stop_strings": [unescape(text) for text in args.stop],
        "stop_tokens": args.stop_token,
        "ignore_eos": args.ignore_eos,
        # Without --seed one is drawn here, so that it can be printed and the text repeated.
        "seed": secrets.randbits(32) if args.seed is None else args.seed,
        "processors": args.sampler,
    }


def unescape(text: str) -> str:
    r"""Return `text` with \n, \t, \r and \\ replaced by their characters; other \ are kept."""
    return re.sub(r"\\([ntr\\])", lambda found: _ESCAPES[found[1]], text)


def _logit_bias(pairs: list[str]) -> dict[int, float]:
    bias: dict[int, float] = {}
    for pair in pairs:
        token, _, value = pair.partition("=")
        try:
            number = int(token)
            amount = float(value)
        except ValueError:
            raise OptionError(
                f"--logit-bias {pair}: expected TOKEN=X with a token's number, such as 11=-2.5"
            ) from None
        if number in bias:
            raise OptionError(f"--logit-bias {pair}: token {number} is given twice")
        bias[number] = amount
    return bias
