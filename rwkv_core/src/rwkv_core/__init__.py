"""RWKV language models, versions 4 to 7, from Python, on whichever tensor library is installed.

    import rwkv_core

    rwkv = rwkv_core.RWKV("prose")
    rwkv.load_context("It was a dark and stormy night")
    print(rwkv.generate(50, seed=1).text)

Names are imported when first used, so that `import rwkv_core` costs next to nothing.
"""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rwkv_core.backends.descriptor import Backend, BackendInfo, Option, Status
    from rwkv_core.backends.tensor_ops import CONTRACT, TensorOps
    from rwkv_core.checkpoint.lora import Lora
    from rwkv_core.errors import (
        BackendError,
        BackendWarning,
        CheckpointError,
        DownloadError,
        EngineClosedError,
        OptionError,
        PromptTooLongError,
        QueueFullError,
        RWKVError,
        StateError,
        TokenizerError,
    )
    from rwkv_core.generation.sampling_parameters import Sampling
    from rwkv_core.generation.stream import Generated, GenerationStream, Progress
    from rwkv_core.loading import load
    from rwkv_core.model import Model
    from rwkv_core.model_file import prequantize
    from rwkv_core.plugins import list_backends, list_plugins
    from rwkv_core.plugins.hookspecs import hookimpl
    from rwkv_core.plugins.sampler import Sampler
    from rwkv_core.rwkv import RWKV
    from rwkv_core.state import State
    from rwkv_core.tokenizer import Tokenizer

_HOME = {
    "backends.descriptor": ("Backend", "BackendInfo", "Option", "Status"),
    "errors": (
        "BackendError",
        "BackendWarning",
        "CheckpointError",
        "DownloadError",
        "EngineClosedError",
        "OptionError",
        "PromptTooLongError",
        "QueueFullError",
        "RWKVError",
        "StateError",
        "TokenizerError",
    ),
    "generation.stream": ("Generated", "GenerationStream", "Progress"),
    "plugins.hookspecs": ("hookimpl",),
    "checkpoint.lora": ("Lora",),
    "loading": ("load",),
    "model": ("Model",),
    "model_file": ("prequantize",),
    "plugins": ("list_backends", "list_plugins"),
    "rwkv": ("RWKV",),
    "plugins.sampler": ("Sampler",),
    "generation.sampling_parameters": ("Sampling",),
    "state": ("State",),
    "backends.tensor_ops": ("CONTRACT", "TensorOps"),
    "tokenizer": ("Tokenizer",),
}
_MODULE_OF = {name: module for module, names in _HOME.items() for name in names}

__all__ = [
    "CONTRACT",
    "RWKV",
    "Backend",
    "BackendError",
    "BackendInfo",
    "BackendWarning",
    "CheckpointError",
    "DownloadError",
    "EngineClosedError",
    "Generated",
    "GenerationStream",
    "Lora",
    "Model",
    "Option",
    "OptionError",
    "Progress",
    "PromptTooLongError",
    "QueueFullError",
    "RWKVError",
    "Sampler",
    "Sampling",
    "State",
    "StateError",
    "Status",
    "TensorOps",
    "Tokenizer",
    "TokenizerError",
    "__version__",
    "hookimpl",
    "list_backends",
    "list_plugins",
    "load",
    "prequantize",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return version("rwkv-core")
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'rwkv_core' has no attribute {name!r}")
    return getattr(import_module(f"rwkv_core.{_MODULE_OF[name]}"), name)


def __dir__() -> list[str]:
    return __all__
