"""RWKV: a model with its tokenizer and a running state, for most users."""

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
    """Decorate a method of RWKV that calls `of` with its own arguments.

    The method adds the model, the tokenizer and the state, and its other arguments are those of
    `of`. Type checkers and `help()` then show them, and each parameter of sampling, as arguments of
    the method.
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
    """A model, its tokenizer, and the running state of the text read and generated so far.

    A call that raises an exception leaves the running state unchanged, except for Ctrl-C in
    `generate`. A call while a stream is open first ends the stream. The running state is then the
    state after the text that the stream has yielded.

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
        """Load the model and its tokenizer.

        Arguments:
            model: a loaded Model; or a model file's path or address, or "prose" or "prose7", as for
                `load`.
            backend, backend_options: as for `load`; lora is one of the options.
            tokenizer: a Tokenizer, one of the `tokenizers` library, or a file's path or address.
                None takes the file beside the model. For an RWKV-4 Pile model without such a file,
                the tokenizer is downloaded from the hub.

        Raises TokenizerError if there is no tokenizer or it does not fit the model, and the errors
        of `load`.
        """
        if isinstance(model, Model) and (backend or backend_options):
            options = ", ".join(backend_options) or "backend"
            raise OptionError(
                f"{options}: the model given is loaded already, expected no such option"
            )
        # If possible the tokenizer comes first, so that its errors show before a long load.
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
        """Read text or tokens, starting from the running state. Empty text changes nothing.

        Arguments:
            on_progress: called with the number of tokens read so far and in all, at 0 and after
                each chunk of up to 512. An exception, also Ctrl-C, leaves the running state
                unchanged.

        Raises TokenizerError for text that UTF-8 cannot express, and OptionError for tokens outside
        the vocabulary.
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
        """Generate at most `max_tokens` tokens, up to the end of the document.

        Returns a Generated. Afterwards, the running state is the state after its text. Ctrl-C, or
        the stop button of a notebook, ends the generation after the last complete token and raises
        KeyboardInterrupt. The running state is then the state after the text so far, and `last`
        holds this text.

        Arguments: see `GenerationStream`. Raises OptionError for a wrong argument.
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
        """Generate like `generate`, as an iterator over pieces of text; `result` is the Generated.

        To stop early, leave the loop, for example with Ctrl-C. The running state is then the state
        after the pieces received, and `last` holds these pieces.
        """
        running = GenerationStream(
            self.model, self.tokenizer, self.get_state(), max_tokens, **options
        )
        self._stream = running
        return running

    @property
    def last(self) -> Generated | None:
        """The result of the last generation, also if Ctrl-C ended it; None before the first one."""
        self.get_state()  # ends a stream that is open
        return self._last

    def get_state(self) -> State:
        """Return the running state, with its logits. The returned object never changes."""
        if self._stream is not None:
            self._stream.close()
            self._last = self._stream.result
            assert self._last is not None
            self._state, self._stream = self._last.state, None
        return self._state

    def set_state(self, state: State) -> None:
        """Continue from `state`. Raises StateError if it does not fit the model."""
        self.model.check_state(state)
        self.get_state()  # ends a stream that is open
        self._state = state

    def empty_state(self) -> State:
        """Return the initial state. The running state does not change."""
        return self.model.empty_state()

    def reset_state(self) -> None:
        """Forget everything read."""
        self.set_state(self.model.empty_state())

    def save_state(self, path: str | os.PathLike[str]) -> None:
        """Write the running state to a file; `load_state` reads it on any backend.

        Raises StateError if the file cannot be written.
        """
        self.model.save_state(path, self.get_state())

    def load_state(self, path: str | os.PathLike[str]) -> None:
        """Continue from a saved state, or a state-tuned file.

        Raises StateError if the file is not a state of this model.
        """
        self.set_state(self.model.load_state(path))


def _tokenizer_of(model: Model) -> Path:
    if model.fingerprint in bundled.FINGERPRINTS:
        return bundled.TOKENIZER
    return find_tokenizer(model.path, model.n_vocab)
