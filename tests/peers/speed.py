"""Decoding and prefill in float32, ours and the peers' in turn, as a table in Markdown.

    PYTHONPATH=tests python tests/peers/speed.py [--shape small|169M] [--backend NAME ...]

The weights are random. Rounds alternate between the models, so that a busy moment of the machine
hits all of them; what is printed is the median over the rounds.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import numpy as np

import rwkv_core
from float32_backends import FLOAT32
from peers import Rwkv, Transformers
from pth_writer import write_pth
from random_model import random_weights

# Layers, width, vocabulary.
SHAPES = {"small": (6, 512, 8192), "169M": (12, 768, 50277)}
N_PREFILL = 256
Forward = Callable[[list[int], Any], tuple[Any, Any]]


class Rates(NamedTuple):
    """Tokens per second."""

    decode: float
    prefill: float


def main() -> None:
    arguments = parse_arguments()
    # The `rwkv` package at its fastest.
    os.environ.setdefault("RWKV_JIT_ON", "1")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.pth"
        models = load(path, SHAPES[arguments.shape], arguments.backend)
        rates: dict[str, list[Rates]] = {name: [] for name in models}
        for forward in models.values():
            measure(forward, n_decode=2)  # warms up
        for _ in range(arguments.rounds):
            for name, forward in models.items():
                rates[name].append(measure(forward, arguments.tokens))
    print_table(arguments.shape, rates)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", choices=SHAPES, default="small")
    parser.add_argument("--backend", nargs="+", choices=FLOAT32, default=FLOAT32)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=32, help="decoded in a round")
    return parser.parse_args()


def load(path: Path, shape: tuple[int, int, int], backends: list[str]) -> dict[str, Forward]:
    """Every model's forward by name, over the same weights."""
    weights = random_weights(*shape)
    write_pth(path, weights)
    models: dict[str, Forward] = {
        f"rwkv-core, {name}": rwkv_core.load(path, name, dtype="float32").forward
        for name in backends
    }
    models["transformers"] = Transformers(weights).forward
    models["rwkv"] = Rwkv(path).forward
    return models


def measure(forward: Forward, n_decode: int) -> Rates:
    """Read a prompt of 256 from nothing, then go on one token at a time."""
    prompt = np.random.default_rng(0).integers(0, 8192, N_PREFILL).tolist()
    start = time.perf_counter()
    logits, state = forward(prompt, None)
    np.asarray(logits)
    read = time.perf_counter()
    for token in prompt[:n_decode]:
        logits, state = forward([token], state)
        # What was computed has to arrive before the clock is looked at.
        np.asarray(logits)
    return Rates(n_decode / (time.perf_counter() - read), N_PREFILL / (read - start))


def print_table(shape: str, rates: dict[str, list[Rates]]) -> None:
    medians = {
        name: Rates(median(r.decode for r in rows), median(r.prefill for r in rows))
        for name, rows in rates.items()
    }
    ours = [name for name in medians if name.startswith("rwkv-core")]
    best = Rates(
        max(medians[name].decode for name in ours), max(medians[name].prefill for name in ours)
    )
    layers, width, vocabulary = SHAPES[shape]
    print(f"\n{layers} layers of {width}, vocabulary of {vocabulary}, float32; tokens/s\n")
    print(f"| | decode | prefill of {N_PREFILL} | best of rwkv-core / this: decode | prefill |")
    print("| --- | ---: | ---: | ---: | ---: |")
    for name, rate in medians.items():
        ratios = f"{best.decode / rate.decode:.2f} | {best.prefill / rate.prefill:.2f}"
        print(f"| {name} | {rate.decode:.1f} | {rate.prefill:.0f} | {ratios} |")


if __name__ == "__main__":
    main()
