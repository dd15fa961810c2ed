"""The speed of a random model on a GPU, with its kernels' shares.

    python tests/gpu/speed.py SHAPE BACKEND [OPTION=VALUE ...]

SHAPE is one of `rwkv-core bench`'s, such as 7B. Every token and prompt is waited for.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch
from torch.profiler import ProfilerActivity, profile

from rwkv_core import load
from rwkv_core.bench.measure import parse_shape
from rwkv_core.evaluation.random_model import write_random_model
from rwkv_core.model import Model

_ROUNDS = 20
_SEQUENCES = 64
_PROMPTS = (1024, 4096)
_KERNELS = 12


def seconds(job: Callable[[], object], rounds: int) -> float:
    """The median time of `job`; two rounds before let libraries compile and record."""
    times = []
    for i in range(rounds + 2):
        began = time.perf_counter()
        job()
        torch.cuda.synchronize()
        if i >= 2:
            times.append(time.perf_counter() - began)
    return median(times)


def decoding(model: Model, n_sequences: int) -> Callable[[], None]:
    state = model.empty_state(n_sequences)

    def step() -> None:
        nonlocal state
        _, state = model.forward([[1]] * n_sequences, state)

    return step


def copy_rate() -> float:
    """Bytes a second read and written by a copy on the device."""
    source = torch.randn(2**29, device="cuda")
    target = torch.empty_like(source)
    return 2 * source.nbytes / seconds(lambda: target.copy_(source), 9)


def product_rate() -> float:
    """Operations a second of torch's product of large bfloat16 matrices."""
    size = 8192
    a, b = torch.randn(2, size, size, device="cuda", dtype=torch.bfloat16)
    return 2 * size**3 / seconds(lambda: a @ b, 9)


def print_kernels(what: str, job: Callable[[], object]) -> None:
    with profile(activities=[ProfilerActivity.CUDA]) as profiled:
        job()
        torch.cuda.synchronize()
    rows = sorted(profiled.key_averages(), key=lambda row: -row.device_time_total)
    print(f"\n{what}: kernel, launches, microseconds in all")
    for row in rows[:_KERNELS]:
        print(f"{row.key[:70]:70} {row.count:5} {row.device_time_total:9.0f}")


def main(shape: str, backend: str, *options: str) -> None:
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}: {shape} {backend} {options}")
    print(f"copy {copy_rate() / 1e12:.2f} TB/s, product {product_rate() / 1e12:.0f} TFLOP/s")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "random.safetensors"
        write_random_model(path, parse_shape(shape))
        model = load(path, backend, **dict(option.split("=", 1) for option in options))
    for n_sequences in (1, _SEQUENCES):
        taken = seconds(decoding(model, n_sequences), _ROUNDS)
        print(f"decode, {n_sequences} sequences: {1e3 * taken:.3f} ms, {n_sequences / taken:.0f}/s")
    for length in _PROMPTS:
        prompt = [i % model.n_vocab for i in range(length)]
        taken = seconds(lambda prompt=prompt: model.forward(prompt), 3)
        print(f"prompt of {length}: {length / taken:.0f} tokens/s")
    print_kernels("a token", decoding(model, 1))
    print_kernels("a prompt", lambda: model.forward(list(range(_PROMPTS[0]))))


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    main(*sys.argv[1:])
