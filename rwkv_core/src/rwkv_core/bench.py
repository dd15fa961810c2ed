"""How fast a model runs, as a share of what the backend's own matrix product can do here.

Decoding is bound by reading the weights once a token, reading a prompt by the matrix products. So
each is timed in turn with the bare product: on large matrices as big as the model together, which
are therefore not in a cache, and on matrices of the model's own shapes with as many rows as the
prompt has tokens. Both go through `TensorOps` alone, so every backend has its own yardstick.
"""

from __future__ import annotations

import math
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from rwkv_core import memory
from rwkv_core.checkpoint import Shape, diagnose
from rwkv_core.errors import OptionError
from rwkv_core.model import Model, load
from rwkv_core.model_file import open_model
from rwkv_core.random_weights import random_values
from rwkv_core.tensor_ops import Array, Matrix, TensorOps

_STREAM_WIDTH = 2048
# Distinct blocks in the prefill yardstick: more than a cache holds, for all but tiny models.
_MOST_BLOCKS = 4


@dataclass(frozen=True)
class Decode:
    """Decoding one sequence. Rates are medians; a byte or share is None for an unknown dtype.

    Attributes:
        bytes_per_token: matrices and vectors, each read once a token.
        bytes_per_second: that many, times the tokens a second.
        stream_bytes_per_second: the bare matrix-vector product's.
        share: the one of the other.
    """

    tokens_per_second: float
    bytes_per_token: int | None
    bytes_per_second: float | None
    stream_bytes_per_second: float | None
    share: float | None


@dataclass(frozen=True)
class Prefill:
    """Reading a prompt of `tokens` tokens. Rates are medians.

    Attributes:
        flops_per_second: of the matrix products, a multiplication and an addition being two.
        gemm_flops_per_second: the bare matrix products'.
        share: the one of the other.
    """

    tokens: int
    tokens_per_second: float
    flops_per_second: float
    gemm_flops_per_second: float
    share: float


@dataclass(frozen=True)
class Report:
    """What a bench found. `peak_memory` is the process's after loading, in bytes, if known."""

    model: str
    backend: str
    device: str
    dtype: str
    parameters: int
    load_seconds: float
    peak_memory: int | None
    decode: Decode
    prefill: tuple[Prefill, ...]


def parse_shape(text: str) -> Shape:
    """The shape that "430M", one of the published sizes, or "24x1024" (layers x width) names.

    Raises OptionError.
    """
    known = memory.known_shapes()
    if text in known:
        return known[text]
    layers, _, width = text.partition("x")
    if not (layers.isdecimal() and width.isdecimal() and int(layers) and int(width)):
        raise OptionError(f"shape: found {text!r}, expected {', '.join(known)}, or such as 24x1024")
    return Shape(int(layers), int(width), 4 * int(width), next(iter(known.values())).n_vocab)


def bench(
    model: str,
    backend: str | None,
    options: dict[str, Any],
    lengths: Sequence[int] = (256,),
    rounds: int = 9,
    name: str | None = None,
    on_progress: Callable[[str], object] = lambda stage: None,
) -> Report:
    """Load a model file and time it.

    Arguments:
        lengths: of the prompts.
        rounds: how often a measurement and its yardstick take turns.
        name: what the report calls the model, by default as `model` does.
        on_progress: called with a word for what is being done.

    Raises what `load` raises, and OptionError for a number below 1.
    """
    if min([rounds, *lengths]) < 1:
        raise OptionError("bench: prompt lengths and rounds are at least 1")
    shape = _shape_of(model)
    on_progress("loading")
    began = time.perf_counter()
    loaded = load(model, backend, **options)
    load_seconds = time.perf_counter() - began
    peak = _peak_memory()
    on_progress("decoding")
    decode = bench_decode(loaded, shape, rounds)
    prefill = []
    for length in lengths:
        on_progress(f"prompt of {length}")
        prefill.append(bench_prefill(loaded, shape, length, rounds))
    return Report(
        name or model, loaded.backend, loaded.device, loaded.ops.dtype,
        memory.count_parameters(shape).total, load_seconds, peak, decode, tuple(prefill),
    )  # fmt: skip


