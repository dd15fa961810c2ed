"""A chat: reads messages, runs commands such as /undo, and prints answers."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from rwkv_core.cli.line_input import ReadLine, is_interactive, line_reader
from rwkv_core.cli.message_input import is_quoted, message_text, read_message
from rwkv_core.cli.printing import print_pieces, speed
from rwkv_core.errors import OptionError, RWKVError
from rwkv_core.util.printable import printable

if TYPE_CHECKING:
    from rwkv_core.cli.chat_history import ChatHistory
    from rwkv_core.cli.conversation import Conversation
    from rwkv_core.generation.stream import GenerationStream

HELP = '''\
/retry            generate another answer to the last question
/undo             remove the last question and its answer
/reset            start a new conversation
/system TEXT      start a new conversation, with TEXT before the first turn
/save FILE        save the conversation
/load FILE        continue a saved conversation
/set NAME VALUE   change a setting, such as temperature
/show             list the settings
/help             show this list
/exit, /quit      end the chat, like Ctrl-D. Ctrl-C stops an answer, or clears the typed line

A line that ends with \\ continues in the next line. A message between """ and """ may have several
lines.
Several pasted lines are one message. Some terminals send pasted lines one by one: put the text
between """ and """ there.'''


class ChatSession:
    """Reads messages, runs commands and prints answers, until the end of the input."""

    def __init__(self, conversation: Conversation, history: ChatHistory) -> None:
        self._conversation, self._history = conversation, history
        self._commands: dict[str, Callable[[str], None]] = {
            "/retry": lambda _: self._print_answer(conversation.retry),
            "/undo": self._undo,
            "/reset": self._reset,
            "/system": self._system,
            "/save": self._save,
            "/load": lambda argument: self.load(_file("/load", argument)),
            "/set": self._set,
            "/show": self._show,
            "/help": lambda _: _say(HELP),
        }

    def run(self) -> None:
        """Run until the end of the input, or /exit."""
        read_line = line_reader(self._history.entries)
        if is_interactive():
            _say("/help lists the commands")
        while True:
            try:
                if not self._next(read_line):
                    return
            except KeyboardInterrupt:
                if not is_interactive():
                    raise
                _say("\n(Ctrl-D or /exit ends the chat)")

    def _next(self, read_line: ReadLine) -> bool:
        """Handle the next message. Return whether the chat continues."""
        try:
            typed = read_message(read_line, f"{printable(self._conversation.user)}: ")
        except EOFError:
            if is_interactive():
                _say("")
            return False
        if typed.strip() in ("/exit", "/quit"):
            return False
        if typed.strip():
            self._history.add(typed)
            self._try(typed)
        return True

    def _try(self, typed: str) -> None:
        try:
            self._do(typed)
        except RWKVError as error:
            _say(f"error: {error}")
        except KeyboardInterrupt:
            _say("\n(interrupted)")

    def _do(self, typed: str) -> None:
        text = message_text(typed)
        if is_quoted(typed) or not text.startswith("/"):
            if text:
                self._print_answer(lambda: self._conversation.ask(text))
            return
        name, *argument = text.split(maxsplit=1)
        if name in self._commands:
            self._commands[name]("".join(argument))
        elif "\n" in text:  # pasted text that happens to begin with "/"
            self._print_answer(lambda: self._conversation.ask(text))
        else:
            raise OptionError(f"no command {printable(name)}; /help lists them")

    def _print_answer(self, begin: Callable[[], GenerationStream]) -> None:
        """Print an answer while it is generated; Ctrl-C ends it after the printed text."""
        began = time.perf_counter()
        running = begin()
        read = time.perf_counter()
        try:
            # After the name is shown, Ctrl-C is meant for the answer.
            print_pieces(running, label=f"{self._conversation.bot}:")
        except RWKVError:
            self._conversation.undo()
            raise
        seconds = time.perf_counter() - read
        result = running.result
        assert result is not None
        if result.stop_reason == "interrupted":
            _say("(interrupted)")
        elif result.stop_reason == "length":
            _say(f"(cut at {len(result.tokens)} tokens; /set max_tokens N allows more)")
        if self._conversation.settings.verbose:
            _say(f"({speed(len(result.tokens), seconds)}; {read - began:.2f} s to read)")

    def _undo(self, _: str) -> None:
        _say(f"took back: {printable(self._conversation.undo(), 60)}")

    def _reset(self, _: str) -> None:
        self._conversation.reset()
        _say("began again")

    def _system(self, text: str) -> None:
        if not text:
            raise OptionError("/system: give the text that comes before the first turn")
        self._conversation.begin(text)
        _say("began again, with this text before the first turn")

    def _save(self, argument: str) -> None:
        path = _file("/save", argument)
        self._conversation.save(path)
        _say(f"saved to {printable(path)}")

    def load(self, path: str) -> None:
        """Continue a saved conversation, and show its text. Raises StateError."""
        transcript = self._conversation.load(path)
        if transcript is None:
            _say(f"loaded {printable(path)}, in which no transcript was saved")
        else:
            _say(f"{transcript}\n\nloaded {printable(path)}: {_turns(len(transcript.turns))}")

    def _set(self, argument: str) -> None:
        name, *value = argument.replace("=", " ", 1).split(maxsplit=1) or [""]
        if not value:
            raise OptionError("/set: give NAME VALUE; /show lists the settings")
        settings, name = self._conversation.settings, name.replace("-", "_")
        settings.set(name, value[0])
        _say(f"{name} {settings.values()[name]}")

    def _show(self, _: str) -> None:
        for name, value in self._conversation.settings.values().items():
            _say(f"{name:18}  {value}")
        transcript = self._conversation.transcript()
        system = printable(transcript.system) or "none"
        _say(f"{_turns(len(transcript.turns))}; system text: {system}")


def _file(command: str, argument: str) -> str:
    """Return the path in a command's argument. Raises OptionError if there is none."""
    if not argument:
        raise OptionError(f"{command}: name a file")
    return os.path.expanduser(argument)


def _turns(n: int) -> str:
    return f"{n} turn{'s' * (n != 1)}"


def _say(text: str) -> None:
    print(text, file=sys.stderr)
