"""Splits a generated text into its thought and its content, with the content's tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from rwkv_core.server.logprobs import TokenText, TokenTexts
from rwkv_core.server.templates.base import THOUGHT_END, Delta, Prompt
from rwkv_core.serving import TokenLogprob


class Answer:
    """An answer that grows as text is generated.

    Attributes:
        raw: the generated text.
        content, thought: the two parts of the text, each without leading whitespace.
        n_thought: number of tokens in the thought.
    """

    def __init__(self, prompt: Prompt) -> None:
        self.raw = self.content = self.thought = ""
        self.n_thought = 0
        self._in_thought = prompt.in_thought
        self._trims = not prompt.is_continued
        self._held = ""
        self._texts = TokenTexts()
        self._tokens: list[TokenText] = []
        # Offsets in characters of `raw`: where the content begins, and where the taken tokens end.
        self._begin: int | None = None
        self._place = 0

    def add(
        self, text: str, logprobs: Sequence[TokenLogprob] = (), n_tokens: int = 0, end: bool = False
    ) -> Delta:
        """Add text. `end` says that this is the last text. Returns the new thought and content."""
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
            # The prompt ends with an incomplete tag, whose ">" may be generated first.
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
        """Return the new tokens of the content; cut a token that begins before the content."""
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
    """Return the number of characters at the end of `text` that may begin `tag`."""
    for n in range(min(len(text), len(tag) - 1), 0, -1):
        if tag.startswith(text[-n:]):
            return n
    return 0
