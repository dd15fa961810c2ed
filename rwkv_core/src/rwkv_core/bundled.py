"""The bundled models: two trained models that write text, and random models for `verify`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

DATA = Path(__file__).parent / "data"
NAME = "prose"
"""The model that commands use if none is named."""
MODELS: Mapping[str, Path] = {
    NAME: DATA / "rwkv-4-prose-7m.pth",
    "prose7": DATA / "rwkv-7-prose-7m.pth",
}
"""Paths of the trained models, by the names that users may give."""
TOKENIZER = DATA / "tokenizer.json"
FINGERPRINTS = frozenset({"a5ff45c50acf85da", "00b06b7821c093e8"})
"""Fingerprints of the trained models, the same in every format."""
VERIFIED: Mapping[str, Path] = {
    "rwkv4": MODELS["prose"],
    "rwkv7": MODELS["prose7"],
} | {
    version: DATA / f"{version}-random.safetensors"
    for version in ("rwkv5.0", "rwkv5.1", "rwkv5.2", "rwkv6")
}
"""Paths of one model of each architecture, for `verify`; see `golden_logits`."""


def golden_logits(model: Path) -> Path:
    """Return the path, beside the model, of the float64 reference's logits for some prompts."""
    return model.with_suffix(".golden.safetensors")
