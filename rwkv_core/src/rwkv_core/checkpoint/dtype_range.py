"""Refuses weights that are too large for the dtype to which they are converted."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from rwkv_core.errors import OptionError

_BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
_TYPES = {"float16": np.dtype(np.float16), "bfloat16": _BFLOAT16, "float32": np.dtype(np.float32)}
# The largest value of each type.
_MAX_VALUES = {
    _TYPES["float16"]: 65504.0,
    _BFLOAT16: 3.3895314e38,
    _TYPES["float32"]: float(np.finfo(np.float32).max),
}


def check_range(what: str, array: NDArray[Any], dtype: str) -> None:
    """Raise OptionError if a finite value of `array` would be infinite in `dtype`.

    `what` names the array in the message. `dtype` is a dtype's name. int8 and int4 hold any value.
    """
    kind = _TYPES.get(dtype)
    if kind is None or not array.size:
        return
    if _MAX_VALUES.get(array.dtype, np.inf) <= _MAX_VALUES[kind]:
        return
    for extreme in _extremes(array):
        with np.errstate(all="ignore"):
            fits = np.isfinite(np.asarray(extreme).astype(kind))
        if not fits:
            wider = "float32 or bfloat16" if dtype == "float16" else "float64"
            raise OptionError(
                f"option dtype: {dtype} ends at {_MAX_VALUES[kind]:.6g}, and {what} holds "
                f"{float(extreme):.6g}; take {wider}"
            )


def _extremes(array: NDArray[Any]) -> tuple[Any, ...]:
    """Return a few values, among them the largest and the smallest."""
    if array.dtype != _BFLOAT16:
        return array.min(), array.max()
    # Compared as integers, which is several times as fast. Read as signed integers, the largest
    # positive float is the maximum; read as unsigned ones, the most negative float is.
    bits = (array.view(np.int16).max(), array.view(np.uint16).max())
    return tuple(np.array(bits).astype(np.uint16).view(array.dtype))
