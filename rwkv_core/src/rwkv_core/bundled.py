"""The model that ships inside rwkv-core, so that the first run needs no download."""

from __future__ import annotations

from pathlib import Path

NAME = "prose"
DATA = Path(__file__).parent / "data"
MODEL = DATA / "rwkv-4-prose-7m.pth"
TOKENIZER = DATA / "tokenizer.json"
FINGERPRINT = "a5ff45c50acf85da"
"""Fingerprint of this model, the same in every format."""
