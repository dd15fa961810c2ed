"""Several processes of a command, started by torchrun, are one program for the user."""

import pytest

from rwkv_core.cli import main


@pytest.fixture
def be_process(monkeypatch):
    """Set the environment of one of two processes."""

    def become(rank):
        monkeypatch.setenv("WORLD_SIZE", "2")
        monkeypatch.setenv("RANK", str(rank))

    return become


def test_only_the_first_process_prints(be_process, capsys):
    texts = []
    for rank in (0, 1):
        be_process(rank)
        assert main(["vram"]) == 0
        texts.append(capsys.readouterr().out)
    assert "14B" in texts[0]
    assert texts[1] == ""


def test_every_process_tells_its_errors(be_process, capsys):
    be_process(1)
    assert main(["vram", "-m", "nowhere.pth"]) == 2
    assert "nowhere.pth" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("command", "advice"),
    [(["chat"], "start a single one"), (["generate", "-"], "give PROMPT or --prompt-file FILE")],
)
def test_what_only_one_can_read_is_refused(be_process, capsys, command, advice):
    be_process(0)
    assert main(command) == 2
    message = capsys.readouterr().err
    assert f"{' '.join(command)}: several processes cannot share one stdin; {advice}" in message


def test_a_rank_alone_makes_no_group(monkeypatch, capsys):
    monkeypatch.setenv("RANK", "1")
    assert main(["vram"]) == 0
    assert "14B" in capsys.readouterr().out
