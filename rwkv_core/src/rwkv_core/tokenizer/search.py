"""Finds a model's tokenizer beside the model, or on the hub, if the user names no tokenizer.

If possible, this happens before the model is downloaded and loaded.
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
"""GPT-NeoX-20B's tokenizer, which all RWKV-4 models trained on the Pile use."""
N_PILE = 50277
_JSON = ("tokenizer.json", "20B_tokenizer.json")


def tokenizer_before_load(
    model: str | os.PathLike[str], given: Tokenizer | None = None
) -> Tokenizer | None:
    """Return the tokenizer of a model that is not loaded yet; None if it depends on the model.

    The result is `given`, or a tokenizer beside the model. For an address, tokenizers beside it are
    downloaded first, then the model's file. Raises TokenizerError, also if the tokenizer does not
    fit the model, and the errors of `open_model`.
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
        return None  # loading raises the error
    n_vocab = embedding.shape[0]
    try:
        tokenizer = load_tokenizer(find_tokenizer(path, n_vocab))
        check_fits(tokenizer, n_vocab)
        return tokenizer
    except TokenizerError:
        # A copy of a bundled model is recognized by its fingerprint, after loading.
        if n_vocab != load_tokenizer(bundled.TOKENIZER).n_vocab:
            raise
        return None


def fetch_tokenizers(model: str | os.PathLike[str]) -> None:
    """Download the tokenizers beside a model's address; if there are none, download `PILE`.

    Does nothing for a path. Raises TokenizerError if no tokenizer is found, before gigabytes of the
    model are downloaded in vain.
    """
    if not isinstance(model, str) or not scheme_of(model):
        return
    address = model
    names = (WORLD, *_JSON)
    try:
        found = [path for name in names if (path := fetch_beside(address, name))]
    # The server cannot be reached; the next step tells whether the cache has the model.
    except DownloadError:
        return
    for path in found:
        try:
            load_tokenizer(path)
        except TokenizerError:
            # The file may be a server's error page, which must not stay in the cache. Files from
            # the hub's client are checked.
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
    """Return the tokenizer's file for a model of `n_vocab` tokens.

    The model's folder is searched first. If it has no tokenizer and the model is in the hub
    client's cache, the same commit of the model's repository is searched on the hub. If that fails
    and the model is an RWKV-4 Pile model, its tokenizer `PILE` is downloaded.

    Raises TokenizerError, which says what to download, if no tokenizer is found or downloaded.
    """
    path = Path(model_path)
    # World's vocabulary is the largest, so it does not fit a smaller model.
    names = (WORLD, *_JSON) if n_vocab >= N_WORLD else _JSON
    for name in names:
        if path.with_name(name).is_file():
            return path.with_name(name)
    try:
        for name in names:
            if found := hub.beside(path, name):
                return found
    # For example no connection: the model is here, and its tokenizer may come from elsewhere.
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
