"""Results of models, to compare models with each other."""

from collections.abc import Sequence

import numpy as np

import rwkv_core


def results(model: rwkv_core.Model, tokens: Sequence[int]) -> list[np.ndarray]:
    """Logits and states of a prompt of two chunks, single tokens, all logits, and a batch."""
    found = [model.forward(tokens)]
    for token in tokens[:3]:
        found.append(model.forward([token], found[-1][1]))
    found.append(model.forward(tokens[:40], all_logits=True))
    found.append(model.forward([tokens[:9], tokens[9:18]]))
    return [model.to_numpy(array) for pair in found for array in pair]


def divergence_of_prose(exact: tuple[str, str], quantized: tuple[str, str]) -> float:
    """Mean KL divergence of `prose` on a backend in a dtype from it on another, in nats a token.

    It is measured on what the model itself expects, where its exponential is what the perplexity
    grows by.
    """
    rwkv = rwkv_core.RWKV("prose", backend=exact[0], dtype=exact[1])
    rwkv.load_context("The old man looked at the sea and")
    tokens = rwkv.generate(200, temperature=1.0, seed=1).tokens
    rows = []
    for model in (rwkv.model, rwkv_core.load("prose", quantized[0], dtype=quantized[1])):
        logits = model.to_numpy(model.forward(tokens, all_logits=True)[0]).astype(np.float64)
        rows.append(logits - np.log(np.exp(logits).sum(-1, keepdims=True)))
    return float((np.exp(rows[0]) * (rows[0] - rows[1])).sum(-1).mean())
