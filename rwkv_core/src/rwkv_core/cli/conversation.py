"""A conversation: turns as text in a template, and the states that /undo and /retry return to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from rwkv_core.cli.chat_transcript import ChatTranscript
from rwkv_core.cli.progress import read_prompt
from rwkv_core.errors import StateError
from rwkv_core.state import load_transcript

if TYPE_CHECKING:
    import os

    from rwkv_core.cli.chat_settings import Settings
    from rwkv_core.generation.stream import GenerationStream
    from rwkv_core.rwkv import RWKV
    from rwkv_core.state import State


@dataclass
class _Turn:
    question: str
    before: State
    asked: State  # the question has been read, the answer is about to begin
    stream: GenerationStream | None
    answer: str = ""

    def settle(self) -> None:
        """Keep only the stream's text: the stream holds arrays of the vocabulary's size."""
        if self.stream is not None:
            self.stream.close()
            assert self.stream.result is not None
            self.answer, self.stream = self.stream.result.text, None


class Conversation:
    """A conversation in the form that RWKV-4 Raven was trained on:

        User: a question

        Bot: an answer

    The conversation reads and writes the running state of the RWKV that the constructor gets.
    Between calls, this state is always at the end of a turn.

    Attributes:
        user, bot: names of the speakers.
        system: the text before the first turn.
        settings: settings of the generation. An answer ends where they say, or where the next turn
            would begin.
    """

    def __init__(self, rwkv: RWKV, user: str, bot: str, system: str, settings: Settings) -> None:
        """Begin with `system`. Raises OptionError for an option among the settings."""
        self._rwkv, self.user, self.bot, self.settings = rwkv, user, bot, settings
        # A stream of no tokens checks the options now, before the first answer.
        self._stream(0)
        self.begin(system)

    def begin(self, system: str) -> None:
        """Start a new conversation, with `system` before the first turn."""
        before = self._rwkv.get_state()
        self._rwkv.reset_state()
        try:
            read_prompt(self._rwkv, system)
        except BaseException:
            self._rwkv.set_state(before)
            raise
        self.system = system
        self._start: State | None = self._rwkv.get_state()
        self._earlier: list[tuple[str, str]] = []
        self._turns: list[_Turn] = []

    def ask(self, text: str) -> GenerationStream:
        """Read the user's text. Return a stream that generates the answer."""
        self._settle()
        before = self._rwkv.get_state()
        apart = "" if before.logits is None else "\n\n"
        read_prompt(self._rwkv, f"{apart}{self.user}: {text}\n\n{self.bot}:")
        asked = self._rwkv.get_state()
        stream = self._stream(self.settings.max_tokens)
        self._turns.append(_Turn(text, before, asked, stream))
        return stream

    def retry(self) -> GenerationStream:
        """Return a stream that generates another answer in place of the last.

        Raises StateError if there is no answer.
        """
        turn = self._last_turn()
        self._rwkv.set_state(turn.asked)
        turn.stream = stream = self._stream(self.settings.max_tokens)
        return stream

    def undo(self) -> str:
        """Remove the last turn. Return its question. Raises StateError if there is no turn."""
        turn = self._last_turn()
        self._rwkv.set_state(turn.before)
        self._turns.pop()
        return turn.question

    def reset(self) -> None:
        """Return to the state after `system`, before the first turn."""
        if self._start is None:
            return self.begin(self.system)
        self._rwkv.set_state(self._start)
        self._earlier.clear()
        self._turns.clear()

    def transcript(self) -> ChatTranscript:
        """Return the text of the conversation so far."""
        self._settle()
        turns = [*self._earlier, *((turn.question, turn.answer) for turn in self._turns)]
        return ChatTranscript(self.user, self.bot, self.system, turns)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the state and the transcript to a file. Raises StateError if that fails."""
        state = self._rwkv.get_state()
        self._rwkv.model.save_state(path, state, self.transcript().to_json())

    def load(self, path: str | os.PathLike[str]) -> ChatTranscript | None:
        """Continue from a saved state, with the names and the text that were saved with it.

        Returns the transcript, or None if no transcript was saved. `undo` cannot remove turns from
        before the saved state. Raises StateError if the file is not a state of this model.
        """
        from rwkv_core.checkpoint.tuned_state import is_tuned_state

        state = self._rwkv.model.load_state(path)
        transcript = "" if is_tuned_state(path) else load_transcript(path)
        found = ChatTranscript.from_json(transcript)
        self._rwkv.set_state(state)
        self._turns.clear()
        self._earlier = [] if found is None else found.turns
        if found is not None:
            self.user, self.bot = found.user, found.bot
            if found.system != self.system:
                self.system, self._start = found.system, None
        return found

    def _stream(self, max_tokens: int) -> GenerationStream:
        options = dict(self.settings.options)
        user, bot = self.user, self.bot
        options["stop_strings"] = [
            *options["stop_strings"], f"\n\n{user}:", f"\n{user}:", f"\n\n{bot}:",
        ]  # fmt: skip
        return self._rwkv.stream(max_tokens, **options)

    def _settle(self) -> None:
        if self._turns:
            self._turns[-1].settle()

    def _last_turn(self) -> _Turn:
        if not self._turns:
            earlier = " since the conversation was loaded" if self._earlier else ""
            raise StateError(f"there is no turn to go back to{earlier}")
        return self._turns[-1]
