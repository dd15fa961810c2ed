"""`rwkv-core chat`: a conversation on a terminal, or with lines from a pipe."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from rwkv_core.cli.chat_session import HELP, ChatSession
from rwkv_core.cli.line_input import is_interactive
from rwkv_core.cli.model_arguments import (
    add_model_arguments,
    add_tokenizer_argument,
    check_initial_state,
    filled,
    load_rwkv,
)
from rwkv_core.cli.processes import refuse_stdin
from rwkv_core.cli.sampling_arguments import add_sampling_arguments, sampling_options, unescape
from rwkv_core.plugins.command import Command


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model_arguments(parser)
    add_tokenizer_argument(parser)
    names = parser.add_argument_group("template")
    names.add_argument(
        "--user-name",
        metavar="NAME",
        default="User",
        help="name before each message of the user (default: %(default)s)",
    )
    names.add_argument(
        "--bot-name",
        metavar="NAME",
        default="Bot",
        help="name before each answer of the model (default: %(default)s)",
    )
    names.add_argument(
        "--system",
        "--intro",
        metavar="TEXT",
        default="",
        help=r"text before the first turn, in which \n is a line break",
    )
    names.add_argument(
        "--state",
        type=filled,
        metavar="FILE",
        help="start from this file's state: a saved conversation or state, or a state-tuned file "
        "(a trained initial state)",
    )
    parser.add_argument(
        "--no-history", action="store_true", help="do not read or write the history of typed lines"
    )
    add_sampling_arguments(parser, 400, {"top_p": 0.8})


def _run(args: argparse.Namespace) -> int:
    refuse_stdin("chat", "start a single one")
    options = sampling_options(args)
    state = None if args.state is None else Path(args.state).expanduser()
    if state is not None:
        check_initial_state(state)
    # Must come before the first read from stdin, such as the question for a model.
    if hasattr(sys.stdin, "reconfigure"):
        sys.stdin.reconfigure(errors="replace")
    rwkv = load_rwkv(args, options)
    from rwkv_core.cli.chat_history import ChatHistory, history_file
    from rwkv_core.cli.chat_settings import Settings
    from rwkv_core.cli.conversation import Conversation

    settings = Settings(args.max_tokens, options, options["seed"], args.verbose)
    conversation = Conversation(
        rwkv, args.user_name, args.bot_name, unescape(args.system), settings
    )
    kept = is_interactive() and not args.no_history
    chat = ChatSession(conversation, ChatHistory(history_file() if kept else None))
    if args.state is not None:
        chat.load(args.state)
    chat.run()
    return 0


COMMAND = Command(
    "chat",
    "chat with a model",
    _add_arguments,
    _run,
    "Lines come from the terminal, or from a pipe until it ends. At the prompt:\n\n" + HELP,
)
