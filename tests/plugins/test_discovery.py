"""Plugins are found beside damaged distributions, and listed with their offers and errors."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import rwkv_core
from pth_writer import write_pth
from rwkv_core import BackendError, BackendWarning, CheckpointError, OptionError, plugins
from rwkv_core.cli import main
from rwkv_core.model_file import known_formats, model_files, open_model
from rwkv_core.plugins import discovery as registry_module

GOOD = """
import rwkv_core
from rwkv_core import Backend, Option, Status

@rwkv_core.hookimpl
def rwkv_backends():
    status = lambda: Status(True, score=SCORE)
    return [Backend("good", "a test", 2, status, (Option("x", int, 1, "x"),))]

@rwkv_core.hookimpl
def rwkv_tensor_ops(backend, options):
    BODY
"""
GROUP = f"[{plugins.GROUP}]\n"


def good(score: str = "1", body: str = "return None") -> str:
    return GOOD.replace("SCORE", score).replace("BODY", body)


@pytest.fixture
def site(install_plugin: Callable[..., Path]) -> Path:
    """A folder on the path with a good plugin in it."""
    return install_plugin("good", good())


def damage(site: Path, kind: str) -> None:
    """Put a damaged distribution beside a plugin."""
    info = site / "aaa_other-1.0.dist-info"
    if kind == "a file":
        info.write_text("no folder")
        return
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: aaa-other\nVersion: 1.0\n")
    file = info / "entry_points.txt"
    if kind in ("no METADATA", "METADATA of bytes"):
        (info / "METADATA").unlink()
        file.write_text("[console_scripts]\na = b:c\n")
        if kind == "METADATA of bytes":
            (info / "METADATA").write_bytes(b"\xff\xfe\0" * 50)
    elif kind == "huge":
        file.write_bytes(GROUP.encode())
        os.truncate(file, 1 << 40)  # sparse
    elif kind == "a folder":
        file.mkdir()
    elif kind == "a loop":
        file.symlink_to(file)
    elif kind == "a pipe":
        os.mkfifo(file)
    else:
        file.write_bytes(kind.encode("latin-1"))


DAMAGED = [
    "[console_scripts]\nother", "[console_scripts\nx = y", "x = y", "=\n[]\n==", "\xff\xfe[\0",
    "[console_scripts]\n\xe9 = x:y", "a file", "no METADATA", "METADATA of bytes", "huge",
    "a folder", "a loop", "a pipe",
]  # fmt: skip


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
@pytest.mark.parametrize("kind", DAMAGED)
def test_a_damaged_distribution_hurts_nothing(
    site: Path, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    damage(site, kind)
    assert "good" in [row.name for row in rwkv_core.list_backends() if row.status == "ready"]
    assert [row for row in rwkv_core.list_plugins() if row.problems] == []
    with pytest.raises(SystemExit, match="0"):
        main(["--help"])
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (GROUP + "other", "found 'other', expected NAME = MODULE"),
        (GROUP + "= other", "expected NAME = MODULE"),
        (GROUP + "other = no module", "expected NAME = MODULE"),
        (GROUP + "\xe9 = other", "is not UTF-8"),
        (GROUP + "other = no_such_module_at_all", "No module named"),
        (GROUP + "other = os:nothing", "nothing"),
    ],
)
def test_a_malformed_line_of_a_plugin_is_its_problem(site: Path, text: str, problem: str) -> None:
    damage(site, text)
    (row,) = [row for row in rwkv_core.list_plugins() if row.distribution == "aaa-other"]
    assert problem in row.problems[0] and row.offers == {}
    assert problem in next(
        row.reason for row in rwkv_core.list_backends() if row.distribution == "aaa-other"
    )


def test_what_is_damaged_elsewhere_in_a_plugins_files_does_not_matter(site: Path) -> None:
    info = next(site.glob("good*.dist-info"))
    (info / "METADATA").unlink()
    (info / "entry_points.txt").write_text("[console_scripts]\nother\n\n[ rwkv_core ]\ngood=good\n")
    (row,) = [row for row in rwkv_core.list_backends() if row.name == "good"]
    assert (row.status, row.distribution) == ("ready", "good")


def test_list_plugins_shows_those_without_a_backend_too(
    install_plugin: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    install_plugin(
        "greeting",
        "import rwkv_core\nfrom rwkv_core.cli import Command\n"
        "@rwkv_core.hookimpl\n"
        "def rwkv_commands(): return [Command('greet', 'hello', print, print), 3]\n",
    )
    install_plugin("broken", "import no_such_module_at_all")
    rows = {row.name: row for row in rwkv_core.list_plugins()}
    assert rows["samplers"].offers == {"samplers": ["mirostat", "dry"]}
    assert rows["greeting"].offers == {"commands": ["greet"]}
    assert "found the name None" in rows["greeting"].problems[0]
    assert main(["list-plugins", "--json"]) == 0
    found = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert found["broken"]["version"] == "1.0" and found["broken"]["offers"] == {}
    assert "no_such_module_at_all" in found["broken"]["problems"][0]
    assert main(["list-plugins"]) == 0
    out = capsys.readouterr().out
    assert "commands: greet" in out and "no_such_module_at_all" in " ".join(out.split())
    assert "--sampler mirostat:KEY=VALUE" in out


def test_an_import_that_takes_long_says_which_plugin_it_is(
    install_plugin: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(registry_module, "SLOW_SECONDS", 0.05)
    install_plugin("slow", "import time\ntime.sleep(0.5)\n" + good())
    rwkv_core.list_backends()
    captured = capsys.readouterr()
    assert captured.err.splitlines() == ["rwkv-core: loading plugin slow of slow 1.0 ..."]


@pytest.mark.needs_backend
@pytest.mark.parametrize(
    "body",
    ["1/0", "exit(3)", "import no_such_module", "return 5", "raise rwkv_core.RWKVError('no')"],
)
def test_where_the_best_backend_does_not_start_the_next_is_taken(
    install_plugin: Callable[..., Path], small_model: Path, body: str
) -> None:
    install_plugin("good", good("1e9", body))
    with pytest.warns(BackendWarning, match="backend good.*; taking .* instead|no; taking"):
        model = rwkv_core.load(small_model)
    assert model.backend != "good"
    with pytest.raises(rwkv_core.RWKVError):
        rwkv_core.load(small_model, backend="good")


@pytest.mark.needs_backend
@pytest.mark.filterwarnings("default")
def test_generate_says_in_a_line_which_backend_it_takes_instead(
    install_plugin: Callable[..., Path], small_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    install_plugin("good", good("1e9", "1/0"))
    assert main(["generate", "a", "-n", "1", "-m", str(small_model), "--ignore-eos"]) == 0
    first, second = capsys.readouterr().err.splitlines()
    assert first.startswith("rwkv-core: backend good failed to start: ZeroDivisionError")
    assert "taking " in first and second.startswith("model: ")


def test_what_the_user_asks_of_the_best_backend_is_not_asked_of_the_next(
    install_plugin: Callable[..., Path],
) -> None:
    install_plugin("good", good("1e9", "raise rwkv_core.OptionError('x: found 9')"))
    with pytest.raises(OptionError, match="x: found 9"):
        plugins.start_backend(None, {"x": 9})


def test_where_no_backend_starts_the_error_is_that_of_the_best(
    install_plugin: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RWKV_PLUGINS", "good")
    install_plugin("good", good("1e9", "1/0"))
    with pytest.raises(BackendError, match="good failed to start: ZeroDivisionError"):
        plugins.start_backend(None, {})


FORMATS = """
import zipfile
import rwkv_core
from rwkv_core.checkpoint import CheckpointFormat, open_checkpoint

