"""The hooks that a plugin may implement: the complete interface between rwkv-core and plugins.

A plugin is a module (or object) that an entry point in the group `rwkv_core` names. Its hooks are
functions marked with `@rwkv_core.hookimpl`. A plugin implements only the hooks that it needs.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import pluggy

from rwkv_core.backends.descriptor import Backend

if TYPE_CHECKING:
    from rwkv_core.architectures.base import Architecture
    from rwkv_core.backends.tensor_ops import TensorOps
    from rwkv_core.checkpoint import CheckpointFormat
    from rwkv_core.plugins.command import Command
    from rwkv_core.plugins.sampler import Sampler

hookspec = pluggy.HookspecMarker("rwkv_core")
hookimpl = pluggy.HookimplMarker("rwkv_core")


@hookspec
def rwkv_backends() -> list[Backend]:  # type: ignore[empty-body]
    """Describe the backends of this plugin, without importing a tensor library."""


@hookspec(firstresult=True)
def rwkv_tensor_ops(backend: str, options: Mapping[str, Any]) -> TensorOps | None:
    """Return the operations of `backend`. Import the tensor library here.

    `options` holds every option of the descriptor, checked, with defaults filled in. Return None
    for a backend of another plugin.
    """


@hookspec
def rwkv_checkpoint_formats() -> list[CheckpointFormat]:  # type: ignore[empty-body]
    """Return the model file formats of this plugin, which are tried before the built-in formats."""


@hookspec
def rwkv_architectures() -> list[Architecture]:  # type: ignore[empty-body]
    """Return the RWKV versions of this plugin, which are tried before the built-in versions."""


@hookspec
def rwkv_samplers() -> list[Sampler]:  # type: ignore[empty-body]
    """Return samplers, which a user adds to the sampling chain with --sampler NAME:KEY=VALUE."""


@hookspec
def rwkv_commands() -> list[Command]:  # type: ignore[empty-body]
    """Return commands to add to the `rwkv-core` command line."""
