"""The models inside rwkv-core: one that writes text, and random ones for `rwkv-core verify`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

DATA = Path(__file__).parent / "data"
NAME = "prose"
"""The model that commands take where none is named."""
MODELS: Mapping[str, Path] = {
    NAME: DATA / "rwkv-4-prose-7m.pth",
}
"""Trained models by the names that stand for their paths."""
TOKENIZER = DATA / "tokenizer.json"
FINGERPRINTS = frozenset({"a5ff45c50acf85da"})
"""Of the trained models in any format, such as prequantized."""
VERIFIED: Mapping[str, Path] = {
    "rwkv4": MODELS["prose"],
} | {
    version: DATA / f"{version}-random.safetensors"
    for version in ("rwkv5.0", "rwkv5.1", "rwkv5.2", "rwkv6", "rwkv7")
}
"""A model of each architecture; beside it lie its golden logits, see `golden_logits`."""


def golden_logits(model: Path) -> Path:
    """The file of a model's logits by the float64 reference, of some prompts."""
    return model.with_suffix(".golden.safetensors")
