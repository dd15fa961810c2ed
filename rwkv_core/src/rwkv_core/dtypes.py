"""The types that matrices are stored in: their names, their sizes and how exact they are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

GROUP_SIZE = 64
"""Weights of a row that share a scale and an offset, in int8 and int4, unless a user says
otherwise."""

QUANTIZED_BITS: Mapping[str, int] = {"int8": 8, "int4": 4}
"""Bits of a weight, by those dtypes whose matrices are quantized (see `quantization`)."""

# A scale and an offset of 16 bits each.
_PER_GROUP = 4 / GROUP_SIZE
BYTES_PER_WEIGHT: Mapping[str, float] = {
    "float64": 8,
    "float32": 4,
    "float16": 2,
    "bfloat16": 2,
    "int8": 1 + _PER_GROUP,
    "int4": 0.5 + _PER_GROUP,
}
"""Bytes that one weight of a matrix takes, by dtype; of int8 and int4 in groups of GROUP_SIZE,
which a backend need not keep to: see `TensorOps.matrix_bytes`."""


class Tolerance(NamedTuple):
    """Largest deviations allowed, as shares of the expected values' root mean square.

    Attributes:
        operation: of one operation, beside a float64 reference that has the weights as rounded.
        model: of a model's logits and states, beside the same.
        golden: of the shipped model's logits, beside a reference with the weights of the file.
        weights: of the weights themselves; 0 where they are as NumPy rounds them to the type.
    """

    operation: float
    model: float
    golden: float
    weights: float = 0.0


# An operation's is some tens of the type's rounding error, a model's some hundreds; float64's is
# the reference's own precision, for a model that of float32 logits. A slip in one layer, such as
# two mixes exchanged or the bonus left out, deviates by 0.2 and more.
# The golden logits' are several times what rounding the weights and activations makes: measured
# were 0.02 to 0.03 for int8, and 0.18 to 0.32 for int4, where only gross faults are ruled out.
# Half a step of int8, where a whole row shares a scale, is 0.02 of the weights, one of int4 0.3.
# Quantized matrices are multiplied by activations in bfloat16 or in 8 bits.
_TOLERANCES: Mapping[str, Tolerance] = {
    "float64": Tolerance(1e-10, 1e-6, 1e-6),
    "float32": Tolerance(1e-5, 1e-4, 1e-4),
    "float16": Tolerance(4e-3, 1e-2, 2e-2),
    "bfloat16": Tolerance(3e-2, 6e-2, 1e-1),
    "int8": Tolerance(6e-2, 1.2e-1, 6e-2, weights=0.05),
    "int4": Tolerance(6e-2, 1.2e-1, 6e-1, weights=0.6),
}
_TOLERANCE_OF_OTHERS = Tolerance(6e-2, 1.2e-1, 2e-1, weights=0.6)


def tolerance_of(dtype: str) -> Tolerance:
    """The tolerance of a dtype; of one that is not known here, a wide one."""
    return _TOLERANCES.get(dtype, _TOLERANCE_OF_OTHERS)
