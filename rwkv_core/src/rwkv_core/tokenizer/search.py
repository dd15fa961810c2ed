"""Where a model's tokenizer is, when none is named: beside the model, or on the hub.

It is looked for before the model is fetched and loaded, as far as it can be.
"""

from __future__ import annotations

import os
from pathlib import Path

from rwkv_core import bundled
from rwkv_core.errors import DownloadError, TokenizerError
from rwkv_core.model_file import open_model, vocabulary_size
from rwkv_core.sources import fetch_beside, hub, local_file
from rwkv_core.tokenizer import Tokenizer, check_fits, load_tokenizer
from rwkv_core.tokenizer.world import FILE_NAME as WORLD
from rwkv_core.tokenizer.world import N_VOCAB as N_WORLD
from rwkv_core.util.addresses import scheme_of, shown

PILE = hub.HubFile("EleutherAI/gpt-neox-20b", "tokenizer.json")
"""The tokenizer of the RWKV-4 Pile models, which is that of GPT-NeoX-20B."""
N_PILE = 50277
_JSON = ("tokenizer.json", "20B_tokenizer.json")


def tokenizer_before_load(
    model: str | os.PathLike[str], given: Tokenizer | None = None
) -> Tokenizer | None:
    """Return the tokenizer of a model that is not loaded yet; None if only loading tells which.

    That is `given`, or one that lies beside the model. For an address, what lies beside it is
    fetched first, and the model's file after that. Raises TokenizerError, for one that does not
    fit the model too, and what opening a model raises.
    """
    if given is not None:
        if (known := vocabulary_size(model)) is not None:
            check_fits(given, known)
        return given
    if isinstance(model, str) and model in bundled.MODELS:
        return None
    fetch_tokenizers(model)
    path = local_file(model)
    with open_model(path) as checkpoint:
        embedding, path = checkpoint.tensors.get("emb.weight"), checkpoint.path
    if embedding is None or len(embedding.shape) != 2:
        return None  # which loading explains
    n_vocab = embedding.shape[0]
    try:
        tokenizer = load_tokenizer(find_tokenizer(path, n_vocab))
        check_fits(tokenizer, n_vocab)
        return tokenizer
    except TokenizerError:
        # A copy of the shipped model is known by its fingerprint, once it is loaded.
        if n_vocab != load_tokenizer(bundled.TOKENIZER).n_vocab:
            raise
        return None


def fetch_tokenizers(model: str | os.PathLike[str]) -> None:
    """Fetch the tokenizers beside a model's address, or for want of one the Pile models'.

    Does nothing for a path. Raises TokenizerError if there are none: a model of gigabytes would be
    fetched for nothing.
    """
    if not isinstance(model, str) or not scheme_of(model):
        return
    address = model
    names = (WORLD, *_JSON)
    try:
        found = [path for name in names if (path := fetch_beside(address, name))]
    # The server is not there: whether the cache has the model is for the next step to say.
    except DownloadError:
        return
    for path in found:
        try:
            load_tokenizer(path)
        except TokenizerError:
            # An error page that the server sent must not stay. The hub's client has checksums.
            if hub.parse(address) is None:
                path.unlink(missing_ok=True)
            raise
    if found:
        return
    if "rwkv" in address.lower() and "world" in address.lower():
        raise TokenizerError(
            f"no {' or '.join(names)} beside {shown(address)}: name one with tokenizer=... "
            f"(--tokenizer)\nWorld models take {WORLD}, from https://github.com/BlinkDL/ChatRWKV"
        )
    _pile(f"beside {shown(address)}")


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
        return _pile(f"in {path.parent}")
    advice = "the file published with the model"
    if n_vocab == N_WORLD:
        advice = f"World models take {WORLD}, from https://github.com/BlinkDL/ChatRWKV"
    raise TokenizerError(
        f"no {' or '.join(names)} in {path.parent}: name one with tokenizer=... (--tokenizer)\n"
        f"this model knows {n_vocab} tokens: {advice}"
    )


def _pile(where: str) -> Path:
    try:
        return hub.fetch(PILE)
    except DownloadError as error:
        raise TokenizerError(
            f"no {' or '.join(_JSON)} {where}, and {error}\n"
            f"get https://huggingface.co/{PILE.repo}/resolve/main/{PILE.path} by other means and "
            "name it with tokenizer=... (--tokenizer)"
        ) from None
