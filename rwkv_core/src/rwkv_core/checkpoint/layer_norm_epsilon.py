"""Rescales a model that was trained with a layer norm epsilon other than 1e-5.

The equations use an epsilon of 1e-5, and with it the rescaled model computes the same as the
trained model with its own epsilon. transformers' configuration file names that epsilon, as
`layer_norm_epsilon`.

The layer norm of c x with epsilon e equals that of x with epsilon e / c^2. So a model trained with
epsilon e / c^2 computes the same with epsilon e if its residual stream is c times as large. For
that, the embedding, the norm after it, and the two matrices of each block that add to the stream
are multiplied by c.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

from rwkv_core.architectures import rwkv7
from rwkv_core.backends.tensor_ops import EPSILON
from rwkv_core.checkpoint.config_file import read_config
from rwkv_core.checkpoint.names import declared_weight
from rwkv_core.checkpoint.reader import Checkpoint
from rwkv_core.errors import CheckpointError

CONFIG_NAME = "config.json"
_MIN_EPSILON, _MAX_EPSILON = 1e-15, 1.0
# FLA's defaults for an RWKV-7.
_HEAD_DIM, _NORM_EPS = 64, EPSILON


def configured_epsilon(path: Path) -> float:
    """Return the epsilon in transformers' configuration of an RWKV-4; by default 1e-5.

    Raises CheckpointError if the file cannot be read, if the epsilon is not a small positive
    number, or if the file is FLA's configuration of an RWKV-7 whose group norm differs from
    BlinkDL's.
    """
    config = read_config(path)
    if config.get("model_type") == "rwkv7":
        _check_group_norm(path, config)
    # Another model's configuration may have an epsilon of this name too.
    if config.get("model_type") not in (None, "rwkv"):
        return EPSILON
    epsilon = config.get("layer_norm_epsilon", EPSILON)
    if type(epsilon) not in (int, float) or not _MIN_EPSILON <= epsilon <= _MAX_EPSILON:
        raise CheckpointError(
            f"{path}: layer_norm_epsilon is {str(epsilon)[:40]!r}, expected a number from "
            f"{_MIN_EPSILON:g} to {_MAX_EPSILON:g}, such as {EPSILON:g}"
        )
    return float(epsilon)


def _check_group_norm(path: Path, config: dict[str, Any]) -> None:
    """Raise CheckpointError unless the norms of FLA's RWKV-7 have the epsilons of BlinkDL's.

    FLA (flash linear attention) computes the group norm's epsilon as head_dim * norm_eps. With the
    usual norm_eps this equals BlinkDL's epsilon only for heads of 64 channels.
    """
    head_dim, epsilon = config.get("head_dim") or _HEAD_DIM, config.get("norm_eps", _NORM_EPS)
    try:
        usual = epsilon == EPSILON and math.isclose(head_dim * epsilon, rwkv7.EPSILON)
    except TypeError:
        usual = False
    if not usual:
        raise CheckpointError(
            f"{path}: head_dim is {str(head_dim)[:40]} and norm_eps {str(epsilon)[:40]}, expected "
            f"{_HEAD_DIM} and {_NORM_EPS:g}: with others, FLA's group norm is not RWKV-7's"
        )


def _feeds_stream(name: str) -> bool:
    weight = declared_weight(name)
    return weight is not None and weight.feeds_stream


class RescaledCheckpoint(Checkpoint):
    """A model trained with the layer norm epsilon `epsilon`, rescaled for an epsilon of 1e-5."""

    def __init__(self, base: Checkpoint, epsilon: float) -> None:
        self.path, self.format, self.metadata = base.path, base.format, base.metadata
        self._base, self._factor = base, math.sqrt(EPSILON / epsilon)
        self.tensors = {
            name: tensor._replace(dtype=np.promote_types(tensor.dtype, np.float32))
            if _feeds_stream(name)
            else tensor
            for name, tensor in base.tensors.items()
        }

    def read(self, name: str) -> np.ndarray[Any, Any]:
        """See `Checkpoint.read`; a tensor that is rescaled is new memory."""
        return self._rescaled(name, self._base.read(name))

    def sample(self, name: str) -> np.ndarray[Any, Any]:
        """See `Checkpoint.sample`."""
        return self._rescaled(name, self._base.sample(name))

    def _rescaled(self, name: str, array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        if not _feeds_stream(name):
            return array
        # The caller checks the values, and so finds an overflow.
        with np.errstate(all="ignore"):
            rescaled = array.astype(self.tensors[name].dtype)
            rescaled *= self._factor
        rescaled.flags.writeable = False
        return rescaled

    def verify(self, name: str) -> None:
        """See `Checkpoint.verify`."""
        self._base.verify(name)

    def close(self) -> None:
        """See `Checkpoint.close`."""
        self._base.close()
