"""Generation: samples tokens, gives out finished text, and keeps the state after this text.

Text is given out up to the place where a stop string may have begun or a character is unfinished.
So neither a part of a stop string nor half a character is ever given out.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from rwkv_core.errors import OptionError, RWKVError, StateError
from rwkv_core.generation.choosing import Seed, TokenChooser
from rwkv_core.generation.grammar import GrammarConstraint, GrammarProcessor, chosen_grammar
from rwkv_core.generation.sampling import is_drawable
from rwkv_core.generation.sampling_parameters import Sampling, is_whole, sampling_with
from rwkv_core.generation.stop_strings import encode_stop_strings
from rwkv_core.generation.transcript import Transcript
from rwkv_core.plugins.sampler import Processor
from rwkv_core.state import State, short_repr
from rwkv_core.util.one_thread import one_thread_at_a_time

if TYPE_CHECKING:
    from rwkv_core.model import Model
    from rwkv_core.tokenizer import Tokenizer

# <|endoftext|> of the Pile and World vocabularies: the token before each document.
FIRST_TOKEN = 0


@dataclass(frozen=True, eq=False)
class Generated:
    """Result of a generation.

    Attributes:
        text: the text, up to a stop string. The bytes of an incomplete last character are not in
            `text`, but in `state.pending`; the next generation completes the character.
        tokens: the tokens of `text`, which `state` has read.
        state: the state after the text.
        logits: the state's logits, float32 [V], an array of the backend.
        stop_reason: "length", "stop_string", "stop_token" (also where a grammar allows no further
            token) or "interrupted".
    """

    text: str
    tokens: list[int]
    state: State
    logits: Any
    stop_reason: str

    def __repr__(self) -> str:
        text = short_repr(self.text)
        return f"Generated({len(self.tokens)} tokens, {self.stop_reason}, text={text})"


@dataclass(frozen=True, eq=False)
class Progress:
    """Argument of `on_progress`, which is called after each token.

    Attributes:
        logits, state: the model's logits, float32 [V], and state after this token.
        output: the text yielded so far.
        progress: the text that this token added; "" while a stop string may have begun.
        tokens: the tokens read so far.
        total: the largest number of tokens.
        current: the number of tokens read so far.
    """

    logits: Any
    state: State
    output: str
    progress: str
    tokens: list[int]
    total: int
    current: int

    def __repr__(self) -> str:
        piece, output = short_repr(self.progress), short_repr(self.output)
        return f"Progress({self.current} of {self.total}, progress={piece}, output={output})"


OnToken = Callable[[Progress], object]


@one_thread_at_a_time("__next__", "run", "close")
class GenerationStream:
    """Continues from a state, as an iterator over non-empty pieces of text.

    Any exception while iterating, including Ctrl-C's KeyboardInterrupt, ends the generation and is
    raised again. `result` then has only the text yielded before it.

    Attributes:
        result: None while the stream runs; a Generated after the last piece or `close()`.
    """

    def __init__(
        self,
        model: Model,
        tokenizer: Tokenizer,
        state: State,
        /,
        max_tokens: int,
        *,
        stop_strings: Sequence[str] = (),
        stop_tokens: Collection[int] = (),
        ignore_eos: bool = False,
        seed: Seed = None,
        on_progress: OnToken | None = None,
        processors: Sequence[Processor | str] = (),
        json_schema: str | Mapping[str, Any] | None = None,
        regex: str | None = None,
        grammar: str | None = None,
        sampling: Sampling | None = None,
        **sampling_options: Any,
    ) -> None:
        """Check the arguments. Nothing is computed before the first piece is requested.

        Arguments:
            state: a single state. With an empty state, the model first reads token 0, which is
                <|endoftext|> in the Pile and World vocabularies.
            max_tokens: the largest number of tokens.
            stop_strings: the text ends before the first place where one of these strings begins.
            stop_tokens: the text ends before one of these tokens, which the state does not read.
            ignore_eos: continue after the token that ends a document (`tokenizer.end_of_text`),
                which is a stop token by default.
            seed: a number, a NumPy Generator to draw from, or None for a different text each time.
            on_progress: called with a Progress after each token. An exception from it ends the
                generation.
            processors: steps of the sampling chain, run after the penalties: functions (logits
                [V], tokens so far) -> logits, or samplers by name, such as "mirostat:tau=3";
                `rwkv-core list-plugins` lists them.
            json_schema, regex, grammar: restrict the text; at most one may be given. A JSON schema
                (an object or JSON), a regular expression in Rust's syntax, or a grammar in
                llguidance's Lark. These arguments need the extra `[grammar]`.
            sampling: a Sampling; by default the model's own distribution.
            sampling_options: temperature, top_p and other attributes of `Sampling`. They replace
                the attributes of `sampling`.

        Raises OptionError for an argument, StateError for a state that does not fit the model.
        """
        chosen = sampling_with(sampling, sampling_options)
        model.check_state(state)
        if not is_whole(max_tokens) or max_tokens < 0:
            raise OptionError(f"max_tokens: found {max_tokens!r}, expected a whole number >= 0")
        if on_progress is not None and not callable(on_progress):
            raise OptionError(f"on_progress: found {on_progress!r}, expected a function")
        stops = encode_stop_strings(stop_strings)
        self._grammar = _grammar_processor(tokenizer, json_schema, regex, grammar)
        if self._grammar is not None:
            processors = [*processors, self._grammar]
        self._chooser = TokenChooser(
            model, tokenizer, chosen, processors, stop_tokens, ignore_eos, seed
        )
        self._model, self._max_tokens, self._on_progress = model, max_tokens, on_progress
        self.result: Generated | None = None
        self._transcript = Transcript(model, tokenizer, state, stops)
        self._advancing = False
        if max_tokens == 0:
            self._end("length")

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        while self.result is None:
            given_out = self._transcript.given_out
            try:
                piece = self._advance()
            except BaseException:
                self._cut(given_out, "interrupted")
                raise
            if piece:
                return piece
        raise StopIteration

    def run(self) -> Generated:
        """Run to the end and return the result.

        Ctrl-C ends the generation after the last token that was read, and is raised again.
        """
        try:
            while self.result is None:
                self._advance()
        except KeyboardInterrupt:
            self._interrupt()
            raise
        return self.result

    def close(self) -> None:
        """End the generation. `result` holds the text yielded so far, and the state after it."""
        if self._advancing:
            raise StateError("no state is settled during on_progress: use its argument's .state")
        if self.result is None:
            self._cut(self._transcript.given_out, "interrupted")

    def _advance(self) -> str:
        """Generate one token. Return the text that it adds."""
        transcript = self._transcript
        given_out = transcript.given_out
        self._advancing = True
        try:
            self._step()
            self._report(transcript.text(given_out))
        finally:
            self._advancing = False
        return transcript.text(given_out)

    def _step(self) -> None:
        transcript = self._transcript
        if transcript.state.logits is None:
            transcript.begin(FIRST_TOKEN)
        if self._grammar is not None and self._grammar.is_complete(transcript.tokens):
            return self._end("stop_token")
        token = self._sample()
        if token in self._chooser.stop_tokens:
            return self._end("stop_token")
        transcript.read(token)
        if transcript.certain_stop() is not None:
            return self._end("stop_string")
        if len(transcript.tokens) == self._max_tokens:
            return self._end("length")
        transcript.given_out = transcript.certain()

    def _sample(self) -> int:
        transcript = self._transcript
        logits = self._model.to_numpy(transcript.state.logits)
        try:
            return self._chooser.choose(logits, transcript.tokens)
        except RWKVError:
            self._check_state(logits)
            raise

    def _check_state(self, logits: NDArray[Any]) -> None:
        """Raise StateError if the logits are NaN or infinite because of the initial state.

        The initial state is the cause if the same tokens give finite logits without this state.
        """
        if is_drawable(logits):
            return
        tokens = self._transcript.tokens or [FIRST_TOKEN]
        without, _ = self._model.forward(tokens)
        if is_drawable(self._model.to_numpy(without)):
            raise StateError(
                "state: the model's logits after it are not finite, and without it they "
                "are: its values are damaged, or too large for this dtype; begin without it"
            ) from None

    def _report(self, piece: str) -> None:
        if self._on_progress is None:
            return
        now = self.result or self._transcript
        tokens, state = list(now.tokens), now.state
        self._on_progress(
            Progress(
                logits=state.logits,
                state=state,
                output=self._transcript.text(),
                progress=piece,
                tokens=tokens,
                total=self._max_tokens,
                current=len(tokens),
            )
        )

    def _interrupt(self) -> None:
        """End after all tokens read so far."""
        self._transcript.drop_unread()
        if self.result is None:
            self._end("interrupted")

    def _end(self, reason: str) -> None:
        """End after the last token, or before a stop string if there is one."""
        transcript = self._transcript
        stop = transcript.first_stop()
        if stop is not None:
            return self._cut(stop, "stop_string")
        transcript.given_out = transcript.end()
        self._finish(transcript.tokens, transcript.state, reason)

    def _cut(self, place: int, reason: str) -> None:
        """End after the text up to byte `place`."""
        self._transcript.drop_unread()
        tokens, state = self._transcript.go_back(place)
        self._transcript.given_out = place
        self._finish(tokens, state, reason)

    def _finish(self, tokens: list[int], state: State, reason: str) -> None:
        self.result = Generated(self._transcript.text(), tokens, state, state.logits, reason)


def _grammar_processor(
    tokenizer: Tokenizer,
    json_schema: str | Mapping[str, Any] | None,
    regex: str | None,
    grammar: str | None,
) -> GrammarProcessor | None:
    """Return the processor for the given argument; None without argument. Raises OptionError."""
    found = chosen_grammar(json_schema, regex, grammar)
    return None if found is None else GrammarProcessor(GrammarConstraint(tokenizer, found))
