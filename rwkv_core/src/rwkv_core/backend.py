"""What a backend says of itself, without its tensor library being imported."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from rwkv_core.errors import OptionError

_TRUE, _FALSE = ("true", "yes", "on", "1"), ("false", "no", "off", "0")


@dataclass(frozen=True)
class Status:
    """Whether a backend would run here, found out without importing its library.

    `score` ranks the available backends of a machine when none is named: about the tokens a
    second that a 169M model decodes at, as far as that can be told cheaply.
    """

    available: bool
    device: str = "cpu"
    reason: str = ""
    score: float = 0.0


@dataclass(frozen=True)
class Option:
    """One option of a backend; `type` is str, int, float, bool or list (of strings)."""

    name: str
    type: type
    default: Any
    help: str
    choices: tuple[Any, ...] = ()

    def parse(self, value: Any) -> Any:
        """`value`, which may be text from a command line, as this option's type.

        Raises OptionError if it is of another type or not among the choices.
        """
        if value is None and self.default is None:
            return None
        parsed = self._convert(value)
        if self.choices and parsed not in self.choices:
            known = ", ".join(map(str, self.choices))
            raise OptionError(f"option {self.name}: found {value!r}, expected one of: {known}")
        return parsed

    def _convert(self, value: Any) -> Any:
        if isinstance(value, bool) != (self.type is bool) and not isinstance(value, str):
            raise self._wrong(value)
        if isinstance(value, self.type):
            return value
        if self.type is float and isinstance(value, int):
            return float(value)
        if not isinstance(value, str):
            if self.type is list and isinstance(value, tuple):
                return list(value)
            raise self._wrong(value)
        if self.type is list:
            return [part.strip() for part in value.split(",") if part.strip()]
        if self.type is bool:
            if value.lower() not in _TRUE + _FALSE:
                raise self._wrong(value)
            return value.lower() in _TRUE
        try:
            return self.type(value)
        except ValueError:
            raise self._wrong(value) from None

    def _wrong(self, value: Any) -> OptionError:
        return OptionError(f"option {self.name}: found {value!r}, expected {self.type.__name__}")


@dataclass(frozen=True)
class Backend:
    """The descriptor that a plugin's `rwkv_backends` hook returns.

    `contract` is the `rwkv_core.CONTRACT` that the backend was built for, `requires` the pip
    requirements that a user may still have to install, and `status` a function that takes well
    under 10 ms and imports no tensor library.
    """

    name: str
    summary: str
    contract: int
    status: Callable[[], Status]
    options: tuple[Option, ...] = ()
    requires: tuple[str, ...] = ()


def resolve_options(backend: Backend, given: Mapping[str, Any]) -> dict[str, Any]:
    """Every option of the backend with its value: the given one or the default.

    Raises OptionError for a name that the backend does not have and for a value that does not fit.
    """
    known = {option.name: option for option in backend.options}
    for name in given:
        if name not in known:
            close = difflib.get_close_matches(name, known, 1)
            hint = f"did you mean {close[0]}? It" if close else "it"
            raise OptionError(
                f"backend {backend.name} has no option {name!r}; {hint} takes: "
                f"{', '.join(known) or 'none'}"
            )
    return {
        name: option.parse(given[name]) if name in given else option.default
        for name, option in known.items()
    }
