"""The types that matrices are stored in, by their names."""

from __future__ import annotations

from collections.abc import Mapping

# A group of 64 quantized weights shares a scale and an offset of 16 bits each.
_PER_GROUP = 4 / 64
BYTES_PER_WEIGHT: Mapping[str, float] = {
    "float64": 8,
    "float32": 4,
    "float16": 2,
    "bfloat16": 2,
    "int8": 1 + _PER_GROUP,
    "int4": 0.5 + _PER_GROUP,
}
"""Bytes that one weight of a matrix takes, by dtype; of int8 and int4 in groups of 64, which a
backend need not keep to: see `TensorOps.matrix_bytes`."""
