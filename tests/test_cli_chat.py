"""`rwkv-core chat` by pipe, and the conversation beneath it."""

import io
import re
import sys

import pytest

import rwkv_core
from rwkv_core.cli import main
from rwkv_core.cli.conversation import Conversation
from rwkv_core.errors import OptionError, StateError

pytestmark = pytest.mark.needs_backend


@pytest.fixture
def chat(small_model, capsys, monkeypatch):
    """Runs the command with these lines on stdin; gives its status, stdout and stderr."""

    def run(lines, *arguments):
        monkeypatch.setattr(sys, "stdin", io.StringIO("".join(f"{line}\n" for line in lines)))
        status = main(["chat", "-m", str(small_model), "-n", "6", "--seed", "1", *arguments])
        out, err = capsys.readouterr()
        errors = [line for line in err.splitlines() if not line.startswith("model: ")]
        return status, out, errors

    return run


@pytest.fixture
def rwkv(small_model):
    return rwkv_core.RWKV(small_model)


def conversation(rwkv, max_tokens=6, intro="", **options):
    return Conversation(
        rwkv, "User", "Bot", intro, max_tokens, {"seed": 1, "stop_strings": [], **options}
    )


def read(rwkv, text):
    """The logits after this text alone."""
    other = rwkv_core.RWKV(rwkv.model, tokenizer=rwkv.tokenizer)
    other.load_context(text)
    return rwkv.model.to_numpy(other.get_state().logits)


def logits(rwkv):
    return rwkv.model.to_numpy(rwkv.get_state().logits)


def test_answers_each_line_until_the_input_ends(chat):
    status, out, errors = chat(["hello", "", "and you?"])
    assert (status, errors) == (0, [])
    assert len(re.findall("^Bot:", out, re.MULTILINE)) == 2


def test_the_same_seed_gives_the_same_conversation(chat):
    assert chat(["hello", "/retry"]) == chat(["hello", "/retry"])


def test_retry_draws_another_answer(chat):
    answers = chat(["hello", "/retry"], "--top-p", "1")[1].split("Bot:")[1:]
    assert len(answers) == 2 and answers[0] != answers[1]


def test_commands_that_go_wrong_say_so_in_a_line_and_the_chat_goes_on(chat, tmp_path):
    lines = ["/undo", "/retry", "/save", "/load nowhere", "/nosuch", "hello"]
    status, out, errors = chat(lines)
    assert status == 0 and out.count("Bot:") == 1
    assert [error.split(":")[0] for error in errors] == ["error"] * 5


def test_exit_ends_before_the_input_does(chat):
    for command in ("/exit", "/quit"):
        assert chat([command, "hello"]) == (0, "", [])


def test_help_lists_the_commands(chat):
    errors = chat(["/help"])[2]
    for command in ("/retry", "/undo", "/reset", "/save", "/load", "/exit"):
        assert any(line.startswith(command) for line in errors)


def test_a_saved_conversation_goes_on_where_it_was(chat, tmp_path):
    greedy = ("--temperature", "0")
    saved = str(tmp_path / "a.state")
    chat(["hello", f"/save {saved}"], *greedy)
    whole = chat(["hello", "more"], *greedy)[1]
    assert whole.endswith(chat([f"/load {saved}", "more"], *greedy)[1])
    assert whole.endswith(chat(["more"], "--state", saved, *greedy)[1])


def test_a_wrong_option_ends_the_program_before_the_first_line(chat):
    status, out, errors = chat(["hello"], "--ban", "100000")
    assert (status, out) == (2, "") and errors[0].startswith("rwkv-core: error: banned_tokens")


def test_names_of_the_template_can_be_chosen(chat):
    assert "Alice:" in chat(["hello"], "--user-name", "Bob", "--bot-name", "Alice")[1]


def test_a_turn_is_written_as_the_template_says(rwkv):
    talk = conversation(rwkv, max_tokens=0, intro="A talk.")
    talk.ask("hello").run()
    assert logits(rwkv) == pytest.approx(read(rwkv, "A talk.\n\nUser: hello\n\nBot:"), abs=1e-4)


def test_the_first_turn_has_nothing_before_it(rwkv):
    conversation(rwkv, max_tokens=0).ask("hello").run()
    assert logits(rwkv) == pytest.approx(read(rwkv, "User: hello\n\nBot:"), abs=1e-4)


def test_an_answer_that_is_interrupted_leaves_the_state_of_what_was_said(rwkv):
    talk = conversation(rwkv, max_tokens=50)
    answer = talk.ask("hello")
    pieces = [next(answer), next(answer), next(answer)]
    answer.close()
    assert rwkv.tokenizer.to_bytes(answer.result.tokens).decode("utf-8", "replace") == "".join(
        pieces
    )
    tokens = rwkv.tokenizer.encode("User: hello\n\nBot:") + answer.result.tokens
    assert logits(rwkv) == pytest.approx(read(rwkv, tokens), abs=1e-4)


def test_undo_goes_back_one_turn_at_a_time(rwkv):
    talk = conversation(rwkv)
    talk.ask("one").run()
    after_one = rwkv.get_state()
    talk.ask("two").run()
    talk.retry().run()
    talk.undo()
    assert rwkv.get_state() is after_one
    talk.undo()
    assert rwkv.get_state().logits is None
    with pytest.raises(StateError, match="no turn"):
        talk.undo()


def test_reset_goes_back_to_after_the_introduction(rwkv):
    talk = conversation(rwkv, intro="A talk.")
    start = rwkv.get_state()
    talk.ask("one").run()
    talk.reset()
    assert rwkv.get_state() is start
    with pytest.raises(StateError, match="no turn"):
        talk.retry()


def test_an_answer_ends_where_the_user_would_speak(rwkv):
    forced = rwkv.tokenizer.encode("hi\n\nUser: no")

    def force(logits, tokens):
        logits[:] = -1e9
        logits[forced[len(tokens)]] = 0
        return logits

    result = conversation(rwkv, max_tokens=50, processors=[force]).ask("hello").run()
    assert (result.text, result.stop_reason) == ("hi", "stop_string")


def test_options_are_checked_when_a_conversation_is_made(rwkv):
    with pytest.raises(OptionError, match="stop_tokens"):
        conversation(rwkv, stop_tokens=[-1])
