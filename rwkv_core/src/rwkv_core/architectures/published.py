"""Sizes of the published models, by version and name, such as "rwkv7:0.1B"."""

from __future__ import annotations

from rwkv_core.architectures.base import Config
from rwkv_core.architectures.rwkv4 import RWKV4
from rwkv_core.architectures.rwkv5 import RWKV5_2
from rwkv_core.architectures.rwkv6 import RWKV6
from rwkv_core.architectures.rwkv7 import RWKV7

_PILE_VOCAB, _WORLD_VOCAB, _HEAD_SIZE = 50277, 65536, 64
# Layers and width of the models that BlinkDL published: RWKV-4 trained on the Pile, later ones on
# many languages ("World").
_RWKV4 = {
    "169M": (12, 768),
    "430M": (24, 1024),
    "1.5B": (24, 2048),
    "3B": (32, 2560),
    "7B": (32, 4096),
    "14B": (40, 5120),
}
_RWKV5 = {"0.4B": (24, 1024), "1.5B": (24, 2048), "3B": (32, 2560), "7B": (32, 4096)}
_RWKV6 = {"1.6B": (24, 2048), "3B": (32, 2560), "7B": (32, 4096), "14B": (61, 4096)}
_RWKV7 = {"0.1B": (12, 768), "0.4B": (24, 1024), "1.5B": (24, 2048), "2.9B": (32, 2560)}


def published_configs() -> dict[str, Config]:
    """Return the sizes of published models by name: "169M" for RWKV-4, "rwkv7:0.1B" for others."""
    named = {name: rwkv4_config(*size) for name, size in _RWKV4.items()}
    for version, sizes in (("rwkv5.2", _RWKV5), ("rwkv6", _RWKV6), ("rwkv7", _RWKV7)):
        named |= {f"{version}:{name}": CONFIGS[version](*size) for name, size in sizes.items()}
    return named


def rwkv4_config(n_layer: int, n_embd: int) -> Config:
    """Return the sizes of an RWKV-4 with the Pile models' proportions and vocabulary."""
    return Config(n_layer, n_embd, 4 * n_embd, _PILE_VOCAB, RWKV4)


def rwkv5_config(n_layer: int, n_embd: int) -> Config:
    """Return the sizes of an RWKV-5.2 with the World models' proportions and vocabulary."""
    return Config(n_layer, n_embd, _narrow_ffn(n_embd), _WORLD_VOCAB, RWKV5_2, _heads(n_embd))


def rwkv6_config(n_layer: int, n_embd: int) -> Config:
    """Return the sizes of an RWKV-6 with the World models' proportions and vocabulary."""
    rank = 32 if n_embd < 4096 else 64
    ranks = {"rank_maa_5": 5 * rank, "rank_maa": rank, "rank_decay": 2 * rank}
    more = _heads(n_embd) | ranks
    return Config(n_layer, n_embd, _narrow_ffn(n_embd), _WORLD_VOCAB, RWKV6, more)


def rwkv7_config(n_layer: int, n_embd: int) -> Config:
    """Return the sizes of an RWKV-7 with the World models' proportions and vocabulary."""
    root = n_embd**0.5
    ranks = {
        "rank_w": _rank(1.8 * root),
        "rank_a": _rank(1.8 * root),
        "rank_v": _rank(1.3 * root),
        # The two smallest published models have 128.
        "rank_g": 128 if n_embd <= 1024 else _rank(0.6 * n_embd**0.8),
    }
    more = _heads(n_embd) | ranks
    return Config(n_layer, n_embd, 4 * n_embd, _WORLD_VOCAB, RWKV7, more)


def _heads(n_embd: int) -> dict[str, int]:
    """Return the sizes of heads of 64 channels, or of one head if 64 does not divide the width."""
    size = n_embd if n_embd % _HEAD_SIZE else _HEAD_SIZE
    return {"n_head": n_embd // size, "head_size": size}


def _narrow_ffn(n_embd: int) -> int:
    return int(3.5 * n_embd) // 32 * 32


def _rank(about: float) -> int:
    return max(32, round(about / 32) * 32)


CONFIGS = {
    "rwkv4": rwkv4_config,
    "rwkv5.2": rwkv5_config,
    "rwkv6": rwkv6_config,
    "rwkv7": rwkv7_config,
}
"""By version: a function from the number of layers and the width to all sizes."""
