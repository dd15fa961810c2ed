"""The models that were published, by the size that they are called by."""

from __future__ import annotations

from rwkv_core.architectures.base import Config
from rwkv_core.architectures.rwkv4 import RWKV4

_PILE_VOCAB = 50277
# Layers and width of the RWKV-4 models that BlinkDL published, trained on the Pile.
_RWKV4_PILE = {
    "169M": (12, 768),
    "430M": (24, 1024),
    "1.5B": (24, 2048),
    "3B": (32, 2560),
    "7B": (32, 4096),
    "14B": (40, 5120),
}


def published_configs() -> dict[str, Config]:
    """Return the sizes of the RWKV-4 Pile models."""
    return {name: rwkv4_config(*size) for name, size in _RWKV4_PILE.items()}


def rwkv4_config(n_layer: int, n_embd: int) -> Config:
    """Return the sizes of an RWKV-4 with the Pile models' proportions and vocabulary."""
    return Config(n_layer, n_embd, 4 * n_embd, _PILE_VOCAB, RWKV4)
