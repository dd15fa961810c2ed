"""Chooses a model's template: by the given name, or by the model's name and vocabulary."""

from __future__ import annotations

import re
from pathlib import Path

from rwkv_core.errors import OptionError
from rwkv_core.server.templates.base import Template
from rwkv_core.server.templates.dialogue import DIALOGUES
from rwkv_core.tokenizer.world import N_VOCAB as N_WORLD


def check_template(named: str | None) -> Template | None:
    """Return the template with this name, or in this Jinja file; None if `named` is None.

    Raises OptionError if there is no such template, or the file is not a working template.
    """
    if named is None:
        return None
    if named in DIALOGUES:
        return DIALOGUES[named]
    if not Path(named).is_file():
        raise OptionError(
            f"--chat-template: found {named!r}, expected one of {', '.join(DIALOGUES)}, or a "
            "Jinja file"
        )
    from rwkv_core.server.templates.jinja_file import JinjaTemplate

    return JinjaTemplate(Path(named))


def template_of(model_name: str, n_vocab: int) -> Template:
    """Return the template for a model with this file name and vocabulary size."""
    name = model_name.lower()
    if "raven" in name:
        return DIALOGUES["raven"]
    if re.search(r"(?<![a-z0-9])g[01][a-z]?(?![a-z0-9])", name):
        return DIALOGUES["g1"]
    if n_vocab >= N_WORLD or "world" in name:
        return DIALOGUES["world"]
    return DIALOGUES["q-and-a"]
