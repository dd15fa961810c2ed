"""Validates a checkpoint before it is loaded; an error says in one line what is wrong.

`diagnose` checks names, types and shapes, and the values of vectors, which are few. The matrices'
values are checked when they are read to load the model, by `check_finite`.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import ml_dtypes
import numpy as np

from rwkv_core.architectures.base import Architecture, Config, D, F, H, N, V, declared_weights
from rwkv_core.architectures.versions import VERSIONS
from rwkv_core.checkpoint.reader import Checkpoint
from rwkv_core.errors import CheckpointError
from rwkv_core.weights import Weight

FLOAT16, BFLOAT16 = np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16)
FLOATS = (FLOAT16, BFLOAT16, np.dtype(np.float32), np.dtype(np.float64))


# Bits of infinity in the 16-bit types. NaN has larger bits, and every finite value smaller ones.
_INFINITY = {FLOAT16: 0x7C00, BFLOAT16: 0x7F80}
_MINUS = 0x8000

_BLOCK = re.compile(r"^blocks\.([0-9]{1,4})\.")

_ADVICE = "rwkv-core runs RWKV-4 to RWKV-7: use a file of one of those"

# Unsupported versions that extend a supported one, and a pattern that some tensor's name matches.
_EXTENDED: tuple[tuple[str, str, str], ...] = (
    ("RWKV-7a or 7b, which has deep embeddings", r"\.ffn\.s(_emb|1|2)", "use an RWKV-7 file"),
)
_LORA_ALONE = (
    "LoRA weights without their model",
    r"lora_[AB]",
    "load the RWKV model that they were trained on, with this file as its lora",
)
_LORA_UNMERGED = (
    "a model with LoRA weights that are not merged yet",
    r"lora_[AB]",
    "give the alpha of their training, Lora(alpha=...) or --lora-alpha, to merge them",
)
_STATE_ALONE = (
    "a state-tuned file without its model",
    r"\.time_state$",
    "load the model that it was trained on, and give it this state: load_state or --state",
)
_STATE_INSIDE = (
    "a model with a tuned state in it",
    r"\.time_state$",
    "save its blocks.N.att.time_state to a .pth of their own, for load_state or --state, and the "
    "other tensors as the model",
)
_OTHER_KINDS: tuple[tuple[str, str, str], ...] = (
    (
        "a transformer",
        r"self_attn\.|\battn\.|attention\.(self|query_key_value|wq|dense)|[qkv]_proj",
        _ADVICE,
    ),
    ("a Mamba model", r"mixer\.(A_log|in_proj|conv1d)", _ADVICE),
)


def diagnose(checkpoint: Checkpoint, versions: Sequence[Architecture] = VERSIONS) -> Config:
    """Return the sizes and version of a complete model.

    The version is the first of `versions` that recognizes the tensors. Raises CheckpointError for
    another architecture; for tensors that are missing, unexpected, of a wrong shape or not of a
    floating-point type; and for NaN or infinity in a vector.
    """
    architecture = _architecture(checkpoint, versions)
    config = _config(checkpoint, architecture)
    weights = config.weights()
    _check_shapes(checkpoint, architecture, weights)
    _check_types(checkpoint, weights)
    _check_nothing_more(checkpoint, architecture, weights)
    checkpoint.check_metadata(config.sizes)
    for name, weight in weights.items():
        if weight.role == "vector":
            check_tensor(checkpoint, name, checkpoint.read(name))
    return config


def check_tensor(checkpoint: Checkpoint, name: str, array: np.ndarray[Any, Any]) -> None:
    """Raise CheckpointError if `array`, read as `name`, is damaged or holds NaN or infinity."""
    checkpoint.verify(name)
    try:
        check_finite(name, array)
    except CheckpointError as error:
        raise CheckpointError(f"{checkpoint.path}: {error}") from None


def check_finite(name: str, array: np.ndarray[Any, Any]) -> None:
    """Raise CheckpointError, naming the tensor, if a value is NaN or infinite.

    A few rows are checked at a time, which needs little memory besides the array.
    """
    rows = np.atleast_1d(array)
    step = max(1, 2**16 * len(rows) // max(rows.size, 1))
    parts = [rows[i : i + step] for i in range(0, len(rows) if rows.size else 0, step)]
    if not all(map(_is_finite, parts)):
        bad = sum(part.size - int(np.isfinite(part).sum()) for part in parts)
        raise CheckpointError(
            f"{name} holds {bad} NaN or infinite of {array.size} values: the file is damaged or "
            "its training diverged; download it again or use an earlier checkpoint"
        )


def _is_finite(array: np.ndarray[Any, Any]) -> bool:
    """Return whether all values are finite, from their extremes, which is as fast as reading."""
    infinity = _INFINITY.get(array.dtype)
    if infinity is None:
        return bool(np.isfinite(array.min()) and np.isfinite(array.max()))
    # Compared as integers: as signed ones positive floats are the largest, as unsigned ones the
    # negative floats.
    signed, unsigned = array.view(np.int16), array.view(np.uint16)
    return bool(signed.max() < infinity and unsigned.max() < _MINUS + infinity)


def _architecture(checkpoint: Checkpoint, versions: Sequence[Architecture]) -> Architecture:
    names = checkpoint.tensors
    has_model = "emb.weight" in names
    lora = _LORA_UNMERGED if has_model else _LORA_ALONE
    state = _STATE_INSIDE if has_model else _STATE_ALONE
    for kind, pattern, advice in (*_EXTENDED, lora, state, *_OTHER_KINDS):
        sign = next((name for name in names if re.search(pattern, name)), None)
        if sign is not None:
            raise CheckpointError(f"{checkpoint.path}: is {kind} (it holds {sign}); {advice}")
    shapes = {name: tensor.shape for name, tensor in names.items()}
    found = next((one for one in versions if one.recognizes(shapes)), None)
    if found is None:
        raise CheckpointError(
            f"{checkpoint.path}: is no RWKV model (it holds {_a_few(names)}); {_ADVICE}"
        )
    return found


def _config(checkpoint: Checkpoint, architecture: Architecture) -> Config:
    """Return the model's sizes, from the tensors' shapes and the number of blocks."""
    tensors = checkpoint.tensors
    blocks = {int(found[1]) for name in tensors if (found := _BLOCK.match(name))}
    # The blocks are counted, since a wrong highest number could be huge.
    n_layer = max(len(blocks), 1)
    declared = declared_weights(architecture, n_layer)
    missing = [name for name in declared if name not in tensors]
    if missing:
        raise CheckpointError(
            f"{checkpoint.path}: {len(missing)} of the {len(declared)} tensors of an "
            f"{architecture.title} of {n_layer} blocks are missing ({_a_few(missing)}); it holds "
            f"{_a_few(_unexpected_first(tensors, declared))}: use a file of the whole model, "
            "or for one in several files their .index.json"
        )
    sizes: dict[str, int] = {}
    for name, weight in declared.items():
        named = {size for size in weight.shape if isinstance(size, str)}
        if sizes.keys() >= named:
            continue
        shape = tensors[name].shape
        if weight.role == "vector":
            shape = tuple(n for n in shape if n != 1)
        if len(shape) != len(weight.shape) or 0 in shape:
            raise CheckpointError(
                f"{checkpoint.path}: {name} has shape {list(shape)} where one of "
                f"{len(weight.shape)} axes was expected; the file is damaged: download it again"
            )
        for size, n in zip(weight.shape, shape, strict=True):
            if isinstance(size, str):
                sizes.setdefault(size, n)
    if H in sizes:
        sizes.setdefault(N, sizes[D] // sizes[H])
    d, f, v = (sizes.pop(size) for size in (D, F, V))
    config = Config(n_layer, d, f, v, architecture, sizes)
    if sizes.get(H, 1) * sizes.get(N, d) != d:
        raise CheckpointError(
            f"{checkpoint.path}: {sizes[H]} heads of {sizes[N]} channels do not make its width of "
            f"{d}; the file is damaged: download it again"
        )
    return config


def _check_shapes(
    checkpoint: Checkpoint, architecture: Architecture, weights: Mapping[str, Weight]
) -> None:
    wrong = [
        name
        for name, weight in weights.items()
        if not _fits(weight, checkpoint.tensors[name].shape)
    ]
    if wrong:
        name, others = wrong[0], f" (and {len(wrong) - 1} others)" if len(wrong) > 1 else ""
        raise CheckpointError(
            f"{checkpoint.path}: {name} has shape {list(checkpoint.tensors[name].shape)}, expected "
            f"{list(weights[name].shape)} beside an emb.weight of "
            f"{list(weights['emb.weight'].shape)}{others}; the file is damaged or no plain "
            f"{architecture.title}: download it again"
        )


def _fits(weight: Weight, shape: tuple[int, ...]) -> bool:
    """Return whether a tensor has the shape of `weight`.

    Axes of length 1 of a vector do not count, since some writers leave them out.
    """
    lenient = weight.shape[0] == 1 or weight.name.rpartition(".")[2].startswith("time_")
    if weight.role != "vector" or not lenient:
        return shape == weight.shape
    return [n for n in shape if n != 1] == [n for n in weight.shape if n != 1]


def _check_types(checkpoint: Checkpoint, expected: Iterable[str]) -> None:
    wrong = [name for name in expected if checkpoint.tensors[name].dtype not in FLOATS]
    if wrong:
        found = checkpoint.tensors[wrong[0]].dtype
        raise CheckpointError(
            f"{checkpoint.path}: {wrong[0]} is of type {found}, expected float16, bfloat16, "
            "float32 or float64; use the original file"
        )


def _check_nothing_more(
    checkpoint: Checkpoint, architecture: Architecture, expected: Mapping[str, Weight]
) -> None:
    """Raise CheckpointError for unexpected weights, which mean that the equations differ."""
    # A file may hold an unused tensor in the first layer, of a kind that only later layers use.
    later = declared_weights(architecture, n_layer=2)
    unused = {name.replace("blocks.1.", "blocks.0.", 1) for name in later}
    more = [
        name
        for name, tensor in checkpoint.tensors.items()
        if name not in expected
        and name not in unused
        and (name.startswith(("blocks.", "head", "emb", "ln_", "pos_emb")))
        and tensor.dtype in FLOATS
    ]
    if more:
        raise CheckpointError(
            f"{checkpoint.path}: holds {len(more)} weights that {architecture.title} does not have "
            f"({_a_few(more)}): a variant of another design; {_ADVICE}"
        )


def _unexpected_first(names: Iterable[str], expected: Collection[str]) -> list[str]:
    return sorted(names, key=lambda name: name in expected)


def _a_few(names: Collection[str]) -> str:
    shown = ", ".join(list(names)[:3])
    return f"{shown}, ..." if len(names) > 3 else shown or "no tensor"
