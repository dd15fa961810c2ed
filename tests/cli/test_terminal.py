"""What happens on a terminal: Ctrl-C, the chat's prompt, the choice of a model."""

import shutil

import pytest

from rwkv_core.cli import main
from rwkv_core.tokenizer import load_tokenizer
from terminal import CTRL_C, CTRL_D, Terminal

pytestmark = pytest.mark.needs_backend

pytest.importorskip("pty", reason="no pseudo-terminals here")


@pytest.fixture
def start(tmp_path_factory):
    """Starts the program on a terminal; none outlives its test."""
    terminals = []
    home = str(tmp_path_factory.mktemp("home"))

    def start(*arguments, **more):
        terminals.append(Terminal(*arguments, **{"XDG_STATE_HOME": home, **more}))
        return terminals[-1]

    yield start
    for terminal in terminals:
        terminal.kill()


def test_a_chat_asks_for_a_model_of_the_folder_and_then_for_a_question(start, folder):
    terminal = start("chat", "-n", "4", cwd=folder)
    terminal.wait_for("which model?")
    terminal.type("\n")
    terminal.wait_for("User: ")
    assert "model: a.bin" in terminal.shown
    terminal.type("hello\n")
    terminal.wait_for("(cut at 4 tokens")
    terminal.wait_for("User: ", n=2)
    terminal.type(CTRL_D)
    assert terminal.end() == 0


def test_a_chat_keeps_its_history_unless_told_not_to(start, small_model, tmp_path):
    kept = tmp_path / "rwkv-core" / "chat_history.jsonl"
    for options in (["--no-history"], []):
        assert not kept.exists()
        terminal = start(
            "chat", "-m", str(small_model), "-n", "1", *options, XDG_STATE_HOME=str(tmp_path)
        )
        terminal.wait_for("User: ")
        terminal.type("/show\n")
        terminal.wait_for("system text: none")
        terminal.type("/exit\n")
        assert terminal.end() == 0
    assert kept.read_text() == '"/show"\n'
    assert kept.stat().st_mode & 0o777 == 0o600


@pytest.fixture
def folder(small_model, tmp_path):
    """A folder with two model files, the tokenizer, and a file that only looks like a model."""
    for name in ("b.pth", "a.bin"):
        shutil.copy(small_model, tmp_path / name)
    shutil.copy(small_model.parent / "tokenizer.json", tmp_path)
    (tmp_path / "notes.bin").write_text("nothing that a model file begins with")
    return tmp_path


def test_ctrl_c_ends_generate_with_what_there_is(start, small_model, tmp_path):
    state = tmp_path / "a.state"
    z = load_tokenizer(small_model.parent / "tokenizer.json").encode("z")[0]
    arguments = ["-n", "1000000", "--save-state", str(state), "--logit-bias", f"{z}=1e4"]
    terminal = start("generate", "a", "-m", str(small_model), *arguments)
    terminal.wait_for("zzz")
    terminal.type(CTRL_C)
    assert terminal.end() == 130
    assert "interrupted after " in terminal.shown and "Traceback" not in terminal.shown
    assert state.exists()


def test_a_long_prompt_shows_how_far_it_is_read(start, small_model, tmp_path):
    prompt = tmp_path / "long.txt"
    prompt.write_text("long " * 400)
    arguments = ["--prompt-file", str(prompt), "-n", "0"]
    terminals = [
        start("generate", *arguments, "-m", str(small_model)),
        start("chat", "--intro", prompt.read_text(), "-m", str(small_model)),
    ]
    for terminal in terminals:
        for percent in ("0%", "25%", "100%"):
            terminal.wait_for(f"reading the prompt {percent}")
    assert terminals[0].end() == 0
    terminal = start("perplexity", str(prompt), "-m", str(small_model))
    terminal.wait_for("long.txt 0%")
    assert terminal.end() == 0


def test_ctrl_c_in_a_chat_ends_the_answer_and_clears_the_line_but_not_the_chat(start, small_model):
    terminal = start("chat", "-m", str(small_model), "-n", "1000000", "--ignore-eos")
    terminal.wait_for("User: ")
    terminal.type("hello\n")
    terminal.wait_for("Bot:")
    terminal.type(CTRL_C)
    terminal.wait_for("(interrupted)")
    terminal.type("/undo\n/undo\n")
    terminal.wait_for("no turn to go back to")
    terminal.type("half a line")
    terminal.wait_for("half a line")
    terminal.type_until(CTRL_C, "(Ctrl-D or /exit ends the chat)")
    terminal.type("/retry\n")
    terminal.wait_for("no turn to go back to", 2)
    terminal.type("/exit\n")
    assert terminal.end() == 0
    assert "Traceback" not in terminal.shown


def test_ctrl_d_ends_a_chat(start, small_model):
    terminal = start("chat", "-m", str(small_model))
    terminal.wait_for("User: ")
    terminal.type(CTRL_D)
    assert terminal.end() == 0


def test_the_models_of_the_folder_are_offered(start, folder):
    terminal = start("generate", "a", "-n", "3", cwd=folder)
    terminal.wait_for("which model?")
    offered = [line.strip().partition("  (")[0] for line in terminal.shown.splitlines()[:3]]
    assert offered == ["1  a.bin", "2  b.pth", "3  prose"]
    terminal.type("9\n")
    terminal.wait_for("which model?", 2)
    terminal.type("2\n")
    assert terminal.end() == 0
    assert "model: b.pth  backend: " in terminal.shown


def test_choosing_no_model_names_the_option(start, folder):
    terminal = start("generate", "a", cwd=folder)
    terminal.wait_for("which model?")
    terminal.type(CTRL_D)
    assert terminal.end() == 2
    assert "no model chosen; name one with -m" in terminal.shown


def test_without_a_terminal_the_shipped_model_is_taken_and_the_files_are_named(
    folder, monkeypatch, capsys
):
    monkeypatch.chdir(folder)
    assert main(["generate", "a", "-n", "2"]) == 0
    first, second = capsys.readouterr().err.splitlines()
    assert first == "-m names a model; in this folder: a.bin, b.pth"
    assert second.startswith("model: prose (ships with rwkv-core")


def test_a_folder_without_models_means_the_shipped_one(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["generate", "The", "-n", "2"]) == 0
    err = capsys.readouterr().err
    assert err.startswith("model: prose (ships with rwkv-core; -m names another)  backend: ")