def is_npz(path, head):
    return head.startswith(b"PK") and "mark.npy" in zipfile.ZipFile(path).namelist()

def matches(path, head):
    if path.name == "raises.mine":
        raise KeyError("odd")
    return head.startswith(b"MINE")

def opens(path):
    return {}["nothing"]

@rwkv_core.hookimpl
def rwkv_checkpoint_formats():
    other = lambda path: open_checkpoint(path.with_name("m.pth"))
    return [
        CheckpointFormat("mine", "a test", matches, opens, (".mine",)),
        CheckpointFormat("npz", "a test", is_npz, other),
    ]
"""


@pytest.fixture
def formats(install_plugin: Callable[..., Path], tmp_path: Path) -> Path:
    install_plugin("formats", FORMATS)
    write_pth(tmp_path / "m.pth", {"x": np.ones(3, np.float32)})
    return tmp_path


def test_a_plugin_may_read_zip_archives(formats: Path) -> None:
    np.savez(formats / "m.npz", mark=np.zeros(1))
    with open_model(formats / "m.npz") as checkpoint:
        assert list(checkpoint.tensors) == ["x"]


def test_a_format_that_fails_to_look_keeps_no_file_from_the_others(formats: Path) -> None:
    (formats / "m.pth").rename(formats / "raises.mine")
    with open_model(formats / "raises.mine") as checkpoint:
        assert checkpoint.format == "pth"
    (formats / "raises.mine").write_bytes(b"unknown")
    with pytest.raises(CheckpointError, match="mine failed to look at it: KeyError: 'odd'"):
        open_model(formats / "raises.mine").__enter__()


def test_a_format_that_fails_to_open_is_named(formats: Path) -> None:
    (formats / "a.mine").write_bytes(b"MINE")
    with pytest.raises(CheckpointError, match="the format mine failed to open it: KeyError"):
        open_model(formats / "a.mine").__enter__()


def test_a_plugins_files_are_offered_in_a_folder(formats: Path) -> None:
    for name, data in (("a.mine", b"MINE"), ("raises.mine", b"MINE"), ("b.mine", b"other")):
        (formats / name).write_bytes(data)
    assert [path.name for path in model_files(formats)] == ["a.mine", "m.pth"]
    assert known_formats()[0].name == "mine"


@pytest.mark.parametrize(
    ("hook", "item", "reason"),
    [
        ("rwkv_samplers", "Backend('x', '', 1, print)", "returned a Backend, expected a Sampler"),
        ("rwkv_samplers", "Sampler('x', '', 3)", "start: found 3, expected a function"),
        ("rwkv_samplers", "Sampler('x', '', print, [3])", "options: found [3], expected tuple"),
        (
            "rwkv_samplers",
            "Sampler('dry', '', print)",
            "the sampler name 'dry' is taken by rwkv-core",
        ),
        ("rwkv_checkpoint_formats", "Sampler('x', '', print)", "expected a CheckpointFormat"),
    ],
)
def test_what_a_hook_must_not_return_is_a_problem(
    install_plugin: Callable[..., Path], hook: str, item: str, reason: str
) -> None:
    install_plugin(
        "odd",
        "import rwkv_core\nfrom rwkv_core import Backend, Sampler\n"
        f"@rwkv_core.hookimpl\ndef {hook}(): return [{item}]\n",
    )
    (row,) = [row for row in rwkv_core.list_plugins() if row.name == "odd"]
    assert reason in row.problems[0] and row.offers == {}
