"""The dtypes of matrices: their names, sizes and tolerances."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

GROUP_SIZE = 64
"""Default number of weights in a row that share a scale and an offset, in int8 and int4."""

QUANTIZED_BITS: Mapping[str, int] = {"int8": 8, "int4": 4}
"""Bits per weight of the quantized dtypes (see `quantization`)."""

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
"""Bytes per weight of a matrix, by dtype. For int8 and int4 with groups of GROUP_SIZE; a backend
may have others, see `TensorOps.matrix_bytes`."""


class Tolerance(NamedTuple):
    """Largest allowed errors, each divided by the root mean square of the expected values.

    Attributes:
        operation: for one operation, compared with a float64 reference whose weights are rounded to
            the dtype.
        model: for a model's logits and states, compared with a float64 reference whose weights are
            rounded to the dtype.
        golden: for the logits of the bundled models, compared with a reference that has the weights
            of the model's file.
        weights: for the weights themselves; 0 if they are rounded exactly as NumPy does.
    """

    operation: float
    model: float
    golden: float
    weights: float = 0.0


# For an operation: some tens of the type's rounding error; for a model, some hundreds. float64's
# tolerance is the precision of the reference, whose logits are float32. A fault in one layer, such
# as two exchanged mixes or a missing bonus, gives an error of 0.2 or more.
# For golden logits: several times the error of rounding weights and activations, which measured
# 0.02 to 0.03 for int8 and 0.18 to 0.32 for int4; int4 therefore only shows gross faults.
# For weights: half a step of int8 is 0.02 if a row shares one scale; half a step of int4 is 0.3.
# Activations are in bfloat16 or 8 bits where matrices are quantized.
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
    """Return the tolerance of a dtype; a wide one for an unknown dtype."""
    return _TOLERANCES.get(dtype, _TOLERANCE_OF_OTHERS)
