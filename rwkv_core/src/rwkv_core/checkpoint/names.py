"""From the names that a file gives its tensors to the canonical ones, BlinkDL's.

transformers renamed them in `convert_rwkv_checkpoint_to_hf.py`, and changed no value: its
`rwkv.blocks.3.attention.time_mix_key` is BlinkDL's `blocks.3.att.time_mix_k`.
Training frameworks put prefixes of their own before either, and wrappers into the middle.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from pathlib import Path

from rwkv_core.architectures.base import declared_weights
from rwkv_core.architectures.rwkv4 import RWKV4
from rwkv_core.errors import CheckpointError
from rwkv_core.weights import Weight

# Modules that wrap others: torch.compile's `_orig_mod`, FSDP's `_fsdp_wrapped_module`, DDP's
# `module`, `inner_module`, PEFT's `base_layer` around a layer with an adapter and `modules_to_save`
# around a copy.
_WRAPPER = re.compile(
    r"(?:(?<=\.)|^)(?:_[a-z_]+|(?:inner_)?module|base_layer|modules_to_save(?:\.default)?)\."
)
# A prefix is what stands before a block or the embedding.
_PREFIX = re.compile(
    r"^(.*?\.)??(?=blocks\.[0-9]+\.|(?:emb|embeddings)\.(?:weight$|lora_embedding_)|head\.lora_)"
)
_USUAL_PREFIXES = ("model.", "rwkv.")  # in a file of LoRA weights without a block
_TIED = "rwkv.embeddings.weight"
_BLOCK = re.compile(r"^blocks\.[0-9]+\.")


def _modules(name: str) -> tuple[str, str]:
    """Return a tensor's module and the one around it, without the block."""
    module = _BLOCK.sub("", name).removesuffix(".weight")
    return module, module.rpartition(".")[0]


# The tensors of a model of one layer, which stands for all.
_WEIGHTS = declared_weights(RWKV4, n_layer=1)
# From a module's name in transformers to BlinkDL's: "attention.key" to "att.key".
_MODULES = {
    alias: name
    for weight in _WEIGHTS.values()
    for alias, name in zip(_modules(weight.alias), _modules(weight.name), strict=True)
}


def canonical_name(name: str) -> str:
    """Return BlinkDL's name for a tensor; a name of no known scheme stays.

    What follows a module's name, such as ".weight" or ".lora_A.weight", stays too.
    """
    block = _BLOCK.match(name)
    module, rest = name[block.end() if block else 0 :], ""
    while module:
        if module in _MODULES:
            return (block[0] if block else "") + _MODULES[module] + rest
        module, dot, last = module.rpartition(".")
        rest = dot + last + rest
    return name


def _unwrapped(names: Collection[str]) -> dict[str, str]:
    """Each name without wrappers and without the prefix that its model has in the file."""
    bare = {name: _WRAPPER.sub("", name) for name in names}
    found = {match[1] for name in bare.values() if (match := _PREFIX.match(name)) and match[1]}
    prefixes = (*sorted(found, key=len, reverse=True), *_USUAL_PREFIXES)
    for name, short in bare.items():
        prefix = next((one for one in prefixes if short.startswith(one)), "")
        bare[name] = short.removeprefix(prefix)
    return bare


def canonical_names(path: Path, names: Collection[str]) -> dict[str, str]:
    """Canonical name to the file's name, in the file's order.

    A transformers file whose output matrix is tied to its embedding stores that once: there
    `head.weight` is the embedding. Raises CheckpointError if two names mean the same tensor.
    """
    sources: dict[str, str] = {}
    for source, bare in _unwrapped(names).items():
        name = canonical_name(bare)
        if name in sources:
            raise CheckpointError(
                f"{path}: holds {name} twice, as {sources[name]} and {source}; "
                "save a file with one model in it"
            )
        sources[name] = source
    if "head.weight" not in sources and sources.get("emb.weight", "").endswith(_TIED):
        sources["head.weight"] = sources["emb.weight"]
    return sources


def is_of_transformers(names: Iterable[str]) -> bool:
    """Whether any of a file's own names is one that only the transformers library gives."""
    return any(".attention." in name or ".feed_forward." in name for name in names)


def declared_weight(name: str) -> Weight | None:
    """Return what the architecture declares of a tensor, by its canonical name in any layer."""
    return _WEIGHTS.get(_BLOCK.sub("blocks.0.", name))


def canonical_shape(name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """BlinkDL's shape for a `time_` vector, which others write with more or fewer axes of length 1.

    Any other tensor keeps its shape.
    """
    weight = declared_weight(name)
    long_axes = [n for n in shape if n != 1]
    is_time = name.rpartition(".")[2].startswith("time_")
    if weight is None or not is_time or len(long_axes) != 1:
        return shape
    return (*weight.shape[:-1], *long_axes)
