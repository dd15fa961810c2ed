"""The parameters of sampling, each declared once, in `Sampling`.

A declaration holds the default, the help and the check. `RWKV.generate`, the command line and a
chat's `/set` use it. NumPy is not imported, so that `--help` is fast.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from rwkv_core.errors import OptionError
from rwkv_core.util.spelling import did_you_mean

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Check: TypeAlias = Callable[[str, Any], Any]


class Range(NamedTuple):
    """The range of a parameter: its description, and its check."""

    words: str
    holds: Callable[[Any], bool]


_ANY = Range("a number", lambda x: True)
_POSITIVE = Range("a number > 0", lambda x: x > 0)
_NOT_NEGATIVE = Range("a number >= 0", lambda x: x >= 0)
_FRACTION = Range("a number from 0 to 1", lambda x: 0 <= x <= 1)
_SHARE = Range("a number > 0 and <= 1", lambda x: 0 < x <= 1)


def is_whole(value: object) -> bool:
    """Return whether `value` is an integer of Python or NumPy, but not a bool."""
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def _is_number(value: object) -> bool:
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        return False
    try:
        float(value)
    except OverflowError:  # a whole number that is too large for a float
        return False
    return True


def check_tokens(name: str, tokens: Collection[object]) -> None:
    """Raise OptionError unless the option `name` holds only whole numbers >= 0."""
    if not isinstance(tokens, Iterable):
        raise OptionError(f"{name}: found {tokens!r}, expected a list of token numbers")
    for token in tokens:
        if not is_whole(token) or not 0 <= token < 2**63:  # type: ignore[operator]
            raise OptionError(f"{name}: found {token!r}, expected token numbers >= 0")


def _number(default: float, within: Range, help: str) -> Any:
    def check(name: str, value: Any) -> float:
        if not _is_number(value) or not math.isfinite(value) or not within.holds(value):
            raise OptionError(f"{name}: found {value!r}, expected {within.words}")
        return float(value)

    return field(default=default, metadata={"help": help, "check": check})


def _count(default: int, help: str) -> Any:
    def check(name: str, value: Any) -> int:
        if not is_whole(value) or value < 0:
            raise OptionError(f"{name}: found {value!r}, expected a whole number >= 0")
        return int(value)

    return field(default=default, metadata={"help": help, "check": check})


# These functions return copies, so that later changes by the caller do not bypass the checks.
def _checked_bias(name: str, bias: Any) -> dict[int, float]:
    if not isinstance(bias, Mapping):
        raise OptionError(f"{name}: found {bias!r}, expected a mapping of tokens to numbers")
    check_tokens(name, bias)
    for token, value in bias.items():
        if not _is_number(value) or math.isnan(value) or float(value) == math.inf:
            raise OptionError(f"{name} of {token}: found {value!r}, expected a number or -inf")
    return {token: float(value) for token, value in bias.items()}


def _checked_list(name: str, tokens: Any) -> tuple[int, ...]:
    if isinstance(tokens, str) or not isinstance(tokens, Collection):
        raise OptionError(f"{name}: found {tokens!r}, expected tokens")
    check_tokens(name, tokens)
    return tuple(tokens)


@dataclass(frozen=True)
class Sampling:
    """Parameters for choosing the next token.

    By default, the token is drawn from the model's distribution.

    Raises OptionError for a value of the wrong type or out of range.
    """

    temperature: float = _number(
        1.0, _NOT_NEGATIVE, "divisor of the logits; 0 always takes the likeliest token"
    )
    top_p: float = _number(
        1.0, _SHARE, "keep the likeliest tokens, until their probabilities add up to this"
    )
    top_k: int = _count(0, "keep this number of the likeliest tokens; 0 keeps all")
    typical_p: float = _number(
        1.0, _SHARE, "keep the most typical tokens, until their probabilities add up to this"
    )
    min_p: float = _number(
        0.0,
        _FRACTION,
        "drop tokens with a probability below this fraction of the largest probability",
    )
    repetition_penalty: float = _number(
        1.0, _POSITIVE, "values above 1 make tokens that were generated before less likely"
    )
    presence_penalty: float = _number(
        0.0, _ANY, "number subtracted from the logit of each token that was generated before"
    )
    frequency_penalty: float = _number(
        0.0, _ANY, "number subtracted from a token's logit for each time it was generated"
    )
    logit_bias: Mapping[int, float] = field(
        default_factory=dict,
        metadata={"help": "add X to a token's logit", "check": _checked_bias, "metavar": "TOKEN=X"},
    )
    banned_tokens: Collection[int] = field(
        default=(),
        metadata={
            "help": "never choose this token",
            "check": _checked_list,
            "metavar": "TOKEN",
            "flag": "--ban",
        },
    )

    def __post_init__(self) -> None:
        for one in fields(self):
            value = one.metadata["check"](one.name, getattr(self, one.name))
            object.__setattr__(self, one.name, value)

    # Cached, since converting a long list takes longer than all other steps for a token.
    @cached_property
    def bias_arrays(self) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
        """Return the tokens [n] of `logit_bias`, and the values [n] added to their logits."""
        import numpy as np

        n = len(self.logit_bias)
        return np.fromiter(self.logit_bias, np.intp, n), np.fromiter(
            self.logit_bias.values(), np.float64, n
        )

    @cached_property
    def banned_array(self) -> NDArray[np.intp]:
        """Return `banned_tokens` as an array [n]."""
        import numpy as np

        return np.array(self.banned_tokens, np.intp)

    @property
    def has_penalties(self) -> bool:
        """Return whether earlier tokens change the choice."""
        return bool(self.repetition_penalty != 1 or self.presence_penalty or self.frequency_penalty)


class Parameter(NamedTuple):
    """Parameter of sampling, for a command line and its help.

    Attributes:
        kind: float or int; None if the parameter has several values, which are given one by one.
        flag: the parameter's name on the command line.
        metavar: the placeholder of the parameter's value in the help.
    """

    name: str
    kind: type | None
    default: Any
    help: str
    flag: str
    metavar: str


PARAMETERS = tuple(
    Parameter(
        one.name,
        None if "metavar" in one.metadata else type(one.default),
        one.default,
        one.metadata["help"],
        one.metadata.get("flag", f"--{one.name.replace('_', '-')}"),
        one.metadata.get("metavar", "X"),
    )
    for one in fields(Sampling)
)
Sampling.__doc__ = f"{Sampling.__doc__}\n    Attributes:\n" + "\n".join(
    f"        {one.name}: {one.help}." for one in PARAMETERS
)


def sampling_with(base: Sampling | None, options: Mapping[str, Any]) -> Sampling:
    """Return `base` (None: the defaults) with `options` changed, by name.

    Raises OptionError for an unknown name or a wrong value.
    """
    if base is not None and not isinstance(base, Sampling):
        raise OptionError(
            f"sampling: found a {type(base).__name__}, expected a Sampling; "
            "or pass the options by name, as in generate(100, top_p=0.5)"
        )
    known = [one.name for one in PARAMETERS]
    for name in options:
        if name not in known:
            hint = did_you_mean(name, known) or f"expected one of {', '.join(known)}"
            raise OptionError(f"unknown option {name!r}; {hint}")
    return replace(base or Sampling(), **options)
