"""A conversation: turns written out as text in a template, and the states to go back to."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from rwkv_core.errors import StateError

if TYPE_CHECKING:
    import os

    from rwkv_core.generation import GenerationStream
    from rwkv_core.rwkv import RWKV
    from rwkv_core.state import State


class _Turn(NamedTuple):
    before: State
    asked: State  # the user's text has been read, the answer is about to begin


class Conversation:
    """Turns in the form that RWKV-4 Raven and the Pile's dialogues have:

        User: a question

        Bot: an answer

    The running state is `rwkv`'s, and between calls it always ends at the end of a turn.
    """

    def __init__(
        self, rwkv: RWKV, user: str, bot: str, intro: str, max_tokens: int, options: dict[str, Any]
    ) -> None:
        """`options` are those of `RWKV.stream`; answers also end where the next turn would begin.

        Raises OptionError for an option.
        """
        self._rwkv, self._user, self._bot, self._max_tokens = rwkv, user, bot, max_tokens
        stops = [*options["stop_strings"], f"\n\n{user}:", f"\n{user}:", f"\n\n{bot}:"]
        self._options = {**options, "stop_strings": stops}
        # Of no tokens: it checks the options now, and not in the midst of the first answer.
        rwkv.stream(0, **self._options)
        rwkv.load_context(intro)
        self._start = rwkv.get_state()
        self._turns: list[_Turn] = []

    def ask(self, text: str) -> GenerationStream:
        """Read the user's text; the stream gives the answer."""
        before = self._rwkv.get_state()
        apart = "" if before.logits is None else "\n\n"
        self._rwkv.load_context(f"{apart}{self._user}: {text}\n\n{self._bot}:")
        self._turns.append(_Turn(before, self._rwkv.get_state()))
        return self._rwkv.stream(self._max_tokens, **self._options)

    def retry(self) -> GenerationStream:
        """Another answer in place of the last. Raises StateError if there is none."""
        self._rwkv.set_state(self._last_turn().asked)
        return self._rwkv.stream(self._max_tokens, **self._options)

    def undo(self) -> None:
        """Take the last turn back, question and answer. Raises StateError if there is none."""
        self._rwkv.set_state(self._last_turn().before)
        self._turns.pop()

    def reset(self) -> None:
        """Begin again, after the introduction."""
        self._rwkv.set_state(self._start)
        self._turns.clear()

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the state to a file. Raises StateError."""
        self._rwkv.save_state(path)

    def load(self, path: str | os.PathLike[str]) -> None:
        """Go on from a saved state; the turns before it cannot be taken back. Raises StateError."""
        self._rwkv.load_state(path)
        self._turns.clear()

    def _last_turn(self) -> _Turn:
        if not self._turns:
            raise StateError("there is no turn to go back to")
        return self._turns[-1]
