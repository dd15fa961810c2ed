"""`rwkv-core chat` by pipe, and the conversation beneath it."""

import io
import re
import sys

import pytest

import rwkv_core
from rwkv_core import Sampling
from rwkv_core.cli import main
from rwkv_core.cli.chat_settings import Settings
from rwkv_core.cli.chat_transcript import ChatTranscript
from rwkv_core.cli.conversation import Conversation
from rwkv_core.errors import OptionError, StateError

pytestmark = pytest.mark.needs_backend


@pytest.fixture
def chat(small_model, capsys, monkeypatch):
    """Run the command with these lines on stdin. Return its status, stdout and stderr."""

    def run(lines, *arguments):
        monkeypatch.setattr(sys, "stdin", io.StringIO("".join(f"{line}\n" for line in lines)))
        status = main(["chat", "-m", str(small_model), "-n", "6", "--seed", "1", *arguments])
        out, err = capsys.readouterr()
        said = [line for line in err.splitlines() if not line.startswith(("model: ", "(cut at "))]
        return status, out, said

    return run


@pytest.fixture
def rwkv(small_model):
    return rwkv_core.RWKV(small_model)


def conversation(rwkv, max_tokens=6, intro="", **options):
    options = {"sampling": Sampling(), "stop_strings": [], "ignore_eos": False, **options}
    return Conversation(rwkv, "User", "Bot", intro, Settings(max_tokens, options, seed=1))


def read(rwkv, text):
    """Return the logits after this text, from the empty state."""
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


def test_a_message_may_have_several_lines(chat, tmp_path):
    saved = str(tmp_path / "a.state")
    lines = ['"""', "/one", "", "two", '"""', "three\\", "four", f"/save {saved}", f"/load {saved}"]
    said = "\n".join(chat(lines)[2])
    assert "User: /one\n\ntwo\n\nBot:" in said and "User: three\nfour\n\nBot:" in said
    assert said.endswith(f"loaded {saved}: 2 turns")


def test_an_answer_that_is_cut_says_so_and_on_request_its_speed(chat, capsys, monkeypatch):
    said = chat(["hello", "/set verbose on", "hello"], "--verbose")[2]
    fast = re.compile(r"\(6 tokens in [\d.]+ s, [\d.]+ tokens/s; [\d.]+ s to read\)")
    assert [bool(fast.fullmatch(line)) for line in said] == [True, False, True]
    monkeypatch.setattr(sys, "stdin", io.StringIO("hello\n"))
    main(["chat", "-m", "prose", "-n", "3", "--seed", "1"])
    assert "(cut at 3 tokens; /set max_tokens N allows more)" in capsys.readouterr().err


def test_settings_are_changed_and_shown(chat):
    lines = ["/set temperature 0", "/set top-k=5", "/set max_tokens 2", "/set seed 7", "/show", "a"]
    said = chat(lines, "--system", r"A talk.\nOf two.")[2]
    assert said[:4] == ["temperature 0.0", "top_k 5", "max_tokens 2", "seed 7"]
    shown = dict(line.split() for line in said[4:] if len(line.split()) == 2)
    assert (shown["temperature"], shown["top_k"], shown["verbose"]) == ("0.0", "5", "off")
    assert said[-1] == "0 turns; system text: A talk. Of two."


@pytest.mark.parametrize(
    ("command", "error"),
    [
        ("/set", "give NAME VALUE"),
        ("/set temperature", "give NAME VALUE"),
        ("/set temprature 1", "did you mean temperature?"),
        ("/set nosuch 1", "expected one of max_tokens, temperature"),
        ("/set temperature warm", "temperature: found 'warm', expected a number"),
        ("/set temperature -1", "temperature: found -1.0"),
        ("/set top_k 1.5", "top_k: found '1.5', expected a whole number"),
        ("/set max_tokens -1", "max_tokens: found -1"),
        ("/set seed -1", "seed: found -1"),
        ("/set verbose maybe", "verbose: found 'maybe', expected on or off"),
        ("/system", "give the text"),
    ],
)
def test_a_setting_that_does_not_fit_is_refused_and_changes_nothing(chat, command, error):
    before, (said, *after) = chat(["/show"])[2], chat([command, "/show"])[2]
    assert said.startswith("error: ") and error in said
    assert after == before


def test_commands_say_what_they_did(chat, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    lines = ["hello", "/save ~/a.state", "/undo", "/load ~/a.state", "/undo", "/reset", "/system x"]
    said = chat(lines)[2]
    path = tmp_path / "a.state"
    assert path.is_file()
    assert said[:2] == [f"saved to {path}", "took back: hello"]
    assert said[2] == "User: hello" and said[4].startswith("Bot:")
    assert said[-4:] == [
        f"loaded {path}: 1 turn",
        "error: there is no turn to go back to since the conversation was loaded",
        "began again",
        "began again, with this text before the first turn",
    ]


def test_exit_ends_before_the_input_does(chat):
    for command in ("/exit", "/quit"):
        assert chat([command, "hello"]) == (0, "", [])


def test_help_lists_the_commands(chat):
    errors = chat(["/help"])[2]
    for command in ("/retry", "/undo", "/reset", "/system", "/save", "/load", "/set", "/show"):
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


def test_a_system_text_comes_before_the_first_turn_and_can_be_replaced(rwkv):
    talk = conversation(rwkv, max_tokens=0, intro="One.")
    talk.ask("hello").run()
    talk.begin("Two.")
    assert logits(rwkv) == pytest.approx(read(rwkv, "Two."), abs=1e-4)
    assert talk.transcript() == ChatTranscript("User", "Bot", "Two.", [])


def test_a_conversation_is_saved_with_its_text_and_its_names(rwkv, tmp_path):
    talk = conversation(rwkv, intro="A talk.")
    first = talk.ask("one").run().text
    talk.ask("two").run()
    second = talk.retry().run().text
    talk.save(tmp_path / "a.state")
    other = Conversation(rwkv, "Alice", "Bob", "", talk.settings)
    turns = [("one", first), ("two", second)]
    assert other.load(tmp_path / "a.state") == ChatTranscript("User", "Bot", "A talk.", turns)
    third = other.ask("three").run().text
    assert other.transcript().turns == [*turns, ("three", third)]
    other.undo()
    with pytest.raises(StateError, match="since the conversation was loaded"):
        other.undo()
    other.reset()
    assert logits(rwkv) == pytest.approx(read(rwkv, "A talk."), abs=1e-4)
    assert other.transcript().turns == []


def test_a_state_without_a_conversation_is_loaded_too(rwkv, tmp_path):
    rwkv.load_context("some text")
    rwkv.save_state(tmp_path / "a.state")
    expected = logits(rwkv)
    talk = conversation(rwkv)
    assert talk.load(tmp_path / "a.state") is None
    assert (logits(rwkv) == expected).all()


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"user": 1, "bot": "", "system": "", "turns": []}', "[" * 100_000,
             '{"user": "a", "bot": "b", "system": "", "turns": [["only a question"]]}'],
    ids=lambda text: text[:20],
)  # fmt: skip
def test_what_is_no_transcript_is_taken_for_none(text):
    assert ChatTranscript.from_json(text) is None


def test_a_transcript_of_a_file_does_not_steer_the_terminal():
    turns = [("\x1b[2Jhello\nthere", "\x1b]0;title\x07 yes")]
    shown = str(ChatTranscript("U\nx\x1b", "B", "\x9bsystem", turns))
    assert not set(shown) & set("\x1b\x9b\x07")
    assert "hello\nthere" in shown and "U x\ufffd: " in shown
