"""The arguments that say how text is generated, for the commands that generate."""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping
from typing import Any

from rwkv_core.errors import OptionError

_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "\\": "\\"}


def add_sampling_arguments(
    parser: argparse.ArgumentParser, max_tokens: int, defaults: Mapping[str, float]
) -> None:
    """Declare them; `defaults` holds those that differ from the plain model's distribution."""
    plain = {"temperature": 1.0, "top_p": 1.0, "top_k": 0, **defaults}
    group = parser.add_argument_group("generation")
    group.add_argument(
        "-n", "--max-tokens", type=int, default=max_tokens, metavar="N",
        help="the largest number of tokens (default %(default)s)",
    )  # fmt: skip

    def number(name: str, kind: type, default: float, what: str) -> None:
        group.add_argument(
            name, type=kind, default=default, metavar="X", help=f"{what} (default {default})"
        )

    number("--temperature", float, plain["temperature"], "0 takes the likeliest token every time")
    number("--top-p", float, plain["top_p"], "keep the likeliest tokens up to this probability")
    number("--top-k", int, plain["top_k"], "keep this many of the likeliest tokens; 0 keeps all")
    number("--typical-p", float, 1.0, "keep the most typical tokens up to this probability")
    number("--min-p", float, 0.0, "keep tokens at least this fraction as likely as the likeliest")
    number("--repetition-penalty", float, 1.0, "above 1, makes tokens generated before less likely")
    number("--presence-penalty", float, 0.0, "taken from the logit of each token generated before")
    number(
        "--frequency-penalty",
        float,
        0.0,
        "taken from a token's logit for each time it was generated",
    )
    group.add_argument(
        "--logit-bias", metavar="TOKEN=X", action="append", default=[],
        help="add X to a token's logit; may be repeated",
    )  # fmt: skip
    group.add_argument(
        "--ban", metavar="TOKEN", type=int, action="append", default=[],
        help="never choose this token; may be repeated",
    )  # fmt: skip
    group.add_argument(
        "--stop", metavar="STRING", action="append", default=[],
        help=r"end before this string; \n, \t and \\ are understood; may be repeated",
    )  # fmt: skip
    group.add_argument(
        "--stop-token", metavar="TOKEN", type=int, action="append", default=[],
        help="end before this token; may be repeated",
    )  # fmt: skip
    group.add_argument(
        "--ignore-eos", action="store_true",
        help="do not stop at token 0, which ends a document",
    )  # fmt: skip
    group.add_argument("--seed", type=int, metavar="N", help="the same seed gives the same text")
    group.add_argument(
        "--verbose", action="store_true", help="say on stderr how fast the text was generated"
    )
    group.add_argument(
        "--sampler", metavar="NAME:KEY=VALUE,...", action="append", default=[],
        help="a further sampling step, such as mirostat:tau=3 or dry; list-plugins lists them; "
        "may be repeated",
    )  # fmt: skip


def sampling_options(args: argparse.Namespace) -> dict[str, Any]:
    """Keyword arguments for `RWKV.stream`, always with a seed.

    Raises OptionError for all that can be told without a model, so before it is loaded.
    """
    import secrets

    from rwkv_core.generation.samplers import started
    from rwkv_core.generation.sampling import Sampling, check_tokens
    from rwkv_core.generation.stop_strings import encode_stop_strings

    if args.max_tokens < 0:
        raise OptionError(f"max_tokens: found {args.max_tokens}, expected a whole number >= 0")
    encode_stop_strings(args.stop)
    check_tokens("stop_tokens", args.stop_token)
    started(args.sampler)
    if args.seed is not None and args.seed < 0:
        raise OptionError(f"--seed: found {args.seed}, expected a whole number >= 0")
    numbers = (
        "temperature", "top_p", "top_k", "typical_p", "min_p",
        "repetition_penalty", "presence_penalty", "frequency_penalty",
    )  # fmt: skip
    return {
        "sampling": Sampling(
            **{name: getattr(args, name) for name in numbers},
            logit_bias=_logit_bias(args.logit_bias),
            banned_tokens=args.ban,
        ),
        "stop_strings": [unescape(text) for text in args.stop],
        "stop_tokens": args.stop_token,
        "ignore_eos": args.ignore_eos,
        # Drawn here where none is given, so that it can be told and the text had again.
        "seed": secrets.randbits(32) if args.seed is None else args.seed,
        "processors": args.sampler,
    }


def unescape(text: str) -> str:
    r"""`text` with \n, \t, \r and \\ as the characters they stand for; other backslashes stay."""
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
