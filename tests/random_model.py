"""A small RWKV-4 with random weights, none of them 0, so that no term vanishes."""

from __future__ import annotations

import numpy as np
from numpy.typing import DTypeLike


def random_weights(
    n_layer: int, n_embd: int, n_vocab: int, seed: int = 0, dtype: DTypeLike = np.float32
) -> dict[str, np.ndarray]:
    """A state dict in BlinkDL's names and shapes, whose logits have a deviation of about 3.

    Rounded to `dtype` (ml_dtypes.bfloat16 for bfloat16). The same arguments give the same weights.
    """
    rng = np.random.default_rng(seed)
    d, f = n_embd, 4 * n_embd

    def matrix(rows: int, columns: int, gain: float = 1.0) -> np.ndarray:
        return rng.normal(0.0, gain / np.sqrt(columns), (rows, columns))

    def norm(name: str) -> dict[str, np.ndarray]:
        weight, bias = rng.normal(1.0, 0.1, d), rng.normal(0.0, 0.1, d)
        return {f"{name}.weight": weight, f"{name}.bias": bias}

    def mix(name: str) -> dict[str, np.ndarray]:
        return {name: rng.uniform(0.1, 0.9, (1, 1, d))}

    weights = {"emb.weight": rng.normal(0.0, 1.0, (n_vocab, d)), **norm("blocks.0.ln0")}
    for block in (f"blocks.{i}" for i in range(n_layer)):
        weights |= norm(f"{block}.ln1") | norm(f"{block}.ln2")
        weights[f"{block}.att.time_decay"] = rng.permutation(np.linspace(-5.0, 3.0, d))
        weights[f"{block}.att.time_first"] = rng.normal(-1.0, 0.7, d)
        weights |= mix(f"{block}.att.time_mix_k") | mix(f"{block}.att.time_mix_v")
        weights |= mix(f"{block}.att.time_mix_r")
        for part in ("key", "value", "receptance", "output"):
            weights[f"{block}.att.{part}.weight"] = matrix(d, d)
        weights |= mix(f"{block}.ffn.time_mix_k") | mix(f"{block}.ffn.time_mix_r")
        weights[f"{block}.ffn.key.weight"] = matrix(f, d)
        weights[f"{block}.ffn.receptance.weight"] = matrix(d, d)
        weights[f"{block}.ffn.value.weight"] = matrix(d, f)
    weights |= norm("ln_out")
    weights["head.weight"] = matrix(n_vocab, d, gain=3.0)
    return {name: array.astype(dtype) for name, array in weights.items()}
