"""Finds, checks and lists plugins. One broken plugin is a row in the list and hurts no other.

Two environment variables steer this: RWKV_PLUGINS names the entry points or distributions allowed
(comma-separated; empty: none), and RWKV_PLUGINS_STRICT=1 makes the first failure an exception.
"""

from __future__ import annotations

import difflib
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from functools import cache
from importlib import metadata
from typing import Any

import pluggy

from rwkv_core import hookspecs
from rwkv_core.backend import (
    Backend,
    BackendInfo,
    Status,
    check_backend,
    check_name,
    check_status,
    install_line,
    resolve_options,
)
from rwkv_core.errors import BackendError, RWKVError
from rwkv_core.install_advice import (
    RECOMMENDED,
    from_checkout,
    install_extra,
    install_recommended,
)
from rwkv_core.printable import one_line, printable
from rwkv_core.tensor_ops import CONTRACT, TensorOps

GROUP = "rwkv_core"
# The hooks whose results carry a name that must be unique among all plugins.
_NAMED_HOOKS = ("rwkv_backends", "rwkv_checkpoint_formats", "rwkv_samplers", "rwkv_commands")


@dataclass(frozen=True)
class _Offer:
    """A named thing that a plugin offers through one of the hooks."""

    item: Any
    plugin: object
    distribution: str
    version: str


@dataclass
class Registry:
    """All plugins of this environment after loading: what each hook offers, and what failed."""

    manager: pluggy.PluginManager
    offers: dict[str, dict[str, _Offer]] = field(
        default_factory=lambda: {hook: {} for hook in _NAMED_HOOKS}
    )
    failures: list[BackendInfo] = field(default_factory=list)


def own_extras() -> dict[str, str]:
    """Extra of rwkv-core -> distribution it pulls in, read from rwkv-core's own metadata."""
    found = {}
    for requirement in metadata.requires("rwkv-core") or []:
        match = re.match(r"(rwkv-[\w-]+).*extra *== *['\"]([\w-]+)['\"]", requirement)
        if match:
            found[match[2]] = match[1]
    return found


def _entry_points() -> list[metadata.EntryPoint]:
    """Each entry point once; the project's own distributions first, so that no name is theirs
    to lose, then by name."""
    own = set(own_extras().values())
    unique: dict[tuple[str, str], metadata.EntryPoint] = {}
    for ep in metadata.entry_points(group=GROUP):
        # The first on the path, as it is for imports.
        unique.setdefault((_origin(ep)[0], ep.name), ep)
    return [unique[key] for key in sorted(unique, key=lambda key: (key[0] not in own, key))]


def _origin(ep: metadata.EntryPoint) -> tuple[str, str]:
    """Name and version of its distribution; a damaged one has neither."""
    return (ep.dist.name or "", ep.dist.version or "") if ep.dist else ("", "")


def _normal(name: str) -> str:
    return re.sub("[-_.]+", "-", name.strip()).lower()


def _allowed(ep: metadata.EntryPoint) -> bool:
    names = os.environ.get("RWKV_PLUGINS")
    if names is None:
        return True
    allowed = {_normal(name) for name in names.split(",")} - {""}
    return _normal(ep.name) in allowed or _normal(_origin(ep)[0]) in allowed


def plugin_limit() -> str:
    """What RWKV_PLUGINS rules out, for a message; "" if it is not set."""
    names = os.environ.get("RWKV_PLUGINS")
    return "" if names is None else f"; RWKV_PLUGINS allows only: {printable(names) or 'none'}"


@cache
def registry() -> Registry:
    """The plugins of this environment, each loaded by itself, once per process."""
    manager = pluggy.PluginManager(GROUP)
    manager.add_hookspecs(hookspecs)
    found = Registry(manager)
    for ep in filter(_allowed, _entry_points()):
        try:
            # Here and below: what a plugin prints must not get among the program's output.
            with redirect_stdout(sys.stderr):
                _add_plugin(found, ep)
        except KeyboardInterrupt:
            raise
        # A plugin that calls sys.exit() on import must not end the program either.
        except BaseException as error:
            if os.environ.get("RWKV_PLUGINS_STRICT", "0") not in ("", "0"):
                raise
            _add_failure(found, ep, ep.name, one_line(error))
    return found


def _add_failure(
    found: Registry, ep: metadata.EntryPoint, name: str, reason: str, contract: int | None = None
) -> None:
    found.failures.append(BackendInfo(name, *_origin(ep), contract, "broken", "", "", reason))


def _add_plugin(found: Registry, ep: metadata.EntryPoint) -> None:
    plugin = ep.load()
    _check_hook_names(found.manager, plugin)
    distribution, version = _origin(ep)
    found.manager.register(plugin, name=f"{distribution}:{ep.name}")
    try:
        items = [
            (hook, item)
            for hook in _NAMED_HOOKS
            for function in _implementations(found.manager, hook, plugin)
            for item in function()
        ]
    except BaseException:
        found.manager.unregister(plugin)
        raise
    for hook, item in items:
        name, contract = ep.name, None
        try:
            if hook == "rwkv_backends" and not isinstance(item, Backend):
                what = type(item).__name__
                raise BackendError(f"rwkv_backends returned a {what}, expected rwkv_core.Backend")
            check_name(getattr(item, "name", None))
            name = item.name
            _check_item(found, hook, item)
            found.offers[hook][name] = _Offer(item, plugin, distribution, version)
        except RWKVError as problem:
            if isinstance(item, Backend) and isinstance(item.contract, int):
                contract = item.contract
            _add_failure(found, ep, name, one_line(problem), contract)


