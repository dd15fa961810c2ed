"""The suite's command-line options. Loaded in every pytest run, so it imports nothing else."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from rwkv_core.backends.tensor_ops import TensorOps


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("rwkv-core", "conformance of an rwkv-core backend")
    group.addoption("--rwkv-backend", metavar="NAME", help="backend that is put to the test")
    group.addoption(
        "--rwkv-option",
        metavar="KEY=VALUE",
        action="append",
        default=[],
        help="option of the backend, kept fixed; may be given more than once",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Refuse an unknown backend or a wrong option before tests are collected."""
    if config.getoption("rwkv_backend") is None:
        return
    from rwkv_core.errors import RWKVError

    try:
        build_ops(config, given_options(config))
    except RWKVError as error:
        raise pytest.UsageError(str(error)) from None


def given_options(config: pytest.Config) -> dict[str, str]:
    """Return the values of `--rwkv-option`. Raises pytest.UsageError for one without "="."""
    given = {}
    for text in config.getoption("rwkv_option"):
        name, equals, value = text.partition("=")
        if not equals:
            raise pytest.UsageError(f"--rwkv-option: found {text!r}, expected KEY=VALUE")
        given[name] = value
    return given


def build_ops(config: pytest.Config, options: dict[str, Any]) -> TensorOps:
    """Return the operations of the backend under test, with these options."""
    from rwkv_core import plugins

    return plugins.tensor_ops(config.getoption("rwkv_backend"), options)
