"""Lists backends and plugins, selects a backend and starts it."""

from __future__ import annotations

import re
import sys
import warnings
from collections.abc import Mapping
from contextlib import redirect_stdout
from typing import Any

from rwkv_core.backends.descriptor import (
    Backend,
    BackendInfo,
    Status,
    check_status,
    install_line,
    resolve_options,
)
from rwkv_core.backends.tensor_ops import TensorOps
from rwkv_core.errors import BackendError, BackendWarning, OptionError, RWKVError
from rwkv_core.plugins.discovery import Offer, PluginInfo, own_extras, plugin_limit, registry
from rwkv_core.plugins.install_advice import (
    RECOMMENDED,
    from_checkout,
    install_extra,
    install_recommended,
)
from rwkv_core.plugins.installed import GROUP, normal
from rwkv_core.util.distributions import installed_version
from rwkv_core.util.printable import one_line, printable
from rwkv_core.util.spelling import did_you_mean

__all__ = [
    "GROUP", "check_backend", "default_backend", "list_backends", "list_plugins", "offered",
    "own_extras", "plugin_limit", "registry", "start_backend", "tensor_ops", "whose_code",
    "why_not",
]  # fmt: skip


def _row(name: str, offer: Offer) -> BackendInfo:
    """Return a backend's row, with its status checked now."""
    backend: Backend = offer.item
    try:
        with redirect_stdout(sys.stderr):
            status = backend.status()
        check_status(status)
        word, reason = ("ready" if status.available else "unavailable"), status.reason
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        status = Status(False, "")
        word, reason = "broken", f"its status check failed: {one_line(error)}"
    if word == "unavailable" and not all(map(_is_installed, backend.requires)):
        reason = f"{reason}; install it with: {install_line(*backend.requires)}".lstrip("; ")
    return BackendInfo(
        name, offer.source.distribution, offer.source.version, backend.contract, word,
        status.device, backend.summary, reason, status.score, backend.options,
        backend.quantized_dtypes, status.min_bytes,
    )  # fmt: skip


def _is_installed(requirement: str) -> bool:
    """Return whether a requirement's distribution is installed, in any version."""
    name = re.match(r"[\w.-]+", requirement)
    return name is not None and installed_version(name[0]) is not None


def list_backends() -> list[BackendInfo]:
    """Return every installed backend with its status, and every broken plugin, sorted by name.

    Imports no tensor library.
    """
    offers = registry().offers["rwkv_backends"]
    rows = [*registry().failures, *(_row(name, offer) for name, offer in offers.items())]
    return sorted(rows, key=lambda row: (row.name, row.status != "ready", row.distribution))


def list_plugins() -> list[PluginInfo]:
    """Return every installed plugin, with or without a backend: its offers and its problems."""
    return list(registry().plugins)


def broken_plugins() -> str:
    """Return the part of an error that names broken plugins; "" if there are none."""
    names = ", ".join(printable(info.name) for info in list_plugins() if info.problems)
    return f"{names} failed: rwkv-core list-plugins says why" if names else ""


def default_backend(n_bytes: int | None = None, options: Mapping[str, Any] | None = None) -> str:
    """Return the name of the fastest ready backend that has `options`.

    `n_bytes` is the size of the model's tensors; None stands for a large model. Raises BackendError
    if no backend is ready, and OptionError if none has the options.
    """
    return _best_first(n_bytes, options or {})[0]


def _best_first(n_bytes: int | None, options: Mapping[str, Any]) -> list[str]:
    """Return the ready backends that have `options`, the best for a model of `n_bytes` first."""
    rows = list_backends()
    ready = [row for row in rows if row.status == "ready"]
    if not ready:
        broken = "".join(f"\n{row.name}: {row.reason}" for row in rows)
        advice = f"{install_recommended()}{plugin_limit()}{broken}"
        raise BackendError(f"no backend is ready here; {advice}")
    ready.sort(key=lambda row: (row.score, row.name), reverse=True)
    able, refusals = [], []
    for row in ready:
        try:
            resolve_options(registry().offers["rwkv_backends"][row.name].item, options)
            able.append(row)
        except OptionError as refusal:
            refusals.append(refusal)
    if not able:
        raise refusals[0]
    quick = [row for row in ready if n_bytes is None or n_bytes >= row.min_bytes]
    # If the best backend for this size lacks the options, the others stay sorted by score.
    if quick and quick[0] in able:
        able.sort(key=lambda row: row not in quick)
    return [row.name for row in able]


