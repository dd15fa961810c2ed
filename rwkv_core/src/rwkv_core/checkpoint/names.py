"""Translates a file's names of tensors to the canonical ones, BlinkDL's.

transformers renamed them in `convert_rwkv_checkpoint_to_hf.py`: its
`rwkv.blocks.3.attention.time_mix_key` is BlinkDL's `blocks.3.att.time_mix_k`. FLA (flash linear
attention), the usual form of RWKV-7 for transformers, has `model.layers.3.attn.k_proj.weight` for
`blocks.3.att.key.weight`. web-rwkv's converter, like early files of transformers, has time_mix for
RWKV-6's time_maa; it also has time_first for time_faaaa. Training frameworks add prefixes, and
names of wrapper modules in the middle. `layouts` undoes what writers change in the tensors.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from pathlib import Path

from rwkv_core.architectures.base import Architecture, declared_weights
from rwkv_core.architectures.rwkv4 import RWKV4
from rwkv_core.architectures.rwkv7 import RWKV7
from rwkv_core.architectures.versions import VERSIONS
from rwkv_core.errors import CheckpointError
from rwkv_core.weights import Weight

# Modules that wrap others: torch.compile's `_orig_mod`, FSDP's `_fsdp_wrapped_module`, DDP's
# `module`, `inner_module`, PEFT's `base_layer` around a layer with an adapter and `modules_to_save`
# around a copy.
_WRAPPER = re.compile(
    r"(?:(?<=\.)|^)(?:_[a-z_]+|(?:inner_)?module|base_layer|modules_to_save(?:\.default)?)\."
)
# A prefix is the part before "blocks." or the embedding's name.
_PREFIX = re.compile(
    r"^(.*?\.)??(?=blocks\.[0-9]+\.|(?:emb|embeddings)\.(?:weight$|lora_embedding_)|head\.lora_)"
)
_USUAL_PREFIXES = ("model.", "rwkv.")  # in a file of LoRA weights without a block
_OF_FLA = re.compile(r"(?:^|\.)layers\.[0-9]+\.attn\.(?:[wavg]_lora\.|x_[rwkvagx]$|r_proj\.)")
_FLA_BLOCK = re.compile(r"(?:^|(?<=\.))layers(?=\.[0-9]+\.)")
_OF_RWKV_6 = re.compile(r"\.att\.time_mix_(?:x|w[12]?)$")
_BLOCK = re.compile(r"^blocks\.[0-9]+\.")


def _modules(name: str) -> tuple[str, str]:
    """Return a tensor's module and the module around that, without "blocks.N."."""
    module = _BLOCK.sub("", name).removesuffix(".weight")
    return module, module.rpartition(".")[0]


# The tensors of a model of one layer, which has the names of every layer.
_WEIGHTS = declared_weights(RWKV4, n_layer=1)


class _Aliases:
    """Translates a writer's names to BlinkDL's, for some architectures."""

    def __init__(self, architectures: Iterable[Architecture]) -> None:
        # Two layers, as the first may lack a tensor.
        declared = [w for one in architectures for w in declared_weights(one, n_layer=2).values()]
        self._tensors = {
            _BLOCK.sub("", weight.alias): _BLOCK.sub("", weight.name) for weight in declared
        }
        # "attention.key" to "att.key", "attention" to "att".
        self._modules = {
            alias: name
            for weight in declared
            for alias, name in zip(_modules(weight.alias), _modules(weight.name), strict=True)
        }

    def canonical_name(self, name: str) -> str:
        """Return BlinkDL's name for a tensor; an unknown name is returned unchanged.

        Endings such as ".weight" or ".lora_A.weight" are kept.
        """
        block = _BLOCK.match(name)
        before, module = (block[0], name[block.end() :]) if block else ("", name)
        if module in self._tensors:
            return before + self._tensors[module]
        rest = ""
        while module:
            if module in self._modules:
                return before + self._modules[module] + rest
            module, dot, last = module.rpartition(".")
            rest = dot + last + rest
        return name


