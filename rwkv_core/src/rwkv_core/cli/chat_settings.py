"""A chat's settings, which `/set` changes and `/show` lists."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from rwkv_core.errors import OptionError
from rwkv_core.generation.sampling_parameters import PARAMETERS
from rwkv_core.util.printable import printable
from rwkv_core.util.spelling import did_you_mean

_SWITCHES = {"on": True, "off": False}
# Parameters of sampling that are numbers.
_NUMBERS = {one.name: one.kind for one in PARAMETERS if one.kind is not None}
_NAMES = ("max_tokens", *_NUMBERS, "seed", "ignore_eos", "verbose")


@dataclass
class Settings:
    """Settings of a chat: how answers are generated and shown.

    Attributes:
        max_tokens: the largest number of tokens in an answer.
        options: keyword arguments for `RWKV.stream`. Their `seed` is one random generator that all
            answers draw from. So a second answer to a question differs from the first, but a
            session with the same seed can be repeated.
        seed: the number that the random generator began with.
        verbose: whether each answer's speed is shown.
    """

    max_tokens: int
    options: dict[str, Any]
    seed: int
    verbose: bool = False

    def __post_init__(self) -> None:
        self.options = {**self.options, "seed": np.random.default_rng(self.seed)}

    def set(self, name: str, value: str) -> None:
        """Change a setting to a value given as text.

        Raises OptionError for an unknown name or a wrong value.
        """
        if name in _NUMBERS:
            number = _number(name, value, _NUMBERS[name])
            self.options["sampling"] = replace(self.options["sampling"], **{name: number})
        elif name == "max_tokens":
            self.max_tokens = _count(name, value)
        elif name == "seed":
            self.seed = _count(name, value)
            self.options["seed"] = np.random.default_rng(self.seed)
        elif name == "ignore_eos":
            self.options[name] = _switch(name, value)
        elif name == "verbose":
            self.verbose = _switch(name, value)
        else:
            hint = did_you_mean(name, _NAMES) or f"expected one of {', '.join(_NAMES)}"
            raise OptionError(f"/set: no setting {printable(name)!r}; {hint}")

    def values(self) -> dict[str, str]:
        """Return each setting as text that `set` takes."""
        switches = {True: "on", False: "off"}
        return {
            "max_tokens": str(self.max_tokens),
            **{name: str(getattr(self.options["sampling"], name)) for name in _NUMBERS},
            "seed": str(self.seed),
            "ignore_eos": switches[self.options["ignore_eos"]],
            "verbose": switches[self.verbose],
        }


def _number(name: str, value: str, kind: type) -> float:
    try:
        return kind(value)
    except ValueError:
        what = "a whole number" if kind is int else "a number"
        raise OptionError(f"{name}: found {printable(value)!r}, expected {what}") from None


def _count(name: str, value: str) -> int:
    number = int(_number(name, value, int))
    if number < 0:
        raise OptionError(f"{name}: found {number}, expected a whole number >= 0")
    return number


def _switch(name: str, value: str) -> bool:
    if value not in _SWITCHES:
        raise OptionError(f"{name}: found {printable(value)!r}, expected on or off")
    return _SWITCHES[value]
