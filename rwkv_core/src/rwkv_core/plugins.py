"""Finds, checks and lists plugins. One broken plugin is a row in the list and hurts no other.

Two environment variables steer this: RWKV_PLUGINS names the entry points or distributions allowed
(comma-separated; empty: none), and RWKV_PLUGINS_STRICT=1 makes the first failure an exception.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib import metadata
from typing import Any

import pluggy

from rwkv_core import hookspecs
from rwkv_core.backend import Backend, Option, Status, resolve_options
from rwkv_core.errors import BackendError, RWKVError
from rwkv_core.tensor_ops import CONTRACT, TensorOps

GROUP = "rwkv_core"
# The hooks whose results carry a name that must be unique among all plugins.
_NAMED_HOOKS = ("rwkv_backends", "rwkv_checkpoint_formats", "rwkv_samplers", "rwkv_commands")


@dataclass(frozen=True)
class BackendInfo:
    """One row of `list_backends()`: a backend, or a plugin too broken to say which it offers.

    `status` is "ready", "unavailable" (`reason` says what to install) or "broken" (`reason` says
    how). `contract` is None where it could not be found out.
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
    unique = {
        (ep.dist.name if ep.dist else "", ep.name): ep for ep in metadata.entry_points(group=GROUP)
    }
    return [unique[key] for key in sorted(unique, key=lambda key: (key[0] not in own, key))]


def _allowed(ep: metadata.EntryPoint) -> bool:
    names = os.environ.get("RWKV_PLUGINS")
    if names is None:
        return True
    allowed = {name.strip() for name in names.split(",")}
    return ep.name in allowed or (ep.dist is not None and ep.dist.name in allowed)


@cache
def registry() -> Registry:
    """The plugins of this environment, each loaded by itself, once per process."""
    manager = pluggy.PluginManager(GROUP)
    manager.add_hookspecs(hookspecs)
    found = Registry(manager)
    for ep in filter(_allowed, _entry_points()):
        try:
            _add_plugin(found, ep)
        # A plugin that calls sys.exit() on import must not end the program either.
        except (Exception, SystemExit) as error:
            if os.environ.get("RWKV_PLUGINS_STRICT", "0") not in ("", "0"):
                raise
            _add_failure(found, ep, ep.name, _one_line(error))
    return found


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return text if isinstance(error, BackendError) else f"{type(error).__name__}: {text}"


def _add_failure(
    found: Registry, ep: metadata.EntryPoint, name: str, reason: str, contract: int | None = None
) -> None:
    distribution, version = (ep.dist.name, ep.dist.version) if ep.dist else ("", "")
    found.failures.append(
        BackendInfo(name, distribution, version, contract, "broken", "", "", reason)
    )


def _add_plugin(found: Registry, ep: metadata.EntryPoint) -> None:
    plugin = ep.load()
    _check_hook_names(found.manager, plugin)
    distribution, version = (ep.dist.name, ep.dist.version) if ep.dist else ("", "")
    found.manager.register(plugin, name=f"{distribution}:{ep.name}")
    try:
        items = [
            (hook, item)
            for hook in _NAMED_HOOKS
            for function in _implementations(found.manager, hook, plugin)
            for item in function()
        ]
        names = [(hook, item.name) for hook, item in items]
    except BaseException:
        found.manager.unregister(plugin)
        raise
    for (hook, item), (_, name) in zip(items, names, strict=True):
        problem = _problem(found, hook, item)
        if problem:
            _add_failure(found, ep, name, problem, getattr(item, "contract", None))
        else:
            found.offers[hook][name] = _Offer(item, plugin, distribution, version)


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


def _problem(found: Registry, hook: str, item: Any) -> str:
    taken = found.offers[hook].get(item.name)
    if taken:
        what = hook.removeprefix("rwkv_").rstrip("s").replace("_", " ")
        return f"the {what} name {item.name!r} is taken by {taken.distribution} {taken.version}"
    if hook != "rwkv_backends":
        return ""
    if not isinstance(item, Backend):
        return f"rwkv_backends returned a {type(item).__name__}, expected rwkv_core.Backend"
    if item.contract != CONTRACT:
        older = "rwkv-core" if item.contract > CONTRACT else "the backend"
        return f"built for contract {item.contract}, this is contract {CONTRACT}: upgrade {older}"
    return ""


