"""The hooks that a plugin may implement: the whole surface between rwkv-core and a plugin.

A plugin is a module (or object) named by an entry point in the group `rwkv_core`, whose functions
are marked with `@rwkv_core.hookimpl`. It implements the hooks it needs and no others.
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
    """Describe the backends this plugin offers; import no tensor library here."""


@hookspec(firstresult=True)
def rwkv_tensor_ops(backend: str, options: Mapping[str, Any]) -> TensorOps | None:
    """Build the operations of `backend`, one of this plugin's; here its library is imported.

    `options` holds every option of the descriptor, checked and with defaults filled in.
    Return None for a backend that is not this plugin's.
    """


@hookspec
def rwkv_checkpoint_formats() -> list[CheckpointFormat]:  # type: ignore[empty-body]
    """Kinds of model files that this plugin reads; they are asked before the built-in kinds."""


@hookspec
def rwkv_architectures() -> list[Architecture]:  # type: ignore[empty-body]
    """RWKV versions that this plugin adds; a file's tensors are shown to them first."""


@hookspec
def rwkv_samplers() -> list[Sampler]:  # type: ignore[empty-body]
    """Describe named steps that a user may add to the sampling chain: --sampler NAME:KEY=VALUE."""


@hookspec
def rwkv_commands() -> list[Command]:  # type: ignore[empty-body]
    """Commands to add to the `rwkv-core` command line."""
