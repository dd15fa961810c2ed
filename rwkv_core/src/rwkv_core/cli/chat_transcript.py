"""The text of a conversation. It is saved with the chat's state, and shown when that is loaded."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field

from rwkv_core.util.printable import printable, without_control


@dataclass(frozen=True)
class ChatTranscript:
    """The speakers' names, the text before the first turn, and the turns: (question, answer)."""

    user: str
    bot: str
    system: str = ""
    turns: list[tuple[str, str]] = field(default_factory=list)

    def to_json(self) -> str:
        """Return the transcript as one line of JSON, for `from_json`."""
        return json.dumps(asdict(self))

    @staticmethod
    def from_json(text: str) -> ChatTranscript | None:
        """Return the transcript that `to_json` wrote; None for any other text."""
        try:
            found = json.loads(text)
            user, bot, system = found["user"], found["bot"], found["system"]
            turns = [(question, answer) for question, answer in found["turns"]]
        except (ValueError, TypeError, KeyError, RecursionError):
            return None
        texts = [user, bot, system, *(text for turn in turns for text in turn)]
        if not all(isinstance(text, str) for text in texts):
            return None
        return ChatTranscript(user, bot, system, turns)

    def __str__(self) -> str:
        user, bot = printable(self.user), printable(self.bot)
        parts = [self.system] if self.system else []
        for question, answer in self.turns:
            parts += [f"{user}: {question}", f"{bot}: {answer.strip()}"]
        return without_control("\n\n".join(parts))