def bench_decode(model: Model, shape: Shape, rounds: int) -> Decode:
    """Time single tokens in turn with products of one row and matrices as large as the model."""
    counts = memory.count_parameters(shape)
    # A multiple of the groups that a backend may quantize in.
    width = min(_STREAM_WIDTH, max(64, math.isqrt(counts.matrices) // 64 * 64))
    n_stream = max(1, counts.matrices // width**2)
    matrices = tuple(_matrix(model.ops, width, width) for _ in range(n_stream))
    stream = partial(
        _synchronised, model.ops, model.ops.compile(partial(product, model.ops)), matrices,
        _rows(model.ops, 1, width),
    )  # fmt: skip
    state = model.forward([1, 2, 3])[1]

    def step() -> None:
        nonlocal state
        logits, state = model.forward([1], state)
        model.to_numpy(logits)

    # More tokens than passes: a token's time varies more.
    token, stream_pass = _in_turn([(step, 5), (stream, 1)], rounds)
    weight = memory.BYTES_PER_WEIGHT.get(model.ops.dtype)
    if weight is None:
        return Decode(1 / token, None, None, None, None)
    vector = memory.BYTES_PER_WEIGHT[model.ops.runtime_dtype]
    n_bytes = round(counts.matrices * weight + counts.vectors * vector)
    rate, stream_rate = n_bytes / token, n_stream * width**2 * weight / stream_pass
    return Decode(1 / token, n_bytes, rate, stream_rate, rate / stream_rate)


def bench_prefill(model: Model, shape: Shape, length: int, rounds: int) -> Prefill:
    """Time a prompt in turn with its bare products."""
    counts = memory.count_parameters(shape)
    n_blocks = min(shape.n_layer, _MOST_BLOCKS)
    d, f = shape.n_embd, shape.n_ffn
    # A block's matrices, [out, in], in an order in which each takes the one before's output.
    shapes = [(d, d)] * 5 + [(f, d), (d, f)]
    matrices = tuple(_matrix(model.ops, *sizes) for sizes in shapes * n_blocks)
    gemm = partial(
        _synchronised, model.ops, model.ops.compile(partial(product, model.ops)), matrices,
        _rows(model.ops, length, d),
    )  # fmt: skip
    tokens = [i % shape.n_vocab for i in range(length)]

    def prompt() -> None:
        model.to_numpy(model.forward(tokens)[0])

    seconds, gemm_seconds = _in_turn([(prompt, 1), (gemm, 1)], rounds)
    # The head is multiplied with the last token alone.
    flops = 2 * (counts.block_matrices * length + counts.head)
    gemm_flops = 2 * length * n_blocks * (5 * d * d + 2 * d * f)
    rate, gemm_rate = flops / seconds, gemm_flops / gemm_seconds
    return Prefill(length, length / seconds, rate, gemm_rate, rate / gemm_rate)


def product(ops: TensorOps, matrices: tuple[Matrix, ...], x: Array) -> Array:
    """`x` [1, T, in] through all `matrices` in a chain, so that no library can leave one out."""
    for matrix in matrices:
        x = ops.matmul(matrix, x)
    return x


def _synchronised(ops: TensorOps, run: Callable[..., Array], *arguments: Any) -> None:
    ops.to_numpy(run(*arguments))


def _matrix(ops: TensorOps, n_out: int, n_in: int) -> Matrix:
    # Of variance 1 / in, so that a chain of any length neither grows nor fades.
    values = random_values(n_out * n_in, seed=1).reshape(n_out, n_in)
    return ops.matrix(values * np.float32(n_in**-0.5))


def _rows(ops: TensorOps, n_rows: int, width: int) -> Array:
    return ops.vector(random_values(n_rows * width, seed=0).reshape(1, n_rows, width))


def _in_turn(jobs: Sequence[tuple[Callable[[], object], int]], rounds: int) -> list[float]:
    """The median seconds of each job, all of them run in each round, as often as the job says.

    One round before those that count lets libraries compile, and caches and clocks settle.
    """
    times: list[list[float]] = [[] for _ in jobs]
    for i in range(rounds + 1):
        for (job, repeats), row in zip(jobs, times, strict=True):
            for _ in range(repeats):
                began = time.perf_counter()
                job()
                if i:
                    row.append(time.perf_counter() - began)
    return [statistics.median(row) for row in times]


def _shape_of(model: str) -> Shape:
    with open_model(model) as checkpoint:
        return diagnose(checkpoint)


def _peak_memory() -> int | None:
    """The largest resident memory of this process so far, in bytes; None where it is not told."""
    if sys.platform == "darwin":
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # On Linux ru_maxrss counts what the process was before it became this program, too.
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    found = [int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:")]
    return found[0] if found else None
