"""Compares the installed backends' logits with stored logits, for a model of each architecture.

The stored (golden) logits were computed by the conformance suite's float64 references;
training/golden.py writes them. So a wrong library, driver or build shows on the machine where it is
installed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rwkv_core import bundled, plugins
from rwkv_core.backends.descriptor import BackendInfo, resolve_options
from rwkv_core.dtypes import tolerance_of
from rwkv_core.errors import BackendError, OptionError, RWKVError
from rwkv_core.loading import load
from rwkv_core.model import Model


class Case(NamedTuple):
    """A prompt, and the reference's logits after some of its tokens."""

    tokens: list[int]
    positions: list[int]
    """Indices into `tokens`. `logits` are the logits after these tokens."""
    logits: NDArray[np.float32]  # [len(positions), V]


@dataclass(frozen=True)
class Check:
    """Result of one backend with one dtype.

    Attributes:
        status: "pass", "FAIL", or "skipped" if the backend is not available on this machine.
        error: the largest difference in any model's logits, divided by their root mean square; None
            if there are no logits to compare.
        reason: why the check was skipped, or which models failed, and how.
    """

    backend: str
    dtype: str
    device: str
    status: str
    error: float | None
    tolerance: float | None
    reason: str = ""


def golden_cases(path: Path, fingerprint: str) -> list[Case]:
    """Return the cases in a file of golden logits.

    Raises RWKVError if the file is not for the model with this fingerprint.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            of_model = (file.metadata() or {}).get("model")
            if of_model != fingerprint:
                raise RWKVError(
                    f"{path.name}: is of model {of_model}, the one beside it is {fingerprint}: "
                    "make it again with training/golden.py"
                )
            names = ("tokens", "positions", "logits")
            count = len(list(file.keys())) // len(names)
            rows = [[file.get_tensor(f"{name}.{i}") for name in names] for i in range(count)]
    except (OSError, SafetensorError) as error:
        raise RWKVError(f"{path}: cannot be read ({error}); reinstall rwkv-core") from error
    return [Case(tokens.tolist(), places.tolist(), logits) for tokens, places, logits in rows]


def verify(backend: str | None, options: Mapping[str, Any]) -> Iterator[Check]:
    """Check `backend`, or all installed backends, with each of its dtypes, one after the other.

    `options` are options of the backend. If they name a dtype, only this dtype is checked. Raises
    BackendError if `backend` is not ready or no backend is installed, and OptionError for options
    that no backend has.
    """
    rows = plugins.list_backends()
    if not rows:
        # Raises an error that says what to install.
        plugins.default_backend()
    if backend is not None:
        # A named backend that is not ready is an error, not a row.
        if all(row.status != "ready" for row in rows if row.name == backend):
            plugins.tensor_ops(backend, {})
        rows = [row for row in rows if row.name == backend and row.status == "ready"]
    _check_options([row.name for row in rows if row.status == "ready"], options)
    for row in rows:
        if row.status != "ready":
            yield Check(row.name, "-", row.device, "skipped", None, None, row.reason)
            continue
        for choice in _choices(row, options):
            yield _check(row, {**options, **choice})


def _check_options(names: list[str], options: Mapping[str, Any]) -> None:
    backends = plugins.offered("rwkv_backends")
    refusals = []
    for name in names:
        try:
            resolve_options(backends[name], options)
        except OptionError as refusal:
            refusals.append(refusal)
    if refusals and len(refusals) == len(names):
        raise refusals[0]


def _choices(row: BackendInfo, options: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield options for each dtype of a backend, or only for the dtype that `options` name."""
    for option in row.options:
        if option.name == "dtype":
            given = (options["dtype"],) if "dtype" in options else option.choices
            yield from ({"dtype": value} for value in given or (option.default,))
            return
    yield {}


def _check(row: BackendInfo, chosen: Mapping[str, Any]) -> Check:
    dtype = chosen.get("dtype", "")
    device, tolerance = row.device, tolerance_of(dtype or "float32").golden
    errors, failures = [], []
    for version, path in bundled.VERIFIED.items():
        try:
            model = load(path, row.name, **chosen)
            device = model.device
            tolerance = max(tolerance, tolerance_of(model.ops.runtime_dtype).golden)
            cases = golden_cases(bundled.golden_logits(path), model.fingerprint)
            error = max(deviation_of(model, case) for case in cases)
        except (BackendError, OptionError) as refusal:
            return Check(row.name, dtype, device, "skipped", None, tolerance, str(refusal))
        except RWKVError:
            raise
        # A tensor library may raise any exception; each is a result of the check.
        except Exception as failure:
            words = " ".join(str(failure).split())
            failures.append(f"{version}: {type(failure).__name__}: {words}")
            continue
        if not np.isfinite(error):
            failures.append(f"{version}: its logits are not all numbers")
            continue
        errors.append(error)
        if error > tolerance:
            failures.append(f"{version}: off by {error:.1e}")
    return Check(
        row.name, dtype, device, "FAIL" if failures else "pass", max(errors, default=None),
        tolerance, "; ".join(failures),
    )  # fmt: skip


def deviation_of(model: Model, case: Case) -> float:
    """Return the largest error of the model's logits, divided by the expected logits' RMS.

    The model reads the prompt twice: once as a whole, and once token by token. RMS is the root mean
    square. The result is infinite if a logit is NaN or infinite.
    """
    together, _ = model.forward(case.tokens, all_logits=True)
    at_once = model.to_numpy(together)[case.positions]
    singles, state = [], None
    for token in case.tokens:
        logits, state = model.forward([token], state)
        singles.append(logits)
    one_by_one = np.stack([model.to_numpy(singles[i]) for i in case.positions])
    if not (np.isfinite(at_once).all() and np.isfinite(one_by_one).all()):
        return float("inf")
    return max(deviation(at_once, case.logits), deviation(one_by_one, case.logits))


def deviation(found: ArrayLike, expected: ArrayLike) -> float:
    """Return the largest difference, divided by the root mean square of `expected`."""
    found, expected = np.asarray(found, np.float64), np.asarray(expected, np.float64)
    return float(np.max(np.abs(found - expected))) / root_mean_square(expected)


def root_mean_square(expected: NDArray[np.float64]) -> float:
    """Return the root mean square of `expected`; 1 if it is 0."""
    return float(np.sqrt(np.mean(expected**2))) or 1.0
