"""`rwkv-core chat`: a conversation on a terminal, or of lines from a pipe."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING

from rwkv_core.cli.command import Command
from rwkv_core.cli.conversation import Conversation
from rwkv_core.cli.model_arguments import (
    add_model_arguments,
    add_tokenizer_argument,
    filled,
    load_rwkv,
)
from rwkv_core.cli.printing import print_pieces
from rwkv_core.cli.processes import refuse_stdin
from rwkv_core.cli.sampling_arguments import add_sampling_arguments, sampling_options, unescape
from rwkv_core.errors import OptionError, RWKVError

if TYPE_CHECKING:
    from rwkv_core.generation import GenerationStream

_COMMANDS = """\
/retry      another answer to the last question
/undo       take the last question and its answer back
/reset      begin again
/save FILE  save the state of the conversation
/load FILE  go on from a saved state
/help       this list
/exit       end; so do /quit and Ctrl-D. Ctrl-C ends an answer, or at the prompt the program."""


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model_arguments(parser)
    add_tokenizer_argument(parser)
    names = parser.add_argument_group("template")
    names.add_argument("--user-name", metavar="NAME", default="User", help="(default %(default)s)")
    names.add_argument("--bot-name", metavar="NAME", default="Bot", help="(default %(default)s)")
    names.add_argument(
        "--intro",
        metavar="TEXT",
        default="",
        help=r"read first; \n is understood",
    )
    names.add_argument(
        "--state", type=filled, metavar="FILE", help="go on from a saved conversation"
    )
    add_sampling_arguments(parser, 400, {"top_p": 0.8})


def _run(args: argparse.Namespace) -> int:
    refuse_stdin("chat", "start a single one")
    options = sampling_options(args)
    rwkv = load_rwkv(args)
    import numpy as np

    # One generator for all answers: /retry draws anew, and a seed still gives the same session.
    options["seed"] = np.random.default_rng(options["seed"])
    conversation = Conversation(
        rwkv, args.user_name, args.bot_name, unescape(args.intro), args.max_tokens, options
    )
    if args.state is not None:
        conversation.load(args.state)
    _Chat(conversation, args.user_name, args.bot_name).run()
    return 0


class _Chat:
    """Reads lines, does what they say and prints answers, until the end."""

    def __init__(self, conversation: Conversation, user: str, bot: str) -> None:
        self._conversation, self._bot = conversation, bot
        self._prompt = ""
        if sys.stdin.isatty():
            self._prompt = f"{user}: "
            print("/help lists the commands", file=sys.stderr)
            with suppress(ImportError):
                import readline  # noqa: F401
        if hasattr(sys.stdin, "reconfigure"):
            sys.stdin.reconfigure(errors="replace")

    def run(self) -> None:
        """Until the end of the input, /exit, or Ctrl-C at the prompt."""
        while True:
            try:
                line = input(self._prompt).strip()
            except (EOFError, KeyboardInterrupt):
                if self._prompt:
                    print()
                return
            if line in ("/exit", "/quit"):
                return
            try:
                self._do(line)
            except RWKVError as error:
                print(f"error: {error}", file=sys.stderr)
            except KeyboardInterrupt:
                print(file=sys.stderr)

    def _do(self, line: str) -> None:
        name, _, argument = line.partition(" ")
        argument = argument.strip()
        if name == "/retry":
            self._print_answer(self._conversation.retry)
        elif name == "/undo":
            self._conversation.undo()
        elif name == "/reset":
            self._conversation.reset()
        elif name in ("/save", "/load"):
            if not argument:
                raise OptionError(f"{name}: name a file")
            act = self._conversation.save if name == "/save" else self._conversation.load
            act(argument)
        elif name == "/help":
            print(_COMMANDS, file=sys.stderr)
        elif name.startswith("/"):
            raise OptionError(f"no command {name}; /help lists them")
        elif line:
            self._print_answer(lambda: self._conversation.ask(line))

    def _print_answer(self, begin: Callable[[], GenerationStream]) -> None:
        """Print an answer as it comes; Ctrl-C ends it, with the state of what was printed."""
        running = begin()
        try:
            # Once the name is shown, a Ctrl-C is meant for the answer.
            print_pieces(running, label=f"{self._bot}:")
        except RWKVError:
            self._conversation.undo()
            raise
        if running.result is not None and running.result.stop_reason == "interrupted":
            print("(interrupted)", file=sys.stderr)


COMMAND = Command(
    "chat",
    "talk with a model, turn by turn",
    _add_arguments,
    _run,
    "Lines come from the terminal, or from a pipe until it ends. At the prompt:\n\n" + _COMMANDS,
)
