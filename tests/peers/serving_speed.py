"""The serving engine against the bare model: clients, long prompts beside running texts, the cache.

    python tests/peers/serving_speed.py [--shape 169M] [-b numba] [-o dtype=bfloat16] [--only cache]

The model has random weights. Figures are medians over the rounds, in which all take turns.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from statistics import median
from threading import Thread

import rwkv_core
from rwkv_core import Model
from rwkv_core.bench.measure import parse_shape
from rwkv_core.evaluation.random_model import write_random_model
from rwkv_core.serving import Engine, Handle
from rwkv_core.tokenizer import Tokenizer

N_TOKENS, CLIENTS, MAX_CLIENTS = 32, 16, 64
# Tokens of a long prompt, and of a system prompt.
LONG, SYSTEM = 4000, 1000


class NumberTokenizer(Tokenizer):
    """Token i stands for " i"."""

    def __init__(self, n_vocab: int) -> None:
        super().__init__({i: f" {i}".encode() for i in range(n_vocab)}, "numbers")

    def encode(self, text: str) -> list[int]:
        return [int(word) for word in text.split()]

    def encode_bytes(self, data: bytes) -> list[int]:
        return self.encode(data.decode())


def bare_rate(model: Model, n_rows: int) -> float:
    """Tokens a second of steps of the batch alone."""
    column = [[i + 1] for i in range(n_rows)]
    state = model.empty_state(n_rows)
    begin = time.perf_counter()
    for _ in range(N_TOKENS):
        logits, state = model.forward(column, state)
    model.to_numpy(logits)
    return n_rows * N_TOKENS / (time.perf_counter() - begin)


def engine_rate(engine: Engine, n_clients: int, **sampling: float) -> float:
    """Tokens a second that so many clients get together, prompts of a token included."""
    begin = time.perf_counter()
    handles = [
        engine.submit([i + 1], N_TOKENS, seed=i, ignore_eos=True, **sampling)
        for i in range(n_clients)
    ]
    for handle in handles:
        assert handle.result.usage.completion_tokens == N_TOKENS
    return n_clients * N_TOKENS / (time.perf_counter() - begin)


def clients(model: Model, engine: Engine) -> dict[str, float]:
    """Tokens a second of the bare model and of the engine, for one and for many."""
    one, many = bare_rate(model, 1), bare_rate(model, CLIENTS)
    ours = engine_rate(engine, CLIENTS)
    return {
        "bare model, 1 row, tokens/s": one,
        "bare model, 16 rows / 1 row": many / one,
        "engine, 1 client / bare": engine_rate(engine, 1) / one,
        "engine, 4 clients / bare 1 row": engine_rate(engine, 4) / one,
        "engine, 16 clients / bare 1 row": ours / one,
        "engine, 64 clients / bare 1 row": engine_rate(engine, MAX_CLIENTS) / one,
        "engine, 16 clients / bare 16 rows": ours / many,
        "the same, greedy": engine_rate(engine, CLIENTS, temperature=0.0) / many,
        "the same, top_p 0.9": engine_rate(engine, CLIENTS, top_p=0.9) / many,
    }


def read_rate(engine: Engine, first: int) -> float:
    """Tokens a second at which a long prompt is read."""
    found = engine.submit(prompt(first, LONG), 1).result
    assert found.usage.cached_tokens < LONG / 100
    return LONG / (found.times.total - found.times.queued)


def beside_a_long_prompt(engine: Engine, first: int, n_running: int) -> dict[str, float]:
    """The gaps of a running text, and the rate of the prompt that is read meanwhile."""
    alone = read_rate(engine, first + 500)
    running = [
        engine.submit([i + 1], 10**6, seed=i, ignore_eos=True, temperature=0.0)
        for i in range(n_running)
    ]
    times: list[float] = []
    watcher = Thread(target=watch, args=[running[0], times])
    watcher.start()
    while len(times) < 40:
        time.sleep(0.01)
    begin = time.perf_counter()
    rate = read_rate(engine, first)
    end = time.perf_counter()
    for handle in running:
        handle.cancel()
    watcher.join()
    usual = [b - a for a, b in pairwise(times) if b < begin][10:]
    meanwhile = sorted(b - a for a, b in pairwise(times) if begin <= a and b <= end)
    name = f"with {n_running} running"
    return {
        f"{name}, usual gap, ms": 1e3 * median(usual),
        f"{name}, gap beside a prompt / usual": median(meanwhile) / median(usual),
        f"{name}, 99% of the gaps / usual": meanwhile[len(meanwhile) * 99 // 100] / median(usual),
        f"{name}, prompt's rate / alone": rate / alone,
    }


def watch(handle: Handle, times: list[float]) -> None:
    for _ in handle:
        times.append(time.perf_counter())


def prompt(first: int, length: int) -> list[int]:
    return [1 + (first * 7919 + i * 31) % 40_000 for i in range(length)]


def first_tokens(engine: Engine, first: int) -> dict[str, float]:
    """Seconds to the first token with a system prompt, new and known."""
    system = prompt(first, SYSTEM)
    seconds = []
    for tail in (1, 2):
        found = engine.submit([*system, tail], 1, marks=[SYSTEM]).result
        seconds.append(found.times.first_token)
    return {
        "first token, s": seconds[0],
        "first token of a known prompt / new": seconds[1] / seconds[0],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", default="169M")
    parser.add_argument("-b", "--backend", default="numba")
    parser.add_argument("-o", "--option", action="append", default=[])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", default="", help="clients, cache or prompt")
    args = parser.parse_args()
    options = dict(option.split("=") for option in args.option)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "random.safetensors"
        write_random_model(path, parse_shape(args.shape))
        model = rwkv_core.load(path, args.backend, **options)
    tokenizer = NumberTokenizer(model.n_vocab)
    found: dict[str, list[float]] = {}
    with Engine(model, tokenizer, max_batch=MAX_CLIENTS) as engine:
        measured: dict[str, Callable[[int], dict[str, float]]] = {
            "clients": lambda i: clients(model, engine),
            "cache": lambda i: first_tokens(engine, i),
            "prompt": lambda i: beside_a_long_prompt(engine, i, 1),
            "prompt, busy": lambda i: beside_a_long_prompt(engine, i, CLIENTS - 1),
        }
        chosen = {name: measure for name, measure in measured.items() if args.only in name}
        for i in range(args.rounds + 1):
            for k, measure in enumerate(chosen.values()):
                for name, value in measure(1000 * k + i).items():
                    # The first round warms up.
                    found.setdefault(name, []).extend([value] if i else [])
    print(f"{args.shape} {model.backend} {model.ops.dtype}")
    for name, values in found.items():
        print(f"{name:50} {median(values):10.3g}   ({', '.join(f'{x:.3g}' for x in values)})")


if __name__ == "__main__":
    main()
