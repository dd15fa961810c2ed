"""LoRA weights as RWKV-LM-LoRA and PEFT save them, merged into their model tensor by tensor.

A file of RWKV-LM-LoRA holds `blocks.3.att.key.lora_A` [r, in] and `...lora_B` [out, r]: B @ A *
(alpha / r) is added to `blocks.3.att.key.weight`. Tensors that were trained in full (layer norms,
time_*) replace the model's. Alpha is not in the file. Source: merge_lora.py of
https://github.com/Blealtan/RWKV-LM-LoRA
PEFT's names end in `lora_A.weight`, or in `lora_A.default.weight` with the adapter's name. Alpha is
in a separate file; see `adapters`. For an embedding [V, D] there are `lora_embedding_A` [r, V]
and `lora_embedding_B` [D, r]; the transpose of their product is added.
"""

from __future__ import annotations

import math
import os
import re
from typing import Any, NamedTuple

import numpy as np

from rwkv_core.checkpoint.adapters import check_is_lora
from rwkv_core.checkpoint.reader import Checkpoint, TensorInfo
from rwkv_core.checkpoint.validation import FLOATS, check_tensor
from rwkv_core.errors import CheckpointError, OptionError

_FACTOR = re.compile(r"^(.+)\.lora_(embedding_)?([AB])(?:\.(?!weight$|bias$)[^.]+)?(?:\.weight)?$")

_LARGEST_FLOAT32 = float(np.finfo(np.float32).max)


class _Pair(NamedTuple):
    """The names of the two factors in the LoRA file, and the shape of their product."""

    a: str
    b: str
    rank: int
    shape: tuple[int, int]
    transposed: bool


class Lora(NamedTuple):
    """LoRA weights to merge into a model while the model is loaded.

    Attributes:
        path: a file of RWKV-LM-LoRA, or PEFT's file or folder, or an address; None for LoRA weights
            in the model's own file, where some trainers save them.
        alpha: the alpha that was used in training. None: read it from PEFT's adapter_config.json;
            RWKV-LM-LoRA's files do not hold it.
    """

    path: str | os.PathLike[str] | None = None
    alpha: float | None = None


def holds_lora(checkpoint: Checkpoint) -> bool:
    """Return whether the checkpoint holds LoRA weights."""
    return any(map(_FACTOR.match, checkpoint.tensors))


class LoraCheckpoint(Checkpoint):
    """A model with LoRA weights; each tensor is merged when it is read.

    A merged tensor is computed in float32, or in float64 if the model's tensor is float64. It is
    not rounded back, since a LoRA's change can be smaller than a step of float16. Other tensors are
    unchanged.

    Raises OptionError if alpha is not a finite number; CheckpointError if `lora` is not a LoRA, or
    is for another model, or if `base` is quantized.
    """

    def __init__(
        self, base: Checkpoint, lora: Checkpoint, alpha: Any, by_root_of_rank: bool = False
    ) -> None:
        """Merge `lora` into `base`; they may be one checkpoint that holds both kinds of tensors.

        `by_root_of_rank`: whether products are scaled by alpha / sqrt(r) (Kalajdzievski 2023)
        instead of alpha / r, where r is the rank.
        """
        self.path, self.format, self.metadata = base.path, base.format, base.metadata
        self.has_transformers_names = base.has_transformers_names
        self._base, self._lora, self._alpha = base, lora, _checked_alpha(alpha)
        self._by_root_of_rank = by_root_of_rank
        check_is_lora(lora.path, lora.tensors)
        self._pairs = _pairs(lora)
        own = [name for name in base.tensors if _FACTOR.match(name)]
        if own and lora is not base:
            raise CheckpointError(
                f"{base.path}: holds LoRA weights of its own ({own[0]}), expected only the model; "
                "to merge those, give only alpha: Lora(alpha=...) or --lora-alpha"
            )
        self._replaced = {name for name in lora.tensors if not _FACTOR.match(name)}
        tensors = {name: info for name, info in base.tensors.items() if name not in own}
        for name in self._replaced:
            self._check_fits(tensors, name, lora.tensors[name].shape, name)
            tensors[name] = lora.tensors[name]
        for name, pair in self._pairs.items():
            self._check_fits(tensors, name, pair.shape, f"{pair.b} @ {pair.a}")
            tensors[name] = tensors[name]._replace(dtype=_merged_dtype(tensors[name]))
        self.tensors = tensors

    def _check_fits(
        self, tensors: dict[str, TensorInfo], name: str, shape: tuple[int, ...], what: str
    ) -> None:
        if name not in tensors:
            raise CheckpointError(
                f"{self._lora.path}: changes {name}, which {self.path} does not hold: a LoRA of "
                "another model; use the model that it was trained on"
            )
        if tensors[name].shape != shape:
            raise CheckpointError(
                f"{self._lora.path}: {what} has shape {list(shape)}, and {name} of {self.path} has "
                f"{list(tensors[name].shape)}: a LoRA of another model; use the model that it was "
                "trained on"
            )
        if self._base.read_quantized(name) is not None:
            raise CheckpointError(
                f"{self.path}: is quantized, and a LoRA cannot be merged into it; use the original "
                "model (prequantize takes --lora too)"
            )

    def read(self, name: str) -> np.ndarray[Any, Any]:
        """See `Checkpoint.read`; a merged matrix is new memory."""
        pair = self._pairs.get(name)
        if pair is None:
            return self._unmerged(name)
        dtype = self.tensors[name].dtype
        a, b = (self._from_lora(factor).astype(dtype) for factor in (pair.a, pair.b))
        # The caller checks the values, and so finds an overflow.
        with np.errstate(over="ignore", invalid="ignore"):
            b *= self._alpha_of(pair) / pair.rank
            merged = (b @ a).T.copy() if pair.transposed else b @ a
            merged += self._unmerged(name)
        merged.flags.writeable = False
        return merged

    def sample(self, name: str) -> np.ndarray[Any, Any]:
        """Return values for the fingerprint; for a merged tensor, values from before the merge.

        Merged values would not be the same on all machines, since their rounding depends on BLAS.
        """
        pair = self._pairs.get(name)
        if pair is None:
            return (self._lora if name in self._replaced else self._base).sample(name)
        whole = self._lora if name in self._replaced else self._base
        parts = [whole.sample(name), self._lora.sample(pair.a), self._lora.sample(pair.b)]
        return np.concatenate([*parts, [self._alpha_of(pair)]]).astype(np.float32)

    def verify(self, name: str) -> None:
        """See `Checkpoint.verify`; tensors of the LoRA are verified when they are read."""
        if name not in self._replaced:
            self._base.verify(name)

    def _alpha_of(self, pair: _Pair) -> float:
        return self._alpha * math.sqrt(pair.rank) if self._by_root_of_rank else self._alpha

    def _unmerged(self, name: str) -> np.ndarray[Any, Any]:
        return self._from_lora(name) if name in self._replaced else self._base.read(name)

    def _from_lora(self, name: str) -> np.ndarray[Any, Any]:
        array = self._lora.read(name)
        check_tensor(self._lora, name, array)
        return array

    def close(self) -> None:
        """Close both files."""
        self._base.close()
        self._lora.close()


