"""Results of a bench. Times and rates are medians; shares are from 0 to 1."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class FirstToken:
    """Time from a prompt of `tokens` tokens to the text of the first generated token.

    Attributes:
        cold_seconds: the first time in the process, which includes compilation.
        seconds: the median of later times.
    """

    tokens: int
    cold_seconds: float
    seconds: float


@dataclass(frozen=True)
class Decode:
    """The speed of decoding one sequence, compared with the machine's limit.

    The yardstick is a simple operation that reads large matrices, and so shows this limit. If the
    backend does not tell the size of the matrices, bytes, rates in bytes and shares are None.

    Attributes:
        bytes_per_token: size of the stored matrices and the vectors, each read once per token.
        bytes_per_second: `bytes_per_token` times `tokens_per_second`.
        stream_bytes_per_second: the rate at which the yardstick reads its matrices.
        share: `bytes_per_second` / `stream_bytes_per_second`.
        yardstick: name of the yardstick. On a CPU it is "NumPy float32": NumPy's `W @ x` over
            matrices too large for the caches. Elsewhere it is "own": the backend's products with
            large matrices that are together as big as the model.
        product_seconds: time of only the matrix products of one token, with the model's own
            matrices.
        overhead_seconds: time per token of a generation, with sampling (top_p 0.9) and
            detokenizing, minus `product_seconds`. If the model computes a token faster than the
            bare products run, the model's time is subtracted instead.
        sampling_seconds: time per token of a generation, minus the time in which the model computes
            a token. This is the part of the overhead for sampling, detokenizing and bookkeeping.
    """

    tokens_per_second: float
    bytes_per_token: int | None
    bytes_per_second: float | None
    stream_bytes_per_second: float
    share: float | None
    yardstick: str
    product_seconds: float
    overhead_seconds: float
    sampling_seconds: float


@dataclass(frozen=True)
class Prefill:
    """The speed of reading a prompt of `tokens` tokens, compared with its matrix products alone.

    Attributes:
        flops_per_second: rate of the matrix products; a multiplication and an addition count as 2.
        gemm_flops_per_second: rate of the same products alone, with the model's own matrices.
        share: `flops_per_second` / `gemm_flops_per_second`.
    """

    tokens: int
    tokens_per_second: float
    flops_per_second: float
    gemm_flops_per_second: float
    share: float


@dataclass(frozen=True)
class Batch:
    """The speed of decoding a batch of `sequences` sequences.

    `tokens_per_second` counts the tokens of all sequences. `ratio` is this speed divided by that of
    one sequence.
    """

    sequences: int
    tokens_per_second: float
    ratio: float


@dataclass(frozen=True)
class Report:
    """Results of a bench. `peak_memory` is the process's peak after loading in bytes, if known."""

    model: str
    backend: str
    device: str
    dtype: str
    parameters: int
    load_seconds: float
    peak_memory: int | None
    first_token: FirstToken
    decode: Decode
    prefill: tuple[Prefill, ...]
    batches: tuple[Batch, ...]
