"""A bench of one model on one backend, in this process."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from itertools import chain, count
from operator import sub
from pathlib import Path
from statistics import median
from typing import Any

from rwkv_core.architectures.base import Config
from rwkv_core.architectures.published import CONFIGS, published_configs
from rwkv_core.bench.report import Batch, Decode, FirstToken, Prefill, Report
from rwkv_core.bench.timing import in_turn, seconds
from rwkv_core.bench.yardsticks import bare_products, matrix_bytes, stream_for
from rwkv_core.dtypes import BYTES_PER_WEIGHT
from rwkv_core.errors import OptionError
from rwkv_core.generation.sampling_parameters import Sampling
from rwkv_core.loading import load
from rwkv_core.model import Model
from rwkv_core.rwkv import RWKV
from rwkv_core.tokenizer import Tokenizer

_BATCHES = (1, 4, 16)
# Number of tokens timed in a round of decoding.
_TOKENS = 10
# Seconds to wait before another library is timed: after a call, a library's threads keep the cores
# busy for a while, waiting for the next call.
_REST = 0.05
_SAMPLING = Sampling(top_p=0.9)
_ENDLESS = 10**9
# Tokens of a prompt; even a small model takes minutes to read so many.
_MAX_LENGTH = 2**20


def parse_shape(text: str) -> Config:
    """Return the sizes (a Config) of the model that `text` names.

    `text` is the name of a published size ("430M", "rwkv7:0.1B"), or the number of layers and the
    width ("24x1024", "rwkv7:24x1024"). Without a version, the model is an RWKV-4. Raises
    OptionError for other text.
    """
    published = published_configs()
    if text in published:
        return published[text]
    version, colon, size = text.rpartition(":")
    layers, _, width = size.partition("x")
    is_size = layers.isdecimal() and width.isdecimal() and int(layers) and int(width)
    config = CONFIGS.get(version if colon else "rwkv4")
    if not is_size or config is None:
        raise OptionError(
            f"shape: found {text!r}, expected {', '.join(published)}, or such as 24x1024 or "
            "rwkv7:24x1024"
        )
    return config(int(layers), int(width))


def bench(
    model: str,
    backend: str | None,
    options: dict[str, Any],
    lengths: Sequence[int] = (256, 1024),
    rounds: int = 9,
    name: str | None = None,
    on_stage: Callable[[str], object] = lambda stage: None,
) -> Report:
    """Load a model file and time it.

    Arguments:
        lengths: prompt lengths in tokens; the first is also used for the time to the first token.
        rounds: number of rounds. Each round times the model, and then a simple operation to compare
            the model with, such as its products alone. Slow measurements are repeated fewer times.
        name: the model's name in the report; by default `model`.
        on_stage: called with the name of each stage when it begins.

    Raises the errors of `load`, and OptionError if there is no length, a length is out of range, or
    `rounds` is below 1.
    """
    if not lengths or rounds < 1:
        raise OptionError("bench: expected a prompt length or more, and at least 1 round")
    for length in lengths:
        if not 1 <= length <= _MAX_LENGTH:
            raise OptionError(f"bench: prompt of {length} tokens, expected 1 to {_MAX_LENGTH}")
    on_stage("loading")
    began = time.perf_counter()
    loaded = load(model, backend, **options)
    load_seconds = time.perf_counter() - began
    peak = peak_memory()
    on_stage("first token")
    first_token = _bench_first_token(loaded, lengths[0], rounds)
    on_stage("decoding")
    decode = bench_decode(loaded, rounds)
    prefill = []
    for length in lengths:
        on_stage(f"prompt of {length}")
        prefill.append(_bench_prefill(loaded, length, rounds))
    on_stage("batches")
    return Report(
        name or model, loaded.backend, loaded.device, loaded.ops.dtype,
        loaded.config.count_parameters().total, load_seconds, peak, first_token, decode,
        tuple(prefill), _bench_batches(loaded, rounds),
    )  # fmt: skip


class _NumberTokenizer(Tokenizer):
    """Tokenizer whose tokens stand for their numbers, for models without a vocabulary."""

    def __init__(self, n_vocab: int) -> None:
        super().__init__({token: b" %d" % token for token in range(n_vocab)}, "numbers")

    def encode(self, text: str) -> list[int]:
        return [int(word) for word in text.split()]

    def encode_bytes(self, data: bytes) -> list[int]:
        return [int(word) for word in data.split()]


def _bench_first_token(model: Model, length: int, rounds: int) -> FirstToken:
    rwkv = RWKV(model, tokenizer=_NumberTokenizer(model.n_vocab))

    def first_token() -> None:
        rwkv.reset_state()
        rwkv.load_context(_prompt(model, length))
        next(rwkv.stream(1, sampling=_SAMPLING, seed=0))

    cold = seconds(first_token)
    (warm,) = in_turn([first_token], rounds)
    return FirstToken(length, cold, median(warm))


def bench_decode(model: Model, rounds: int) -> Decode:
    """Time single tokens of the model and of a generation, in turns with the yardsticks."""
    counts = model.config.count_parameters()
    stream = stream_for(model, counts.matrices)
    rwkv = RWKV(model, tokenizer=_NumberTokenizer(model.n_vocab))
    rwkv.load_context([1, 2, 3])
    state = rwkv.get_state()
    text = rwkv.stream(_ENDLESS, sampling=_SAMPLING, seed=0)

    def step() -> None:
        nonlocal state
        logits, state = model.forward([1], state)
        model.to_numpy(logits)

    jobs = [step, lambda: next(text), bare_products(model, 1)]
    # More tokens than stream passes, as a token's time varies more. The first pass wakes threads.
    round_of_jobs = [*jobs * _TOKENS, _rest, stream.run, stream.run, _rest]
    *times, _, _, reads, _ = in_turn(round_of_jobs, rounds)
    steps, generated, products = (list(chain(*times[i :: len(jobs)])) for i in range(len(jobs)))
    bare = list(map(min, steps, products))
    token = median(steps)
    matrices = matrix_bytes(model, counts.matrices)
    vectors = counts.vectors * BYTES_PER_WEIGHT[model.ops.runtime_dtype]
    n_bytes = None if matrices is None else round(matrices + vectors)
    rate, stream_rate = n_bytes and n_bytes / token, stream.n_bytes / median(reads)
    return Decode(
        tokens_per_second=1 / token,
        bytes_per_token=n_bytes,
        bytes_per_second=rate,
        stream_bytes_per_second=stream_rate,
        share=rate and rate / stream_rate,
        yardstick=stream.name,
        product_seconds=median(products),
        overhead_seconds=median(map(sub, generated, bare)),
        sampling_seconds=median(map(sub, generated, steps)),
    )


def _rest() -> None:
    time.sleep(_REST)


def _bench_prefill(model: Model, length: int, rounds: int) -> Prefill:
    """Time a prompt and its bare products, in turns."""
    tokens = _prompt(model, length)

    def prompt() -> None:
        model.to_numpy(model.forward(tokens)[0])

    taken, products = map(median, in_turn([prompt, bare_products(model, length)], rounds))
    counts = model.config.count_parameters()
    # Only the last token is multiplied with the head.
    flops = 2 * (counts.block_matrices * length + counts.head)
    return Prefill(length, length / taken, flops / taken, flops / products, products / taken)


def _bench_batches(model: Model, rounds: int) -> tuple[Batch, ...]:
    """Time one step of 1, 4 and 16 sequences, in turns."""

    def step_of(n_batch: int) -> Callable[[], None]:
        state = model.empty_state(n_batch)
        tokens = count(1)

        def step() -> None:
            nonlocal state
            token = next(tokens) % model.n_vocab
            logits, state = model.forward([[token]] * n_batch, state)
            model.to_numpy(logits)

        return step

    taken = list(map(median, in_turn(list(map(step_of, _BATCHES)), rounds)))
    return tuple(
        Batch(n, n / time_of_n, n * taken[0] / time_of_n)
        for n, time_of_n in zip(_BATCHES, taken, strict=True)
    )


def _prompt(model: Model, length: int) -> list[int]:
    return [i % model.n_vocab for i in range(length)]


def peak_memory() -> int | None:
    """Return the peak resident memory of this process in bytes; None if it is unknown."""
    if sys.platform == "darwin":
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # On Linux ru_maxrss also counts what the process used before it became this program.
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    found = [int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:")]
    return found[0] if found else None
