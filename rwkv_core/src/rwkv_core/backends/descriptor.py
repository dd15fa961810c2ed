"""Description of a backend: its name, options and status, without importing its library."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from rwkv_core.errors import BackendError, OptionError
from rwkv_core.util.printable import printable
from rwkv_core.util.spelling import did_you_mean

_TRUE, _FALSE = ("true", "yes", "on", "1"), ("false", "no", "off", "0")


@dataclass(frozen=True)
class Status:
    """Whether a backend would run on this machine. No tensor library is imported to find out.

    Attributes:
        available: whether the backend would run.
        device: the device that the backend would run on, such as "cpu" or "cuda:0".
        reason: one line that says why the backend would not run, and what to install.
        score: roughly the tokens per second at which the backend decodes a 169M model. If the user
            names no backend, the available backend with the highest score is used.
        min_bytes: for a backend that starts slowly, because it compiles: the smallest size of a
            model's tensors for which the backend is used by default. A smaller model runs on the
            available backend with the next lower score.
    """

    available: bool
    device: str = "cpu"
    reason: str = ""
    score: float = 0.0
    min_bytes: int = 0


@dataclass(frozen=True)
class Option:
    """One option of a backend. `type` is str, int, float, bool or list (of strings)."""

    name: str
    type: type
    default: Any
    help: str
    choices: tuple[Any, ...] = ()

    def parse(self, value: Any) -> Any:
        """Return `value`, which may be text from a command line, converted to this option's type.

        Raises OptionError if the value is of another type or not among the choices.
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
            try:
                return float(value)
            except OverflowError:
                raise self._wrong(value) from None
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


# Options that most backends have.
DTYPE = Option(
    "dtype",
    str,
    "float32",
    "type of the matrices and of products with them",
    ("float32", "bfloat16", "float16", "float64"),
)
RUNTIME_DTYPE = Option(
    "runtime_dtype",
    str,
    None,
    "type of vectors and of the state (default: float32, or float64 if dtype is float64)",
    ("float32", "float64"),
)


@dataclass(frozen=True)
class Backend:
    """The descriptor that a plugin's `rwkv_backends` hook returns.

    Attributes:
        contract: the `rwkv_core.CONTRACT` that the backend was built for.
        requires: pip requirements that a user may still have to install.
        status: a function that takes well under 10 ms and imports no tensor library.
        quantized_dtypes: dtypes ("int8", "int4") of prequantized matrices that the backend
            multiplies with directly. Matrices of other dtypes are dequantized at load.
    """

    name: str
    summary: str
    contract: int
    status: Callable[[], Status]
    options: tuple[Option, ...] = ()
    requires: tuple[str, ...] = ()
    quantized_dtypes: tuple[str, ...] = ()


@dataclass(frozen=True)
class BackendInfo:
    """One row of `list_backends()`: a backend, or a plugin that failed before it named a backend.

    `status` is "ready", "unavailable" (`reason` says what to install) or "broken" (`reason` says
    what failed). `contract` is None if it is unknown. Every text is one printable line.
    """

    name: str
    distribution: str
    version: str
    contract: int | None
    status: str
    device: str
    summary: str
    reason: str
    score: float = 0.0
    options: tuple[Option, ...] = ()
    quantized_dtypes: tuple[str, ...] = ()
    min_bytes: int = 0

    def __post_init__(self) -> None:
        for name in ("name", "distribution", "version", "device", "summary", "reason"):
            object.__setattr__(self, name, printable(getattr(self, name)))


def install_line(*requirements: str) -> str:
    """Return the pip command that installs `requirements`."""
    return "pip install " + " ".join(f'"{requirement}"' for requirement in requirements)


def check_name(name: object) -> None:
    """Raise BackendError unless `name` is one printable word."""
    if not isinstance(name, str) or not name or printable(name) != name or " " in name:
        raise BackendError(f"found the name {name!r}, expected a printable word")


def check_backend(backend: Backend) -> None:
    """Raise BackendError for the first wrong field of a descriptor, other than its name."""
    _expect("summary", backend.summary, str)
    _expect("contract", backend.contract, int)
    if not callable(backend.status):
        raise BackendError(f"status: found {backend.status!r}, expected a function")
    _expect("requires", backend.requires, tuple)
    for requirement in backend.requires:
        _expect("requires", requirement, str)
    _expect("quantized_dtypes", backend.quantized_dtypes, tuple)
    for dtype in backend.quantized_dtypes:
        _expect("quantized_dtypes", dtype, str)
    check_options(backend.options)


def check_options(options: object) -> None:
    """Raise BackendError unless `options` is a tuple of valid options."""
    _expect("options", options, tuple)
    assert isinstance(options, tuple)
    for option in options:
        _expect("options", option, Option)
        check_name(option.name)
        _expect(f"option {option.name}: help", option.help, str)
        if option.type not in (str, int, float, bool, list):
            raise BackendError(
                f"option {option.name}: found the type {option.type!r}, "
                "expected str, int, float, bool or list"
            )
        _expect(f"option {option.name}: choices", option.choices, tuple)
        for choice in option.choices:
            _expect(f"option {option.name}: choices", choice, option.type)
        if option.default is not None:
            option.parse(option.default)


def check_status(status: Status) -> None:
    """Raise BackendError for the first field of a status that is wrong."""
    _expect("status", status, Status)
    _expect("available", status.available, bool)
    _expect("device", status.device, str)
    _expect("reason", status.reason, str)
    _expect("min_bytes", status.min_bytes, int)
    score = status.score
    if isinstance(score, bool) or not isinstance(score, int | float) or not math.isfinite(score):
        raise BackendError(f"score: found {score!r}, expected a finite number")


def _expect(what: str, value: object, kind: type) -> None:
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise BackendError(f"{what}: found {value!r}, expected {kind.__name__}")


class HasOptions(Protocol):
    """A backend, or a sampler."""

    @property
    def name(self) -> str: ...
    @property
    def options(self) -> tuple[Option, ...]: ...


def resolve_options(offer: HasOptions, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return a value for every option of a backend or sampler: the given one, or the default.

    Raises OptionError for an unknown name and for a value of a wrong type.
    """
    known = {option.name: option for option in offer.options}
    for name in given:
        if name not in known:
            question = did_you_mean(name, known)
            raise OptionError(
                f"{type(offer).__name__.lower()} {offer.name} has no option {name!r}; "
                f"{f'{question} It' if question else 'it'} takes: {', '.join(known) or 'none'}"
            )
    return {
        name: option.parse(given[name]) if name in given else option.default
        for name, option in known.items()
    }
