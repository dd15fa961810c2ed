"""Lines and messages of a chat: the editor on a terminal, multi-line input, the history."""

import json

import pytest

from rwkv_core.cli.chat_history import ChatHistory, history_file
from rwkv_core.cli.message_input import message_text, read_message
from terminal import CTRL_C, CTRL_D, Terminal

UP = "\x1b[A"
PROGRAM = """
from rwkv_core.cli.line_input import line_reader
from rwkv_core.cli.message_input import message_text, read_message
read_line = line_reader(["earlier", "two\\nlines"])
while True:
    try:
        typed = read_message(read_line, "[next]")
    except KeyboardInterrupt:
        print("[cleared]")
        continue
    except EOFError:
        break
    print(ascii(message_text(typed)))
"""


def test_a_terminal_has_pastes_history_and_ctrl_c():
    pytest.importorskip("pty", reason="no pseudo-terminals here")
    readline = pytest.importorskip("readline")
    if "libedit" in (readline.__doc__ or ""):
        pytest.skip("libedit has no bracketed paste")
    terminal = Terminal(program=PROGRAM, TERM="xterm")
    try:
        for i, (typed, shown) in enumerate(
            [
                ("\x1b[200~one\n\n/two\r\x1b[201~\r", "'one\\n\\n/two'"),
                ('"""first\r\r second"""\r', "'first\\n\\n second'"),
                ("this \\\rand that\r", "'this \\nand that'"),
                ("n\u00e4ive\r", "'n\\xe4ive'"),
                (UP * 99 + "\r", "'earlier'"),
            ],
            1,
        ):
            terminal.wait_for("[next]", i)
            terminal.type(typed)
            terminal.wait_for(shown)
        terminal.wait_for("[next]", i + 1)
        terminal.type("half a line")
        terminal.wait_for("half a line")
        terminal.type_until(CTRL_C, "[cleared]")
        terminal.wait_for("[next]", i + 2)
        terminal.type(CTRL_D)
        assert terminal.end() == 0
    finally:
        terminal.kill()


def test_a_paste_is_one_message_where_no_editor_knows_pastes():
    pytest.importorskip("pty", reason="no pseudo-terminals here")
    terminal = Terminal(program="import sys; sys.modules['readline'] = None\n" + PROGRAM)
    try:
        for i, (typed, shown) in enumerate(
            [
                ("one\n\n/two\n", "'one\\n\\n/two'"),
                ("alone\n", "'alone'"),
                ("ended\n" + CTRL_D, "'ended'"),
            ],
            1,
        ):
            terminal.wait_for("[next]", i)
            terminal.type(typed)
            terminal.wait_for(shown)
        terminal.wait_for("[next]", i + 1)
        terminal.type(CTRL_D)
        assert terminal.end() == 0
    finally:
        terminal.kill()


@pytest.mark.parametrize(
    ("lines", "messages"),
    [
        (["a", "b"], ["a", "b"]),
        (["a\\", "b\\", "c", "d"], ["a\nb\nc", "d"]),
        (['"""', "a", "", " b", '"""', "c"], ["a\n\n b", "c"]),
        (['"""a"""', '"""b', 'c"""'], ["a", "b\nc"]),
        (['"""a \\', '"b""', '"""'], ['a \\\n"b""']),
        (['"""never ended', "a"], ["never ended\na"]),
        (["a\\"], ["a"]),
    ],
)
def test_lines_are_joined_to_messages(lines, messages):
    rest = iter(lines)

    def read_line(_):
        try:
            return next(rest)
        except StopIteration:
            raise EOFError from None

    read = [message_text(read_message(read_line, "")) for _ in messages]
    assert read == messages
    with pytest.raises(EOFError):
        read_message(read_line, "")


def test_history_comes_back_line_ends_included_and_does_not_grow_for_ever(tmp_path):
    path = tmp_path / "folder" / "history"
    first = ChatHistory(path)
    for text in ("one", "two\nlines", "\N{GRINNING FACE}"):
        first.add(text)
    assert first.entries == []
    assert ChatHistory(path).entries == ["one", "two\nlines", "\N{GRINNING FACE}"]
    path.write_text("".join(f"{json.dumps(str(i))}\n" for i in range(3000)))
    assert ChatHistory(path).entries == [str(i) for i in range(2000, 3000)]
    assert len(path.read_text().splitlines()) == 1000


def test_history_that_cannot_be_used_is_a_line_and_no_failure(tmp_path, capsys):
    damaged = tmp_path / "damaged"
    damaged.write_bytes(b'"good"\n\xff\xfe\n"half\n7\n"\\u0000"\n"\\ud800"\n' + b"[" * 100_000)
    assert ChatHistory(damaged).entries == ["good"]
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file" / "history", tmp_path):
        history = ChatHistory(path)
        history.add("one")
        history.add("two")
        assert capsys.readouterr().err.startswith(f"history is not kept: {path}: ")


def test_history_is_in_the_state_folder_or_nowhere(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert history_file() == tmp_path / "rwkv-core" / "chat_history.jsonl"
    monkeypatch.setenv("XDG_STATE_HOME", "not/absolute")
    monkeypatch.setattr("pathlib.Path.home", lambda: tmp_path / "home")
    assert tmp_path / "home" in history_file().parents

    def no_home():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr("pathlib.Path.home", no_home)
    monkeypatch.delenv("LOCALAPPDATA", raising=False)
    assert history_file() is None
    ChatHistory(None).add("one")
