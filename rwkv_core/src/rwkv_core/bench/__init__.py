"""How fast a model runs here, and how fast it could: what `rwkv-core bench` measures.

Decoding reads all weights once a token, so its yardstick is how fast large matrices can be read;
reading a prompt is matrix products, so its yardstick is those products alone. Each is timed in turn
with its yardstick, in one process.
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
