"""Runs many requests on one model: continuous batching and a prefix cache, without HTTP."""

from rwkv_core.serving.constraint import Constraint
from rwkv_core.serving.engine import Engine
from rwkv_core.serving.handle import Handle
from rwkv_core.serving.results import Completion, Piece, Times, TokenLogprob, Usage
from rwkv_core.serving.stats import Stats

__all__ = [
    "Completion",
    "Constraint",
    "Engine",
    "Handle",
    "Piece",
    "Stats",
    "Times",
    "TokenLogprob",
    "Usage",
]