def _status(backend: Backend) -> tuple[Status, str]:
    try:
        status = backend.status()
        return status, "ready" if status.available else "unavailable"
    except Exception as error:
        return Status(False, "", f"its status check failed: {_one_line(error)}"), "broken"


def list_backends() -> list[BackendInfo]:
    """Every backend installed here with its status, by name; broken plugins are rows too.

    Imports no tensor library.
    """
    rows = list(registry().failures)
    for name, offer in registry().offers["rwkv_backends"].items():
        backend: Backend = offer.item
        status, word = _status(backend)
        reason = status.reason
        if word == "unavailable" and backend.requires:
            reason = f"{reason}; install it with: {install_line(*backend.requires)}".lstrip("; ")
        rows.append(
            BackendInfo(name, offer.distribution, offer.version, backend.contract, word,
                        status.device, backend.summary, reason, status.score, backend.options)
        )  # fmt: skip
    return sorted(rows, key=lambda row: (row.name, row.status != "ready", row.distribution))


def install_line(*requirements: str) -> str:
    """The pip command that installs `requirements`."""
    return "pip install " + " ".join(f'"{requirement}"' for requirement in requirements)


def default_backend() -> str:
    """The ready backend with the highest score. Raises BackendError if there is none."""
    rows = list_backends()
    ready = [row for row in rows if row.status == "ready"]
    if ready:
        return max(ready, key=lambda row: (row.score, row.name)).name
    broken = "".join(f"\n{row.name}: {row.reason}" for row in rows)
    lines = " or ".join(install_line(f"rwkv-core[{extra}]") for extra in own_extras())
    raise BackendError(f"no backend is ready here. Install one: {lines}{broken}")


def tensor_ops(name: str, options: Mapping[str, Any]) -> TensorOps:
    """The operations of backend `name`; its library is imported here.

    Raises BackendError if the backend is unknown, broken or short of something, and OptionError
    for an option that it does not take.
    """
    offer = registry().offers["rwkv_backends"].get(name)
    rows = {row.name: row for row in list_backends() if row.status != "ready"}
    if offer is None or (name in rows and rows[name].distribution == offer.distribution):
        raise BackendError(_why_not(name))
    resolved = resolve_options(offer.item, options)
    manager = registry().manager
    others = [plugin for plugin in manager.get_plugins() if plugin is not offer.plugin]
    caller = manager.subset_hook_caller("rwkv_tensor_ops", others)
    try:
        ops = caller(backend=name, options=resolved)
    except ImportError as error:
        line = install_line(*offer.item.requires) if offer.item.requires else "reinstall it"
        raise BackendError(f"backend {name}: {_one_line(error)}; try: {line}") from error
    except RWKVError:
        raise
    except Exception as error:
        raise BackendError(f"backend {name} failed to start: {_one_line(error)}") from error
    if not isinstance(ops, TensorOps):
        raise BackendError(
            f"backend {name} of {offer.distribution} {offer.version} returned "
            f"{type(ops).__name__} from rwkv_tensor_ops, expected a TensorOps: report it there"
        )
    return ops


def _why_not(name: str) -> str:
    rows = list_backends()
    for row in rows:
        if row.name == name and row.status != "ready":
            from_ = f"{row.distribution} {row.version}"
            return f"backend {name} of {from_} is {row.status}: {row.reason}"
    ready = ", ".join(row.name for row in rows if row.status == "ready") or "none"
    extras = own_extras()
    if name in extras:
        advice = f"install it with: {install_line(f'rwkv-core[{name}]')}"
    else:
        close = difflib.get_close_matches(name, [*extras, *(row.name for row in rows)], 1)
        advice = f"did you mean {close[0]}?" if close else (
            f"the project's own come with: {install_line(f'rwkv-core[{next(iter(extras))}]')}"
            f" (extras: {', '.join(extras)})"
        )  # fmt: skip
    return f"no backend {name!r} is installed (ready here: {ready}); {advice}"


def offered(hook: str) -> dict[str, Any]:
    """What working plugins offer through a hook such as "rwkv_samplers": name -> thing."""
    return {name: offer.item for name, offer in registry().offers[hook].items()}
