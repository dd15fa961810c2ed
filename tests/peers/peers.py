"""Other installable implementations of RWKV-4, with one small interface."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np


class Peer(ABC):
    """A model of a peer on the CPU, in float32 unless something else is asked for."""

    @abstractmethod
    def forward(self, tokens: list[int], state: Any = None) -> tuple[np.ndarray, Any]:
        """Logits [V] after the last token, and the state there; `state` may be changed."""


class Transformers(Peer):
    """RwkvForCausalLM, from a configuration and a state dict, or from a folder."""

    def __init__(self, weights: Mapping[str, np.ndarray]) -> None:
        import torch
        from transformers import RwkvConfig, RwkvForCausalLM

        self.model = RwkvForCausalLM(RwkvConfig(**transformers_config(weights))).eval()
        state_dict = {name: torch.from_numpy(a) for name, a in transformers_names(weights).items()}
        self.model.load_state_dict(state_dict, strict=True)

    @classmethod
    def of_folder(cls, folder: Path, dtype: str) -> Transformers:
        """Load a model like the package's users, with weights in `dtype`."""
        from transformers import RwkvForCausalLM

        peer = cls.__new__(cls)
        peer.model = RwkvForCausalLM.from_pretrained(folder, dtype=dtype).eval()
        return peer

    def forward(self, tokens: list[int], state: Any = None) -> tuple[np.ndarray, Any]:
        import torch

        with torch.inference_mode():
            out = self.model(torch.tensor([tokens]), state=state, use_cache=True, logits_to_keep=1)
        return out.logits[0, -1].float().numpy(), out.state


class Rwkv(Peer):
    """The `rwkv` package of the model's author, from a .pth file."""

    def __init__(self, path: Path, strategy: str = "cpu fp32") -> None:
        # Read when the package is imported. TorchScript, which torch warns of, is off unless
        # asked for: it changes the speed and not the logits.
        os.environ.setdefault("RWKV_JIT_ON", "0")
        os.environ.setdefault("RWKV_CUDA_ON", "0")
        from rwkv.model import RWKV

        self.model = RWKV(model=str(path), strategy=strategy, verbose=False)

    def forward(self, tokens: list[int], state: Any = None) -> tuple[np.ndarray, Any]:
        logits, state = self.model.forward(tokens, state)
        return logits.float().numpy(), state


PARTS = {"att": "attention", "ffn": "feed_forward"}
MIXES = {"k": "key", "v": "value", "r": "receptance"}


def transformers_config(weights: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Return the RwkvConfig of a model with BlinkDL's state dict `weights`."""
    n_vocab, n_embd = weights["emb.weight"].shape
    return {
        "vocab_size": n_vocab,
        "hidden_size": n_embd,
        "num_hidden_layers": sum(name.endswith("ln1.weight") for name in weights),
        "intermediate_size": len(weights["blocks.0.ffn.key.weight"]),
        "tie_word_embeddings": False,
        # It halves the residual stream every so many layers, for the sake of float16 alone.
        "rescale_every": 0,
    }


def transformers_names(weights: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """BlinkDL's state dict under the names that transformers gives the same tensors."""
    return {_transformers_name(name): array for name, array in weights.items()}


def _transformers_name(name: str) -> str:
    if name == "head.weight":
        return name
    if name == "emb.weight":
        return "rwkv.embeddings.weight"
    parts = [PARTS.get(part, part) for part in name.replace("ln0", "pre_ln").split(".")]
    if parts[-1].startswith("time_mix_"):
        parts[-1] = "time_mix_" + MIXES[parts[-1][-1]]
    return ".".join(["rwkv", *parts])
