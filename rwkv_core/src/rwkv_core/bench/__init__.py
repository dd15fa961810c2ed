"""Measurements of `rwkv-core bench`: how fast a model runs, and how fast the machine could run it.

Each measurement is compared with a simple operation that shows the machine's limit, its yardstick.
Decoding reads all weights once per token, so its yardstick is the rate at which large matrices can
be read. Prefill consists mostly of matrix products, so its yardstick is the rate of the same
products alone. The measurement and its yardstick take turns in one process.
"""

from rwkv_core.bench.combinations import Combination, bench_alone
from rwkv_core.bench.measure import bench, bench_decode, parse_shape
from rwkv_core.bench.report import Batch, Decode, FirstToken, Prefill, Report

__all__ = [
    "Batch",
    "Combination",
    "Decode",
    "FirstToken",
    "Prefill",
    "Report",
    "bench",
    "bench_alone",
    "bench_decode",
    "parse_shape",
]
