"""Small RWKV-5, 6 and 7 with random weights, none of them 0, so that no term vanishes."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

VERSIONS = ("5.0", "5.1", "5.2", "6", "7")


class Sizes(NamedTuple):
    n_layer: int
    n_embd: int
    head_size: int
    n_ffn: int
    n_vocab: int
    ranks: tuple[int, int, int, int]


# Heads of 32 and 64, widths that are no power of two, inner widths that are no multiple of 64.
SIZES = (
    Sizes(2, 64, 32, 224, 50, (8, 12, 16, 20)),
    Sizes(3, 192, 64, 672, 101, (24, 16, 8, 40)),
    Sizes(2, 96, 32, 336, 257, (16, 8, 24, 12)),
)


def later_weights(version: str, sizes: Sizes, seed: int = 0) -> dict[str, np.ndarray]:
    """A float32 state dict in BlinkDL's names and shapes; logits have a deviation of about 3.

    RWKV-7's layer 0 has the v0, v1 and v2 that it does not use, as early files do.
    """
    rng = np.random.default_rng(seed)
    d = sizes.n_embd

    def matrix(rows: int, columns: int, gain: float = 1.0) -> np.ndarray:
        return rng.normal(0.0, gain / np.sqrt(columns), (rows, columns))

    def norm(name: str) -> dict[str, np.ndarray]:
        weight, bias = rng.normal(1.0, 0.1, d), rng.normal(0.0, 0.1, d)
        return {f"{name}.weight": weight, f"{name}.bias": bias}

    weights = {"emb.weight": rng.normal(0.0, 1.0, (sizes.n_vocab, d)), **norm("blocks.0.ln0")}
    for block in (f"blocks.{i}" for i in range(sizes.n_layer)):
        weights |= norm(f"{block}.ln1") | norm(f"{block}.ln2") | norm(f"{block}.att.ln_x")
        gates = ("gate",) if version in ("5.1", "5.2", "6") else ()
        for part in ("key", "value", "receptance", "output", *gates):
            weights[f"{block}.att.{part}.weight"] = matrix(d, d)
        more = {"6": _of_6, "7": _of_7}.get(version, _of_5)(rng, version, sizes)
        weights |= {f"{block}.{name}": array for name, array in more.items()}
        weights[f"{block}.ffn.key.weight"] = matrix(sizes.n_ffn, d)
        weights[f"{block}.ffn.value.weight"] = matrix(d, sizes.n_ffn)
        if version != "7":
            weights[f"{block}.ffn.receptance.weight"] = matrix(d, d)
    weights |= norm("ln_out")
    weights["head.weight"] = matrix(sizes.n_vocab, d, gain=3.0)
    return {name: array.astype(np.float32) for name, array in weights.items()}


def _shares(rng: np.random.Generator, prefix: str, names: str, d: int) -> dict[str, np.ndarray]:
    return {prefix + name: rng.uniform(0.1, 0.9, (1, 1, d)) for name in names}


def _pair(
    rng: np.random.Generator, name: str, d: int, rank: int, gain: float = 1.0
) -> dict[str, np.ndarray]:
    down = rng.normal(0.0, 1 / np.sqrt(d), (d, rank))
    up = rng.normal(0.0, gain / np.sqrt(rank), (rank, d))
    return {f"{name}1": down, f"{name}2": up}


def _of_5(rng: np.random.Generator, version: str, sizes: Sizes) -> dict[str, np.ndarray]:
    n_head = sizes.n_embd // sizes.head_size
    shape = (n_head, sizes.head_size) if version == "5.2" else (n_head,)
    return {
        **_shares(rng, "att.time_mix_", "kvr" if version == "5.0" else "kvrg", sizes.n_embd),
        **_shares(rng, "ffn.time_mix_", "kr", sizes.n_embd),
        "att.time_decay": rng.uniform(-5.0, 1.0, shape),
        "att.time_first" if version == "5.0" else "att.time_faaaa": rng.normal(0.0, 0.7, shape),
    }


def _of_6(rng: np.random.Generator, version: str, sizes: Sizes) -> dict[str, np.ndarray]:
    d, n = sizes.n_embd, sizes.head_size
    rank_maa, rank_decay = sizes.ranks[:2]
    return {
        **_shares(rng, "att.time_maa_", "xwkvrg", d),
        **_shares(rng, "ffn.time_maa_", "kr", d),
        "att.time_maa_w1": rng.normal(0.0, 1 / np.sqrt(d), (d, 5 * rank_maa)),
        "att.time_maa_w2": rng.normal(0.0, 0.3 / np.sqrt(rank_maa), (5, rank_maa, d)),
        "att.time_decay": rng.uniform(-5.0, 1.0, (1, 1, d)),
        **_pair(rng, "att.time_decay_w", d, rank_decay),
        "att.time_faaaa": rng.normal(0.0, 0.7, (d // n, n)),
    }


def _of_7(rng: np.random.Generator, version: str, sizes: Sizes) -> dict[str, np.ndarray]:
    d, n = sizes.n_embd, sizes.head_size
    weights = _shares(rng, "att.x_", "rwkvag", d) | _shares(rng, "ffn.x_", "k", d)
    for name, rank in zip("wavg", sizes.ranks, strict=True):
        weights |= _pair(rng, f"att.{name}", d, rank)
        if name != "g":
            weights[f"att.{name}0"] = rng.normal(-1.0, 1.0, (1, 1, d))
    return weights | {
        "att.k_k": rng.normal(0.7, 0.1, (1, 1, d)),
        "att.k_a": rng.normal(1.0, 0.1, (1, 1, d)),
        "att.r_k": rng.normal(0.0, 0.3, (d // n, n)),
    }
