"""Plugins: their hooks, their discovery, and the selection of a backend."""

from rwkv_core.plugins.discovery import PluginInfo, own_extras, plugin_limit, registry
from rwkv_core.plugins.installed import GROUP
from rwkv_core.plugins.selection import (
    broken_plugins,
    check_backend,
    default_backend,
    list_backends,
    list_plugins,
    offered,
    start_backend,
    tensor_ops,
    whose_code,
    why_not,
)

__all__ = [
    "GROUP",
    "PluginInfo",
    "broken_plugins",
    "check_backend",
    "default_backend",
    "list_backends",
    "list_plugins",
    "offered",
    "own_extras",
    "plugin_limit",
    "registry",
    "start_backend",
    "tensor_ops",
    "whose_code",
    "why_not",
]