_TRANSFORMERS = _Aliases(one for one in VERSIONS if one is not RWKV7)
_FLA = _Aliases([RWKV7])


def _unwrapped(names: Collection[str]) -> dict[str, str]:
    """Return each name without wrappers and without its model's prefix in the file."""
    bare = {name: _WRAPPER.sub("", name) for name in names}
    found = {match[1] for name in bare.values() if (match := _PREFIX.match(name)) and match[1]}
    prefixes = (*sorted(found, key=len, reverse=True), *_USUAL_PREFIXES)
    for name, short in bare.items():
        prefix = next((one for one in prefixes if short.startswith(one)), "")
        bare[name] = short.removeprefix(prefix)
    return bare


def canonical_names(path: Path, names: Collection[str], is_safetensors: bool) -> dict[str, str]:
    """Return the file's names by canonical name, in the file's order.

    In a transformers file with tied embeddings, `head.weight` has the embedding's name. Raises
    CheckpointError if two names mean the same tensor.

    Arguments:
        is_safetensors: whether web-rwkv's converter may have written the file. time_first is then
            a value, like time_faaaa; in a .pth it is a logarithm.
    """
    of_fla = has_fla_names(names)
    aliases = _FLA if of_fla else _TRANSFORMERS
    renamed = {name: _FLA_BLOCK.sub("blocks", name) if of_fla else name for name in names}
    bare = _unwrapped(renamed.values())
    found = {name: aliases.canonical_name(bare[renamed[name]]) for name in names}
    _undo_web_rwkv(found, is_safetensors)
    sources: dict[str, str] = {}
    for source, name in found.items():
        if name in sources:
            raise CheckpointError(
                f"{path}: holds {name} twice, as {sources[name]} and {source}; "
                "save a file with one model in it"
            )
        sources[name] = source
    tied = "model.embeddings.weight" if of_fla else "rwkv.embeddings.weight"
    if "head.weight" not in sources and sources.get("emb.weight", "").endswith(tied):
        sources["head.weight"] = sources["emb.weight"]
    return sources


def _undo_web_rwkv(found: dict[str, str], is_safetensors: bool) -> None:
    """Rename RWKV-6's time_mix to time_maa, and RWKV-5's and 6's time_first to time_faaaa."""
    of_6 = any(map(_OF_RWKV_6.search, found.values()))
    has_gate = any(name.endswith(".att.gate.weight") for name in found.values())
    for source, name in found.items():
        if of_6:
            name = name.replace(".time_mix_", ".time_maa_")
        if is_safetensors and has_gate:
            name = name.replace(".att.time_first", ".att.time_faaaa")
        found[source] = name


def has_fla_names(names: Iterable[str]) -> bool:
    """Return whether a file's own names are those that FLA gives to RWKV-7's tensors."""
    return any(map(_OF_FLA.search, names))


def in_second_layer(name: str) -> str:
    """Return a tensor's name in layer 1, which, unlike layer 0, has every tensor."""
    return _BLOCK.sub("blocks.1.", name)


def is_of_transformers(names: Iterable[str]) -> bool:
    """Return whether a file's own names are those of the transformers library."""
    signs = (".attention.", ".feed_forward.", ".attn.")
    return any(sign in name for name in names for sign in signs)


def declared_weight(name: str) -> Weight | None:
    """Return the declaration of a tensor by its canonical name in any layer; None if unknown."""
    return _WEIGHTS.get(_BLOCK.sub("blocks.0.", name))


def canonical_shape(name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return BlinkDL's shape of a tensor.

    Other writers give `time_` vectors more or fewer axes of length 1; other shapes are unchanged.
    """
    weight = declared_weight(name)
    long_axes = [n for n in shape if n != 1]
    is_time = name.rpartition(".")[2].startswith("time_")
    if weight is None or not is_time or len(long_axes) != 1:
        return shape
    return (*weight.shape[:-1], *long_axes)