def _check_hook_names(manager: pluggy.PluginManager, plugin: object) -> None:
    known = [name for name in vars(hookspecs) if name.startswith("rwkv_")]
    marked = [name for name in dir(plugin) if manager.parse_hookimpl_opts(plugin, name) is not None]
    for name in marked:
        if name not in known:
            close = difflib.get_close_matches(name, known, 1)
            hint = f"did you mean {close[0]}?" if close else f"the hooks are {', '.join(known)}"
            raise BackendError(f"implements a hook that does not exist, {name}; {hint}")
    if not marked:
        raise BackendError("implements no hook; mark its functions with @rwkv_core.hookimpl")


def _implementations(
    manager: pluggy.PluginManager, hook: str, plugin: object
) -> Iterator[Callable[..., Any]]:
    for implementation in getattr(manager.hook, hook).get_hookimpls():
        if implementation.plugin is plugin:
            yield implementation.function


def _check_item(found: Registry, hook: str, item: Any) -> None:
    taken = found.offers[hook].get(item.name)
    if taken:
        what = hook.removeprefix("rwkv_").rstrip("s").replace("_", " ")
        raise BackendError(
            f"the {what} name {item.name!r} is taken by {taken.distribution} {taken.version}"
        )
    if hook != "rwkv_backends":
        return
    check_backend(item)
    if item.contract != CONTRACT:
        older = "rwkv-core" if item.contract > CONTRACT else "the backend"
        raise BackendError(
            f"built for contract {item.contract}, this is contract {CONTRACT}: upgrade {older}"
        )


def _row(name: str, offer: _Offer) -> BackendInfo:
    """A backend with its status, asked for now."""
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
    if word == "unavailable" and backend.requires:
        reason = f"{reason}; install it with: {install_line(*backend.requires)}".lstrip("; ")
    return BackendInfo(
        name, offer.distribution, offer.version, backend.contract, word, status.device,
        backend.summary, reason, status.score, backend.options, backend.quantized_bits,
    )  # fmt: skip


def list_backends() -> list[BackendInfo]:
    """Every backend installed here with its status, by name; broken plugins are rows too.

    Imports no tensor library.
    """
    offers = registry().offers["rwkv_backends"]
    rows = [*registry().failures, *(_row(name, offer) for name, offer in offers.items())]
    return sorted(rows, key=lambda row: (row.name, row.status != "ready", row.distribution))


def default_backend() -> str:
    """The ready backend with the highest score. Raises BackendError if there is none."""
    rows = list_backends()
    ready = [row for row in rows if row.status == "ready"]
    if ready:
        return max(ready, key=lambda row: (row.score, row.name)).name
    broken = "".join(f"\n{row.name}: {row.reason}" for row in rows)
    raise BackendError(f"no backend is ready here; {install_recommended()}{plugin_limit()}{broken}")


def tensor_ops(name: str, options: Mapping[str, Any]) -> TensorOps:
    """The operations of backend `name`; its library is imported here.

    Raises BackendError if the backend is unknown, broken or short of something, and OptionError
    for an option that it does not take.
    """
    if not isinstance(name, str):
        raise BackendError(f"backend: found {name!r}, expected a name; `list_backends()` has them")
    offer = registry().offers["rwkv_backends"].get(name)
    if offer is None:
        raise BackendError(why_not(name))
    row = _row(name, offer)
    if row.status != "ready":
        raise BackendError(_not_ready(row))
    resolved = resolve_options(offer.item, options)
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
            f"backend {name} of {offer.distribution} {offer.version} returned "
            f"{type(ops).__name__} from rwkv_tensor_ops, expected a TensorOps: report it there"
        )
    return ops


def _line_for(error: ImportError, offer: _Offer) -> str:
    """The pip command that brings what could not be imported."""
    requires: tuple[str, ...] = offer.item.requires
    missing = _normal((error.name or "").partition(".")[0])
    # A requirement may be a variant of the library, such as tensorflow-cpu.
    if any(_normal(requirement).startswith(missing) for requirement in requires):
        return install_line(*requires)
    own = offer.distribution in own_extras().values()
    line = f'pip install --force-reinstall "{offer.distribution}"'
    return line + (from_checkout(offer.distribution) if own else "")


def _others(name: str) -> str:
    ready = [row.name for row in list_backends() if row.status == "ready" and row.name != name]
    return f" (other ready backends, for -b or backend=: {', '.join(ready)})" if ready else ""


def _not_ready(row: BackendInfo) -> str:
    return f"backend {row.name} of {row.distribution} {row.version} is {row.status}: {row.reason}"


def why_not(name: str) -> str:
    """Why there is no backend `name` to be had here, and what to do about it."""
    rows = list_backends()
    for row in rows:
        if row.name == name:
            return _not_ready(row)
    ready = ", ".join(row.name for row in rows if row.status == "ready") or "none"
    extras = own_extras()
    if name in extras:
        advice = f"install it with: {install_extra(name)}"
    else:
        close = difflib.get_close_matches(name, [*extras, *(row.name for row in rows)], 1)
        advice = (
            f"{f'did you mean {close[0]}? ' if close else ''}the project's own come with: "
            f"{install_extra(RECOMMENDED)} (extras: {', '.join(extras)})"
        )
    return f"no backend {name!r} is installed (ready here: {ready}{plugin_limit()}); {advice}"


def offered(hook: str) -> dict[str, Any]:
    """What working plugins offer through a hook such as "rwkv_samplers": name -> thing."""
    return {name: offer.item for name, offer in registry().offers[hook].items()}
