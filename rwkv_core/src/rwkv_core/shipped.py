"""The model that ships inside rwkv-core, so that the first run needs no download."""

from __future__ import annotations

import os
from pathlib import Path

NAME = "prose"
DATA = Path(__file__).parent / "data"
MODEL = DATA / "rwkv-4-prose-7m.pth"


def resolve(model: str | os.PathLike[str]) -> str | os.PathLike[str]:
    """The path that `model` stands for: "prose" is the shipped model, all else a path."""
    return MODEL if model == NAME else model