def _checked_alpha(alpha: Any) -> float:
    number = isinstance(alpha, int | float) and not isinstance(alpha, bool)
    if not number or not abs(alpha) <= _LARGEST_FLOAT32:
        raise OptionError(f"LoRA alpha: found {alpha!r}, expected a number such as 32")
    return float(alpha)


def _merged_dtype(tensor: TensorInfo) -> np.dtype[Any]:
    return np.promote_types(tensor.dtype, np.float32)


def _pairs(lora: Checkpoint) -> dict[str, _Pair]:
    """Return pairs of factors by the weight they change, after checking their types and shapes."""
    factors: dict[str, dict[str, str]] = {}
    for name in lora.tensors:
        if found := _FACTOR.match(name):
            of_weight = factors.setdefault(f"{found[1]}.weight", {})
            if found[3] in of_weight:
                raise CheckpointError(
                    f"{lora.path}: holds two adapters ({of_weight[found[3]]} and {name}), expected "
                    "one; save them one by one"
                )
            of_weight[found[3]] = name
    if not factors:
        holds = ", ".join(list(lora.tensors)[:3]) or "no tensors"
        raise CheckpointError(
            f"{lora.path}: is no LoRA (it holds {holds}, ...): expected tensors named lora_A and "
            "lora_B, as RWKV-LM-LoRA and PEFT save them"
        )
    pairs = {}
    for weight, names in factors.items():
        if len(names) < 2:
            (found_one,), missing = names.values(), "B" if "A" in names else "A"
            raise CheckpointError(
                f"{lora.path}: holds {found_one} without its lora_{missing}; download it again"
            )
        pairs[weight] = _checked_pair(lora, names["A"], names["B"])
    return pairs


def _checked_pair(lora: Checkpoint, a: str, b: str) -> _Pair:
    for name in (a, b):
        shape, dtype = lora.tensors[name]
        if len(shape) != 2 or 0 in shape or dtype not in FLOATS:
            raise CheckpointError(
                f"{lora.path}: {name} is {dtype} of shape {list(shape)}, expected a matrix of "
                "float16, bfloat16, float32 or float64; download it again"
            )
    a_shape, b_shape = lora.tensors[a].shape, lora.tensors[b].shape
    if a_shape[0] != b_shape[1]:
        raise CheckpointError(
            f"{lora.path}: {a} {list(a_shape)} and {b} {list(b_shape)} differ in rank: expected "
            "[r, in] and [out, r]; the file is damaged: download it again"
        )
    transposed = "lora_embedding_" in a
    shape = (a_shape[1], b_shape[0]) if transposed else (b_shape[0], a_shape[1])
    return _Pair(a, b, a_shape[0], shape, transposed)