def start_backend(
    name: str | None, options: Mapping[str, Any], n_bytes: int | None = None
) -> tuple[str, TensorOps]:
    """Start backend `name`. Return its name and its operations.

    If `name` is None, `default_backend(n_bytes, options)` is started. If that fails, the next best
    backend is started, with a BackendWarning. Raises the errors of `tensor_ops`; if all backends
    fail, the error of the first.
    """
    if name is not None:
        return name, tensor_ops(name, options)
    names = _best_first(n_bytes, options)
    try:
        return names[0], tensor_ops(names[0], options)
    except OptionError as error:
        # The user's choice is wrong, not the backend.
        if options:
            raise
        failed: RWKVError = error
    except RWKVError as error:
        failed = error
    for other in names[1:]:
        try:
            ops = tensor_ops(other, options)
        except RWKVError:
            continue
        warnings.warn(f"{failed}; taking {other} instead", BackendWarning, stacklevel=4)
        return other, ops
    raise failed


def check_backend(name: str | None, options: Mapping[str, Any]) -> None:
    """Raise the errors of `start_backend` that can be found without starting a backend."""
    _ready(default_backend(None, options) if name is None else name, options)


def _ready(name: str, options: Mapping[str, Any]) -> tuple[Offer, dict[str, Any]]:
    """Return backend `name` and the values of all its options. Raises BackendError if not ready."""
    if not isinstance(name, str):
        raise BackendError(f"backend: found {name!r}, expected a name; `list_backends()` has them")
    offer = registry().offers["rwkv_backends"].get(name)
    if offer is None:
        raise BackendError(why_not(name))
    row = _row(name, offer)
    if row.status != "ready":
        raise BackendError(_not_ready(row))
    return offer, resolve_options(offer.item, options)


def tensor_ops(name: str, options: Mapping[str, Any]) -> TensorOps:
    """Return the operations of backend `name`; its library is imported here.

    Raises BackendError if the backend is unknown, broken or lacks something on this machine, and
    OptionError for an option that it does not have.
    """
    offer, resolved = _ready(name, options)
    manager = registry().manager
    others = [plugin for plugin in manager.get_plugins() if plugin is not offer.plugin]
    caller = manager.subset_hook_caller("rwkv_tensor_ops", others)
    try:
        with redirect_stdout(sys.stderr):
            ops = caller(backend=name, options=resolved)
    except (KeyboardInterrupt, RWKVError):
        raise
    except ImportError as error:
        advice = f"try: {_line_for(error, offer)}{_others(name)}"
        raise BackendError(f"backend {name}: {one_line(error)}; {advice}") from error
    except BaseException as error:
        raise BackendError(
            f"backend {name} failed to start: {one_line(error)}{_others(name)}"
        ) from error
    if not isinstance(ops, TensorOps):
        raise BackendError(
            f"backend {name} of {offer.source.distribution} {offer.source.version} returned "
            f"{type(ops).__name__} from rwkv_tensor_ops, expected a TensorOps: report it there"
        )
    return ops


def _line_for(error: ImportError, offer: Offer) -> str:
    """Return the pip command that installs the module that could not be imported."""
    requires: tuple[str, ...] = offer.item.requires
    missing = normal((error.name or "").partition(".")[0])
    # The requirement may name a variant of the library, such as tensorflow-cpu.
    if any(normal(requirement).startswith(missing) for requirement in requires):
        return install_line(*requires)
    own = offer.source.distribution in own_extras().values()
    line = f'pip install --force-reinstall "{offer.source.distribution}"'
    return line + (from_checkout(offer.source.distribution) if own else "")


def _others(name: str) -> str:
    ready = [row.name for row in list_backends() if row.status == "ready" and row.name != name]
    return f" (other ready backends, for -b or backend=: {', '.join(ready)})" if ready else ""


def _not_ready(row: BackendInfo) -> str:
    return f"backend {row.name} of {row.distribution} {row.version} is {row.status}: {row.reason}"


def why_not(name: str) -> str:
    """Return the message for a backend `name` that is not installed, with advice."""
    rows = list_backends()
    for row in rows:
        if row.name == name:
            return _not_ready(row)
    ready = ", ".join(row.name for row in rows if row.status == "ready") or "none"
    extras = own_extras()
    if name in extras:
        advice = f"install it with: {install_extra(name)}"
    else:
        question = did_you_mean(name, [*extras, *(row.name for row in rows)])
        own = f"the project's own come with: {install_extra(RECOMMENDED)}"
        advice = f"{question} {own} (extras: {', '.join(extras)})".lstrip()
    return f"no backend {name!r} is installed (ready here: {ready}{plugin_limit()}); {advice}"


def offered(hook: str) -> dict[str, Any]:
    """Return what plugins offer through a hook, such as "rwkv_samplers", by name."""
    return {name: offer.item for name, offer in registry().offers[hook].items()}


def whose_code(error: BaseException) -> str:
    """Return the plugin whose code raised `error`, as the end of a message; "" if no plugin's."""
    packages = {source.package: source.origin for source in registry().sources}
    packages.pop("rwkv_core", None)
    found, trace = "", error.__traceback__
    while trace is not None:
        module = str(trace.tb_frame.f_globals.get("__name__", ""))
        # The innermost frame counts: a command of one plugin may run the backend of another.
        found = packages.get(module.partition(".")[0], found)
        trace = trace.tb_next
    return f" (in the plugin {printable(found)})" if found else ""
