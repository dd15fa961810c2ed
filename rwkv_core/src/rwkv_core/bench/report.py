"""What a bench found. Seconds and rates are medians; shares are of 1."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class FirstToken:
    """From a prompt of `tokens` tokens given to the text of the first token given out.

    Attributes:
        cold_seconds: the first time in the process, which is when libraries compile.
        seconds: afterwards.
    """

    tokens: int
    cold_seconds: float
    seconds: float


@dataclass(frozen=True)
class Decode:
    """Decoding one sequence. A byte, rate or share is None where the matrices' size is not known.

    Attributes:
        bytes_per_token: matrices as they are stored and vectors, each read once a token.
        bytes_per_second: that many, times the tokens a second.
        stream_bytes_per_second: the yardstick's.
        share: the one of the other.
        yardstick: what that is: "NumPy float32", its `W @ x` over matrices that no cache holds, on
            a CPU; "own", the backend's product of large matrices as big as the model, elsewhere.
        product_seconds: for the bare products of a token with the model's own matrices.
        overhead_seconds: by how much a token of a generation, with sampling (top_p 0.9) and
            detokenizing, takes longer than those products just after it; or than the model's step
            alone, where a backend takes that in fewer calls than its products one by one.
        sampling_seconds: by how much it takes longer than the model's step alone just before it:
            the part of the overhead that is sampling, detokenizing and bookkeeping.
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
    """Reading a prompt of `tokens` tokens.

    Attributes:
        flops_per_second: of the matrix products, a multiplication and an addition being two.
        gemm_flops_per_second: the same products', of the model's own matrices, bare.
        share: the one of the other.
    """

    tokens: int
    tokens_per_second: float
    flops_per_second: float
    gemm_flops_per_second: float
    share: float


@dataclass(frozen=True)
class Batch:
    """Decoding `sequences` together: tokens a second of all, and as a multiple of one's."""

    sequences: int
    tokens_per_second: float
    ratio: float


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
    first_token: FirstToken
    decode: Decode
    prefill: tuple[Prefill, ...]
    batches: tuple[Batch, ...]
