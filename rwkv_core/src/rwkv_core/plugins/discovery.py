"""Loads the installed plugins. If one is broken, it is listed as such, and the others still work.

Two environment variables change which plugins are loaded, and what a failure does. RWKV_PLUGINS
lists the allowed entry points or distributions, separated by commas; if it is empty, no plugin is
loaded. RWKV_PLUGINS_STRICT=1 makes the first failure an exception.
"""

from __future__ import annotations

import os
import re
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, field
from functools import cache
from importlib import metadata
from typing import Any

import pluggy

from rwkv_core.backends.descriptor import (
    Backend,
    BackendInfo,
    check_backend,
    check_name,
    check_options,
)
from rwkv_core.backends.tensor_ops import CONTRACT
from rwkv_core.errors import BackendError, RWKVError
from rwkv_core.plugins import hookspecs
from rwkv_core.plugins.installed import GROUP, InstalledPlugin, installed_plugins, normal
from rwkv_core.util.printable import one_line, printable
from rwkv_core.util.spelling import did_you_mean

SLOW_SECONDS = 2.0
# Hooks whose results have a name that must be unique among all plugins.
NAMED_HOOKS = (
    "rwkv_backends",
    "rwkv_checkpoint_formats",
    "rwkv_architectures",
    "rwkv_samplers",
    "rwkv_commands",
)
# rwkv-core's own plugins. RWKV_PLUGINS does not exclude them.
_OWN = ("samplers", "rwkv_core.generation.samplers.plugin")


@dataclass(frozen=True)
class Offer:
    """A named object, such as a backend, that a plugin offers through a hook."""

    item: Any
    plugin: object
    source: InstalledPlugin


@dataclass
class PluginInfo:
    """One row of `list_plugins()`.

    Attributes:
        name: name of the entry point.
        offers: names of the plugin's objects, by kind: "backends", "checkpoint_formats",
            "architectures", "samplers" or "commands".
        problems: the plugin's errors; empty if there are none.
    """

    name: str
    distribution: str
    version: str
    offers: dict[str, list[str]] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)


@dataclass
class Registry:
    """All loaded plugins of this environment: their offers for each hook, and their failures."""

    manager: pluggy.PluginManager
    offers: dict[str, dict[str, Offer]] = field(
        default_factory=lambda: {hook: {} for hook in NAMED_HOOKS}
    )
    failures: list[BackendInfo] = field(default_factory=list)
    plugins: list[PluginInfo] = field(default_factory=list)
    sources: list[InstalledPlugin] = field(default_factory=list)


def own_extras() -> dict[str, str]:
    """Return the distribution that each extra of rwkv-core installs, from its metadata."""
    found = {}
    for requirement in metadata.requires("rwkv-core") or []:
        match = re.match(r"(rwkv-[\w-]+).*extra *== *['\"]([\w-]+)['\"]", requirement)
        if match:
            found[match[2]] = match[1]
    return found


def plugin_limit() -> str:
    """Return the limit that RWKV_PLUGINS sets, as text for a message; "" if it is not set."""
    names = os.environ.get("RWKV_PLUGINS")
    return "" if names is None else f"; RWKV_PLUGINS allows only: {printable(names) or 'none'}"


@cache
def registry() -> Registry:
    """Return the plugins of this environment, loaded one by one, once per process."""
    manager = pluggy.PluginManager(GROUP)
    manager.add_hookspecs(hookspecs)
    found = Registry(manager)
    for source in _sources():
        info = PluginInfo(source.name, source.distribution, source.version)
        found.plugins.append(info)
        found.sources.append(source)
        try:
            # A plugin's prints must not mix with the program's output, here and below.
            with redirect_stdout(sys.stderr), say_if_slow(f"plugin {source.name}", source):
                _add_plugin(found, source, info)
        except KeyboardInterrupt:
            raise
        # BaseException, since a plugin that calls sys.exit() must not end the program.
        except BaseException as error:
            if os.environ.get("RWKV_PLUGINS_STRICT", "0") not in ("", "0"):
                raise
            _add_failure(found, info, source.name, one_line(error))
    return found


