"""Reads PEFT's `adapter_config.json`, and refuses adapters that are not LoRA.

PEFT saves this file beside `adapter_model.safetensors` (or `.bin`). The source of the keys and of
the tensors' names is https://github.com/huggingface/peft, src/peft/tuners.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from rwkv_core.checkpoint.config_file import read_config
from rwkv_core.errors import CheckpointError

CONFIG_NAME = "adapter_config.json"

# Kinds of adapters that are not W + B @ A, by a part of their tensors' names.
_OTHER_KINDS = (
    ("DoRA", r"lora_magnitude_vector"),
    ("LoRA with biases", r"\.lora_[AB](\.[^.]+)?\.bias$"),
    ("PiSSA", r"init_lora_[AB]|pissa"),
    ("Bone", r"\.(bone|miss)(_|\.|$)"),
    ("DiSHA", r"\.disha(_|\.|$)"),
    ("AdaLoRA", r"\.lora_E(\.|$)"),
    ("IA3", r"\.ia3_l(\.|$)"),
    ("LoHa", r"\.hada_(w|t)[12]"),
    ("LoKr", r"\.lokr_(w|t)[12]"),
    ("OFT", r"\.b?oft_(r|s|R)(\.|$)"),
    ("VeRA", r"\.vera_lambda_"),
    ("VB-LoRA", r"\.?vblora_"),
    ("RandLoRA", r"\.randlora_"),
    ("FourierFT", r"\.fourierft_"),
    ("HRA", r"\.hra_u"),
    ("SHiRA", r"\.shira_"),
    ("prompt tuning", r"prompt_(embeddings|encoder)"),
    ("trainable tokens", r"trainable_tokens_delta"),
)
# Keys of a configuration that make an adapter more than W + B @ A. `fan_in_fan_out` is not among
# them: PEFT ignores it for linear layers and embeddings, and RWKV has no other layers.
_OTHER_SETTINGS = {
    "use_dora": "DoRA",
    "use_qalora": "QALoRA",
    "use_bdlora": "BD-LoRA",
    "alora_invocation_tokens": "aLoRA",
    "layer_replication": "LoRA with replicated layers",
    "lora_bias": "LoRA with biases",
}
# Initializations after which the adapter belongs to a changed base model.
_CHANGED_BASES = {
    "pissa": "PiSSA", "olora": "OLoRA", "corda": "CorDA", "loftq": "LoftQ",
    "lora_ga": "LoRA-GA",
}  # fmt: skip


class AdapterConfig(NamedTuple):
    """LoRA settings of a configuration: alpha (if given), and how the product is scaled."""

    alpha: Any = None
    by_root_of_rank: bool = False
    """Rank-stabilized LoRA: alpha / sqrt(r) in place of alpha / r."""


def adapter_config(path: Path) -> AdapterConfig:
    """Read PEFT's configuration file.

    Raises CheckpointError if it cannot be read, or describes an adapter that is not a LoRA.
    """
    config = read_config(path)
    kind = config.get("peft_type", "LORA")
    if kind != "LORA":
        raise _other_kind(path, str(kind)[:40], "peft_type")
    for key, name in _OTHER_SETTINGS.items():
        if config.get(key):
            raise _other_kind(path, name, key)
    initialized = str(config.get("init_lora_weights", "")).lower()
    for prefix, name in _CHANGED_BASES.items():
        if initialized.startswith(prefix):
            raise _other_kind(path, name, "init_lora_weights")
    if config.get("alpha_pattern"):
        raise CheckpointError(
            f"{path}: gives tensors alphas of their own (alpha_pattern), which is not supported; "
            "merge the adapter with PEFT and load the merged model"
        )
    return AdapterConfig(config.get("lora_alpha"), config.get("use_rslora") is True)


def check_is_lora(path: Path, names: Iterable[str]) -> None:
    """Raise CheckpointError if a tensor's name shows that the adapter is not a LoRA."""
    for name in names:
        if name.endswith(".time_state"):
            raise CheckpointError(
                f"{path}: holds a tuned state ({name}), expected a LoRA; give it to the model as "
                "its state: load_state or --state"
            )
        for kind, pattern in _OTHER_KINDS:
            if re.search(pattern, name):
                raise _other_kind(path, kind, name)


def _other_kind(path: Path, kind: str, sign: str) -> CheckpointError:
    return CheckpointError(
        f"{path}: holds an adapter of the kind {kind} (by {sign}), expected a LoRA; merge it with "
        "the program that trained it and load the merged model"
    )
