"""Generation with forced tokens in the real sampling chain, so that token borders are known."""

from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer as Library
from tokenizers import decoders, models, pre_tokenizers

import rwkv_core
from pth_writer import write_pth
from random_model import random_weights
from rwkv_core import RWKV, Generated, Model, State
from rwkv_core.tokenizer import Tokenizer
from rwkv_core.tokenizer.byte_level import byte_alphabet

EMOJI = "\N{GRINNING FACE}"
# Tokens of several bytes, some of which begin or end inside a character.
PIECES = [b"ab", b"bc", b"abc", b"a\n", b"\n\n", b"b\n\nQ", b"a\xf0\x9f", b"\x98\x80b", b"\x80\n"]
PADDING = 5


def write_model(folder: Path) -> Path:
    """A model beside its tokenizer: <|endoftext|>, every byte, PIECES; and padding."""
    written = {byte: character for character, byte in byte_alphabet().items()}
    tokens = [bytes([byte]) for byte in range(256)] + PIECES
    words = ["<|endoftext|>", *("".join(map(written.__getitem__, token)) for token in tokens)]
    library = Library(models.BPE(vocab={word: i for i, word in enumerate(words)}, merges=[]))
    library.add_special_tokens(["<|endoftext|>"])
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = decoders.ByteLevel()
    library.save(str(folder / "tokenizer.json"))
    write_pth(folder / "model.pth", random_weights(2, 32, len(words) + PADDING, seed=3))
    return folder


@cache
def load(path: Path, backend: str) -> Model:
    return rwkv_core.load(path, backend=backend)


def load_with_context(folder: Path, backend: str) -> RWKV:
    """Return an RWKV that has read a few tokens."""
    rwkv = RWKV(load(folder / "model.pth", backend))
    rwkv.load_context("Q: ")
    return rwkv


def tokens_of(tokenizer: Tokenizer, pieces: Sequence[bytes]) -> list[int]:
    """The token that stands for each of `pieces`."""
    known = {tokenizer.token_bytes(token): token for token in range(tokenizer.n_vocab)}
    return [known[piece] for piece in pieces]


def single(text: str) -> list[bytes]:
    """Return the bytes of `text`, one by one."""
    return [bytes([byte]) for byte in text.encode()]


def force(tokens: Sequence[int]) -> Callable[[np.ndarray, Sequence[int]], np.ndarray]:
    """A processor that leaves only the next of `tokens` to choose."""

    def only_next(logits: np.ndarray, history: Sequence[int]) -> np.ndarray:
        token = tokens[len(history)]
        return np.where(np.arange(len(logits)) == token, 0.0, -np.inf)

    return only_next


def say(rwkv: RWKV, pieces: Sequence[bytes], stops: Sequence[str] = ()) -> Generated:
    """Generate `pieces`, a token each. The text is given out piece by piece as it is."""
    tokens = tokens_of(rwkv.tokenizer, pieces)
    stream = rwkv.stream(len(tokens), stop_strings=stops, processors=[force(tokens)])
    received = list(stream)
    assert stream.result is not None
    assert "".join(received) == stream.result.text
    assert all(received)
    assert rwkv.get_state() is stream.result.state
    return stream.result


def stepped(rwkv: RWKV, start: State, tokens: Sequence[int]) -> State:
    """The state after `tokens`, read one by one."""
    for token in tokens:
        _, start = rwkv.model.forward([token], start)
    return start


def same(model: Model, one: State, other: State) -> bool:
    """Return whether two states are equal, bit for bit."""
    return np.array_equal(model.to_numpy(one), model.to_numpy(other)) and np.array_equal(
        model.to_numpy(one.logits), model.to_numpy(other.logits)
    )


def close(model: Model, one: State, other: State) -> bool:
    """Return whether two states are equal up to the rounding of sums in another order.

    Quantized products round activations too: to 14 bits of the largest, in each of a layer's seven.
    """
    atol = 1e-4 if model.ops.dtype == "float32" else 1e-3
    return np.allclose(model.to_numpy(one), model.to_numpy(other), rtol=1e-3, atol=atol)
