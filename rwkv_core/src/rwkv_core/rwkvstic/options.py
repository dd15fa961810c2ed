"""Translates rwkvstic's options to a backend's options."""

from __future__ import annotations

import re
from typing import Any

from rwkv_core import plugins
from rwkv_core.backends.descriptor import Option
from rwkv_core.checkpoint.lora import Lora
from rwkv_core.dtypes import QUANTIZED_BITS
from rwkv_core.errors import OptionError
from rwkv_core.rwkvstic.agnostic.backends import ON_MPS, backend_of

_NAMES = {
    "dtype": "dtype",
    "runtimedtype": "runtime_dtype",
    "target": "target",
    "pinMem": "pin_memory",
    "chunksize": "chunksize",
    "devices": "devices",
}
# Options that only chose how rwkvstic computes or loads, with the same results; ignored.
_MEANINGLESS = ("maxQuantTarget", "maxvram", "useLogFix", "processEmb", "jit", "lora_bake")
_ON_CPU = {"device": "cpu", "use_gpu": False}
_STRATEGY = re.compile(r"^(cpu|mps|cuda(?::\d+)?) (fp32|fp16|bf16)(i8)?$")
_STRATEGY_DTYPES = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}


def backend_and_options(
    mode: str | None, use_gpu: bool | None, given: dict[str, Any]
) -> tuple[str, dict[str, Any]]:
    """Return the backend's name, and keyword arguments for `rwkv_core.RWKV`.

    Raises OptionError for a wrong option, and BackendError if a mode has no backend or no backend
    is ready.
    """
    given = {name: value for name, value in given.items() if value is not None}
    if given.pop("export", False):
        raise OptionError(
            "export: not offered; `rwkv-core prequantize` writes a file that every backend loads"
        )
    if "strategy" in given:
        mode, chosen = _strategy(given.pop("strategy"))
        given |= chosen
    if "bits" in given:
        given["dtype"] = f"int{given.pop('bits')}"
    if "dtype" in given:
        given["dtype"] = dtype_name(given["dtype"])
    wanted = {"dtype": given["dtype"]} if "dtype" in given else {}
    name = plugins.start_backend(None, wanted)[0] if mode is None else backend_of(mode)
    options = {row.name: row.options for row in plugins.list_backends()}.get(name, ())
    taken = {option.name: option for option in options}
    if mode in ON_MPS:
        given.setdefault("device", "mps")
    if use_gpu is False:
        given |= {option: value for option, value in _ON_CPU.items() if option in taken}
    # The LoRA's shapes hold the rank. In rwkvstic, 0 means no LoRA.
    if given.pop("lora_r", 1) == 0:
        given.pop("lora_alpha", None)
    if "lora_alpha" in given:
        given["lora"] = Lora(given.get("lora"), given.pop("lora_alpha"))
    for ignored in _MEANINGLESS:
        given.pop(ignored, None)
    translated = {}
    for old, value in given.items():
        new = _NAMES.get(old, old)
        value = dtype_name(value) if new == "runtime_dtype" else value
        if old in _NAMES and not _applies(taken.get(new), value):
            continue
        translated[new] = value
    return name, translated


def _applies(option: Option | None, value: Any) -> bool:
    """Return whether a value that a user of rwkvstic gave is passed to the backend's option.

    `option` is None if the backend does not have it. A dtype is not passed to a backend that only
    has quantized matrices, since rwkvstic ignores it there, unless the dtype is "int8" or "int4". A
    16-bit runtime_dtype is passed only if the backend has it.
    """
    if option is None:
        return False
    if option.name == "dtype":
        quantized_only = option.choices and set(option.choices) <= QUANTIZED_BITS.keys()
        return value in QUANTIZED_BITS or not quantized_only
    short = option.name == "runtime_dtype" and value in ("float16", "bfloat16")
    return not short or value in option.choices


def dtype_name(dtype: Any) -> str:
    """Return the name of a dtype of any library, such as "bfloat16". A name is unchanged."""
    name = getattr(dtype, "name", None) or getattr(dtype, "__name__", None) or str(dtype)
    return str(name).rpartition(".")[2]


def _strategy(strategy: Any) -> tuple[str, dict[str, str]]:
    found = _STRATEGY.match(strategy) if isinstance(strategy, str) else None
    if found is None:
        raise OptionError(
            f"strategy: found {strategy!r}, expected one device and type, such as 'cuda fp16' or "
            "'cpu fp32i8'; for more of them there are the modes TORCH_SPLIT and TORCH_STREAM"
        )
    device, dtype, quantized = found.groups()
    if quantized:
        return "torch-quant", {"device": device}
    return "torch", {"device": device, "dtype": _STRATEGY_DTYPES[dtype]}
