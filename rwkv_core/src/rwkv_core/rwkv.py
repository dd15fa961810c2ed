"""RWKV: a model, a tokenizer and a running state, which is what most users hold."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Iterable, Sequence
from inspect import Parameter
from pathlib import Path
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeVar

from rwkv_core import bundled
from rwkv_core.errors import OptionError
from rwkv_core.generation.sampling_parameters import Sampling, check_tokens
from rwkv_core.generation.stream import Generated, GenerationStream
from rwkv_core.generation.transcript import read
from rwkv_core.loading import load
from rwkv_core.model import Model
from rwkv_core.state import State
from rwkv_core.tokenizer import Tokenizer, as_tokenizer, check_fits, load_tokenizer
from rwkv_core.tokenizer.search import find_tokenizer, tokenizer_before_load
from rwkv_core.util.one_thread import one_thread_at_a_time
from rwkv_core.util.progress import OnProgress

if TYPE_CHECKING:
    import tokenizers


P = ParamSpec("P")
R = TypeVar("R")


def _generation_arguments(
    of: Callable[Concatenate[GenerationStream, Model, Tokenizer, State, P], None],
) -> Callable[[Callable[..., R]], Callable[Concatenate[RWKV, P], R]]:
    """Decorate a method that passes on the arguments of `of`, all but the model, tokenizer, state.

    Type checkers and `help()` then show these, and each parameter of sampling.
    """
    given = list(inspect.signature(of).parameters.values())
    kept = [one for one in given[4:] if one.kind is not Parameter.VAR_KEYWORD]
    chosen = [
        Parameter(one.name, Parameter.KEYWORD_ONLY, default=one.default, annotation=one.annotation)
        for one in inspect.signature(Sampling).parameters.values()
    ]

    def decorate(method: Callable[..., R]) -> Callable[Concatenate[RWKV, P], R]:
        own = inspect.signature(method)
        method.__signature__ = own.replace(  # type: ignore[attr-defined]
            parameters=[given[0], *kept, *chosen]
        )
        return method

    return decorate


@one_thread_at_a_time(
    "load_context", "generate", "stream", "get_state", "set_state", "reset_state",
    "save_state", "load_state",
)  # fmt: skip
class RWKV:
    """A model, its tokenizer, and a state that runs along with what is read and generated.

    A call that raises leaves the running state as it was, but for Ctrl-C in `generate`. A call made
    while a stream is open ends that stream first: the running state is then that of the text which
    the stream has given out.

    Attributes:
        model: the Model.
        tokenizer: the Tokenizer.
    """

    def __init__(
        self,
        model: str | os.PathLike[str] | Model,
        backend: str | None = None,
        tokenizer: str | os.PathLike[str] | Tokenizer | tokenizers.Tokenizer | None = None,
        **backend_options: Any,
    ) -> None:
        """Load what is not loaded yet.

        Arguments:
            model: a Model, or what `load` takes: a model file's path or address, or "prose" for
                the shipped one.
            backend, backend_options: as for `load`, which takes lora too.
            tokenizer: a Tokenizer, one of the `tokenizers` library, or a file's path or address;
                None takes the one beside the model file, for a Pile model else the hub's.

        Raises TokenizerError for the tokenizer, and what `load` raises.
        """
        if isinstance(model, Model) and (backend or backend_options):
            options = ", ".join(backend_options) or "backend"
            raise OptionError(
                f"{options}: the model given is loaded already, expected no such option"
            )
        # The tokenizer first where it can be: its mistakes show before a long load.
        given = None if tokenizer is None else as_tokenizer(tokenizer)
        if not isinstance(model, Model):
            given = tokenizer_before_load(model, given)
        self.model = model if isinstance(model, Model) else load(model, backend, **backend_options)
        self.tokenizer = given or load_tokenizer(_tokenizer_of(self.model))
        check_fits(self.tokenizer, self.model.n_vocab)
        self._state = self.model.empty_state()
        self._stream: GenerationStream | None = None
        self._last: Generated | None = None

    def __repr__(self) -> str:
        read = "a text" if self._state.logits is not None else "nothing"
        return f"RWKV({self.model!r}, has read {read})"

    def load_context(
        self, context: str | Sequence[int], *, on_progress: OnProgress | None = None
    ) -> None:
        """Read text, or tokens, after what has been read already. Empty ones change nothing.

        Arguments:
            on_progress: called with the tokens read so far and in all, from 0 on, after each chunk
                of up to 512. An exception, Ctrl-C's too, leaves the running state as it was.

        Raises TokenizerError for text that UTF-8 cannot express, OptionError for tokens.
        """
        if isinstance(context, bytes | bytearray) or not isinstance(context, Iterable):
            raise OptionError(f"context: found {context!r}, expected text or a list of tokens")
        tokens = self.tokenizer.encode(context) if isinstance(context, str) else list(context)
        check_tokens("context", tokens)
        if on_progress is not None and not callable(on_progress):
            raise OptionError(f"on_progress: found {on_progress!r}, expected a function")
        state = self.get_state()
        if tokens:
            self._state = read(self.model, self.tokenizer, state, tokens, on_progress)

    @_generation_arguments(GenerationStream.__init__)
    def generate(self, max_tokens: int, **options: Any) -> Generated:
        """Continue by at most `max_tokens` tokens, or to the end of the document.

        Ctrl-C, and the stop button of a notebook, end it after the last whole token: the running
        state is then that of the text so far, `last` holds that text, and KeyboardInterrupt is
        raised, so that a loop over prompts and the cell it is in end too.

        Arguments: see `GenerationStream`. Raises OptionError for one. The running state moves on
        when the call returns.
        """
        running = self.stream(max_tokens, **options)
        try:
            result = running.run()
        except KeyboardInterrupt:
            self.get_state()
            raise
        except BaseException:
            self._stream = None
            raise
        self.get_state()
        return result

    @_generation_arguments(GenerationStream.__init__)
    def stream(self, max_tokens: int, **options: Any) -> GenerationStream:
        """As `generate`, as an iterator over pieces of text; its `result` is the Generated.

        To stop early, leave the loop, by Ctrl-C too: the running state is then that of the pieces
        received, and `last` holds them.
        """
        running = GenerationStream(
            self.model, self.tokenizer, self.get_state(), max_tokens, **options
        )
        self._stream = running
        return running

    @property
    def last(self) -> Generated | None:
        """What the last generation gave, one that Ctrl-C ended too; None before the first."""
        self.get_state()  # ends a stream that is open
        return self._last

    def get_state(self) -> State:
        """The running state, which holds its logits too. It never changes in place."""
        if self._stream is not None:
            self._stream.close()
            self._last = self._stream.result
            assert self._last is not None
            self._state, self._stream = self._last.state, None
        return self._state

    def set_state(self, state: State) -> None:
        """Go on from `state`. Raises StateError if it does not fit the model."""
        self.model.check_state(state)
        self.get_state()  # ends a stream that is open
        self._state = state

    def empty_state(self) -> State:
        """A state that has read nothing. The running state stays as it is."""
        return self.model.empty_state()

    def reset_state(self) -> None:
        """Forget everything read."""
        self.set_state(self.model.empty_state())

    def save_state(self, path: str | os.PathLike[str]) -> None:
        """Write the running state to a file; `load_state` reads it on any backend."""
        self.model.save_state(path, self.get_state())

    def load_state(self, path: str | os.PathLike[str]) -> None:
        """Go on from a saved state, or a state-tuned file.

        Raises StateError if the file is not one of this model's.
        """
        self.set_state(self.model.load_state(path))


def _tokenizer_of(model: Model) -> Path:
    if model.fingerprint in bundled.FINGERPRINTS:
        return bundled.TOKENIZER
    return find_tokenizer(model.path, model.n_vocab)
