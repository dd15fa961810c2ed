"""A generated text as an answer: its thought and its content, and the tokens of the content."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from rwkv_core.server.logprobs import TokenText, TokenTexts
from rwkv_core.server.templates.base import THOUGHT_END, Delta, Prompt
from rwkv_core.serving import TokenLogprob


class Answer:
    """Takes a text as it grows.

    Attributes:
        raw: all of it.
        content, thought: its two parts, without the spaces before each.
        n_thought: tokens of the thought.
    """

    def __init__(self, prompt: Prompt) -> None:
        self.raw = self.content = self.thought = ""
        self.n_thought = 0
        self._in_thought = prompt.in_thought
        self._trims = not prompt.is_continued
        self._held = ""
        self._texts = TokenTexts()
        self._tokens: list[TokenText] = []
        # Where, in characters of `raw`, the content begins, and where the tokens taken end.
        self._begin: int | None = None
        self._place = 0

    def add(
        self, text: str, logprobs: Sequence[TokenLogprob] = (), n_tokens: int = 0, end: bool = False
    ) -> Delta:
        """Add text, at the `end` with nothing more to come. Returns what is new."""
        self.raw += text
        self._held += text
        self._tokens += self._texts.of(logprobs)
        self.n_thought += n_tokens if self._in_thought else 0
        thought = self._take_thought(end) if self._in_thought else ""
        content = "" if self._in_thought else self._take_content()
        self.thought += thought
        self.content += content
        return Delta(content, thought, self._take_tokens())

    def _take_thought(self, end: bool) -> str:
        place = self._held.find(THOUGHT_END)
        if place < 0:
            n_held = 0 if end else _n_begun(self._held, THOUGHT_END)
            place = len(self._held) - n_held
            found, self._held = self._held[:place], self._held[place:]
        else:
            found, self._held = self._held[:place], self._held[place + len(THOUGHT_END) :]
            self._in_thought = False
        if not self.thought:
            # The prompt ends within the tag, so that its last character may come first.
            found = found.removeprefix(">").lstrip()
        return found

    def _take_content(self) -> str:
        if self._trims:
            self._held = self._held.lstrip()
            self._trims = not self._held
        found, self._held = self._held, ""
        if found and self._begin is None:
            self._begin = len(self.raw) - len(found)
        return found

    def _take_tokens(self) -> list[TokenText]:
        """The tokens of the content that have come. One that reaches into it is cut."""
        if self._begin is None:
            return []
        found = []
        for token in self._tokens:
            end = self._place + len(token.text)
            if self._place >= self._begin:
                found.append(token)
            elif end > self._begin:
                text = token.text[self._begin - self._place :]
                found.append(TokenText(text, replace(token.found, bytes=text.encode())))
            self._place = end
        self._tokens = []
        return found


def _n_begun(text: str, tag: str) -> int:
    """How many characters at the end of `text` may be the beginning of `tag`."""
    for n in range(min(len(text), len(tag) - 1), 0, -1):
        if tag.startswith(text[-n:]):
            return n
    return 0
