"""Draws the tokens of one generation: the sampling chain with its random generator and counts."""

from __future__ import annotations

import secrets
from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from rwkv_core.errors import OptionError
from rwkv_core.generation.samplers import started
from rwkv_core.generation.sampling import TokenCounts, check_vocabulary, sample
from rwkv_core.generation.sampling_parameters import Sampling, check_tokens, is_whole
from rwkv_core.plugins.sampler import Processor

if TYPE_CHECKING:
    from rwkv_core.model import Model
    from rwkv_core.tokenizer import Tokenizer

Seed = int | np.random.Generator | None


class TokenChooser:
    """Draws the tokens of one generation.

    Attributes:
        stop_tokens: the tokens that end the generation.
    """

    def __init__(
        self,
        model: Model,
        tokenizer: Tokenizer,
        sampling: Sampling,
        processors: Sequence[Processor | str],
        stop_tokens: Collection[int],
        ignore_eos: bool,
        seed: Seed,
    ) -> None:
        """See `GenerationStream` for the arguments. Raises OptionError for a wrong argument."""
        self._processors = started(processors)
        if not isinstance(ignore_eos, bool):
            raise OptionError(f"ignore_eos: found {ignore_eos!r}, expected True or False")
        self.stop_tokens = _stop_tokens(stop_tokens)
        check_vocabulary(sampling, self.stop_tokens, model.n_vocab)
        if tokenizer.end_of_text is not None and not ignore_eos:
            self.stop_tokens |= {tokenizer.end_of_text}
        self._rng = _generator(model, seed)
        # Tokens without bytes are never sampled, unless they are stop tokens.
        padding = range(tokenizer.n_vocab, model.n_vocab)
        silent = [t for t in (*tokenizer.holes, *padding) if t not in self.stop_tokens]
        self._sampling = replace(sampling, banned_tokens=(*sampling.banned_tokens, *silent))
        self._counts = TokenCounts()

    def choose(self, logits: NDArray[Any], history: Sequence[int]) -> int:
        """Return the next token, drawn from `logits` [V]; `history` are the generation's tokens.

        Raises what `sample` or a processor raises.
        """
        return sample(logits, self._sampling, history, self._rng, self._processors, self._counts)


def _stop_tokens(tokens: Collection[int]) -> frozenset[int]:
    if isinstance(tokens, str) or not isinstance(tokens, Collection):
        raise OptionError(f"stop_tokens: found {tokens!r}, expected a list of tokens")
    check_tokens("stop_tokens", tokens)
    return frozenset(tokens)


def _generator(model: Model, seed: Seed) -> np.random.Generator:
    if isinstance(seed, np.random.Generator):
        return seed
    if seed is not None and (not is_whole(seed) or seed < 0):
        raise OptionError(f"seed: found {seed!r}, expected a whole number >= 0 or None")
    return np.random.default_rng(
        model.ops.broadcast(secrets.randbits(128) if seed is None else seed)
    )
