"""The text of a conversation, which a chat saves with its state and shows when it is loaded."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field

from rwkv_core.util.printable import printable, without_control


@dataclass(frozen=True)
class ChatTranscript:
    """Who spoke, the text before the first turn, and the turns: question and answer."""

    user: str
    bot: str
    system: str = ""
    turns: list[tuple[str, str]] = field(default_factory=list)

    def to_json(self) -> str:
        """Return it as a line that `from_json` reads."""
        return json.dumps(asdict(self))

    @staticmethod
    def from_json(text: str) -> ChatTranscript | None:
        """Return what `to_json` wrote; None for anything else, as of a state without a chat."""
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