def _sources() -> list[InstalledPlugin]:
    """Return the installed and allowed plugins, sorted by name.

    The project's own plugins come first, so that no other plugin can take their names.
    """
    own = set(own_extras().values())
    found = sorted(
        filter(_allowed, installed_plugins()),
        key=lambda source: (source.distribution not in own, source.distribution, source.name),
    )
    return [InstalledPlugin(*_OWN, "rwkv-core", metadata.version("rwkv-core")), *found]


def _allowed(source: InstalledPlugin) -> bool:
    names = os.environ.get("RWKV_PLUGINS")
    if names is None:
        return True
    allowed = {normal(name) for name in names.split(",")} - {""}
    return normal(source.name) in allowed or normal(source.distribution) in allowed


@contextmanager
def say_if_slow(what: str, source: InstalledPlugin) -> Iterator[None]:
    """Print a line on stderr if the block, which loads `what`, takes over SLOW_SECONDS."""
    line = f"rwkv-core: loading {printable(what)} of {printable(source.origin)} ..."
    timer = threading.Timer(SLOW_SECONDS, lambda: print(line, file=sys.stderr, flush=True))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _add_failure(
    found: Registry, info: PluginInfo, name: str, reason: str, contract: int | None = None
) -> None:
    info.problems.append(reason if name == info.name else f"{printable(name)}: {reason}")
    found.failures.append(
        BackendInfo(name, info.distribution, info.version, contract, "broken", "", "", reason)
    )


def _add_plugin(found: Registry, source: InstalledPlugin, info: PluginInfo) -> None:
    plugin = source.load()
    _check_hook_names(found.manager, plugin)
    found.manager.register(plugin, name=f"{source.distribution}:{source.name}")
    try:
        items = [
            (hook, item)
            for hook in NAMED_HOOKS
            for function in _implementations(found.manager, hook, plugin)
            for item in function()
        ]
    except BaseException:
        found.manager.unregister(plugin)
        raise
    for hook, item in items:
        name, contract = source.name, None
        try:
            if hook == "rwkv_backends" and not isinstance(item, Backend):
                what = type(item).__name__
                raise BackendError(f"rwkv_backends returned a {what}, expected rwkv_core.Backend")
            check_name(getattr(item, "name", None))
            name = item.name
            _check_item(found, hook, item)
            found.offers[hook][name] = Offer(item, plugin, source)
            info.offers.setdefault(hook.removeprefix("rwkv_"), []).append(name)
        except RWKVError as problem:
            if isinstance(item, Backend) and isinstance(item.contract, int):
                contract = item.contract
            _add_failure(found, info, name, one_line(problem), contract)


def _check_hook_names(manager: pluggy.PluginManager, plugin: object) -> None:
    known = [name for name in vars(hookspecs) if name.startswith("rwkv_")]
    marked = [name for name in dir(plugin) if manager.parse_hookimpl_opts(plugin, name) is not None]
    for name in marked:
        if name not in known:
            hint = did_you_mean(name, known) or f"the hooks are {', '.join(known)}"
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
        raise BackendError(f"the {what} name {item.name!r} is taken by {taken.source.origin}")
    if hook == "rwkv_checkpoint_formats":
        _check_has(hook, item, "CheckpointFormat", "matches", "open")
    elif hook == "rwkv_architectures":
        _check_has(hook, item, "Architecture", "recognizes", "blocks", "empty_state")
    elif hook == "rwkv_samplers":
        _check_has(hook, item, "Sampler", "start")
        check_options(item.options)
    elif hook == "rwkv_backends":
        check_backend(item)
        if item.contract != CONTRACT:
            older = "rwkv-core" if item.contract > CONTRACT else "the backend"
            raise BackendError(
                f"built for contract {item.contract}, this is contract {CONTRACT}: upgrade {older}"
            )


def _check_has(hook: str, item: Any, expected: str, *functions: str) -> None:
    # The type's name is compared, since importing the type would import NumPy.
    if type(item).__name__ != expected:
        raise BackendError(f"{hook} returned a {type(item).__name__}, expected a {expected}")
    for name in functions:
        if not callable(getattr(item, name)):
            raise BackendError(f"{name}: found {getattr(item, name)!r}, expected a function")
