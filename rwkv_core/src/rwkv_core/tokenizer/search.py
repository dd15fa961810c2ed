"""Where a model's tokenizer is, when none is named: beside the model, or on the hub."""

from __future__ import annotations

import os
from pathlib import Path

from rwkv_core.errors import DownloadError, TokenizerError
from rwkv_core.sources import hub
from rwkv_core.tokenizer.world import FILE_NAME as WORLD
from rwkv_core.tokenizer.world import N_VOCAB as N_WORLD

PILE = hub.HubFile("EleutherAI/gpt-neox-20b", "tokenizer.json")
"""The tokenizer of the RWKV-4 Pile models, which is that of GPT-NeoX-20B."""
N_PILE = 50277
_JSON = ("tokenizer.json", "20B_tokenizer.json")


def find_tokenizer(model_path: str | os.PathLike[str], n_vocab: int) -> Path:
    """The file of the tokenizer for a model of `n_vocab` tokens.

    It is looked for beside the model file; for one in the hub client's cache, in the same commit of
    its repository; for the vocabulary of the Pile models, in the repository that it is from.

    Raises TokenizerError, which says what to get, if there is none or it cannot be fetched.
    """
    path = Path(model_path)
    # Larger than any other RWKV-4 vocabulary: in a smaller model, World's does not fit.
    names = (WORLD, *_JSON) if n_vocab >= N_WORLD else _JSON
    for name in names:
        if path.with_name(name).is_file():
            return path.with_name(name)
    try:
        for name in names:
            if found := hub.beside(path, name):
                return found
    # Such as no connection: the model is there, and its tokenizer may come from elsewhere.
    except DownloadError:
        pass
    if n_vocab == N_PILE:
        return _pile(path)
    advice = "the file published with the model"
    if n_vocab == N_WORLD:
        advice = f"World models take {WORLD}, from https://github.com/BlinkDL/ChatRWKV"
    raise TokenizerError(
        f"no {' or '.join(names)} in {path.parent}: name one with tokenizer=... (--tokenizer)\n"
        f"this model knows {n_vocab} tokens: {advice}"
    )


def _pile(path: Path) -> Path:
    try:
        return hub.fetch(PILE)
    except DownloadError as error:
        raise TokenizerError(
            f"no {' or '.join(_JSON)} in {path.parent}, and {error}\n"
            f"get https://huggingface.co/{PILE.repo}/resolve/main/{PILE.path} by other means and "
            "name it with tokenizer=... (--tokenizer)"
        ) from None
