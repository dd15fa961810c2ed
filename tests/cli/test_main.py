"""The program as a whole: what every command shares."""

import json
import os
import re
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import rwkv_core
from rwkv_core import plugins
from rwkv_core.cli import BUILTIN_COMMANDS, main
from rwkv_core.generation.sampling_parameters import PARAMETERS

PROGRAM = [sys.executable, "-c", "import sys; from rwkv_core.cli import main; sys.exit(main())"]


def run(*arguments: str, **options) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*PROGRAM, *arguments], capture_output=True, encoding="utf-8", timeout=120, **options
    )


def test_list_backends_imports_no_tensor_library():
    code = (
        "import sys; from rwkv_core.cli import main; main(['list-backends']);"
        "heavy = {'numpy', 'torch', 'jax', 'tensorflow', 'numba', 'tokenizers', 'safetensors'};"
        "print(heavy & set(sys.modules), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "set()\n")


def test_list_backends_shows_each_backend_in_80_columns(
    backend, install_plugin, capsys, monkeypatch
):
    monkeypatch.setenv("COLUMNS", "80")
    install_plugin("broken-plugin", "raise RuntimeError('oh no' + ' no' * 100)")
    assert main(["list-backends"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[:3] == ["name", "status", "device"]
    assert any(line.split()[:2] == [backend, "ready"] for line in lines[1:])
    large, small = plugins.default_backend(), plugins.default_backend(0)
    of_small = "" if small == large else rf"; for models under \d+ MB, {small}"
    assert re.fullmatch(rf"Without -b, {large} is used{of_small}\.", lines[-1])
    assert lines[1].split()[0] == plugins.default_backend()
    assert main(["list-backends", backend]) == 0
    lines += capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80


def test_list_backends_as_json(backend, capsys):
    assert main(["list-backends", "--json"]) == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert list(rows[backend]) == [
        "name", "distribution", "version", "contract", "status", "device", "summary", "reason",
        "quantized_dtypes", "options",
    ]  # fmt: skip
    options = {option["name"]: option for option in rows[backend]["options"]}
    precision = options["dtype"]
    assert precision["type"] == "str"
    assert precision["default"] in precision["choices"] and precision["help"]


def test_list_backends_of_one_shows_its_options(backend, capsys):
    assert main(["list-backends", backend]) == 0
    out = capsys.readouterr().out
    assert out.startswith(f"{backend}: ") and "-o name=value" in out
    row = next(row for row in rwkv_core.list_backends() if row.name == backend)
    assert row.options and all(f"\n{option.name} " in out for option in row.options)


def test_list_backends_of_an_unknown_one_names_those_installed(backend, capsys):
    assert main(["list-backends", "nosuch"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("rwkv-core: error: no backend 'nosuch'") and backend in error


def test_a_broken_plugin_is_listed_with_its_reason(install_plugin, capsys):
    install_plugin("broken-plugin", "raise RuntimeError('oh no')")
    assert main(["list-backends"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "broken-plugin broken - RuntimeError: oh no" in shown


def test_help_lists_every_command_with_a_line_and_shows_an_example(capsys):
    with pytest.raises(SystemExit, match="0"):
        main(["--help"])
    out = " ".join(capsys.readouterr().out.split())
    for command in BUILTIN_COMMANDS:
        assert f"{command.name} {command.help}" in out
    assert "example: rwkv-core generate" in out


@pytest.mark.parametrize("command", BUILTIN_COMMANDS, ids=lambda command: command.name)
def test_each_command_has_help(command, capsys):
    with pytest.raises(SystemExit, match="0"):
        main([command.name, "--help"])
    assert command.help in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [[], ["help"]])
def test_the_program_alone_prints_its_help(arguments, capsys):
    with pytest.raises(SystemExit, match="0"):
        main(["--help"])
    expected = capsys.readouterr().out
    with pytest.raises(SystemExit, match="0"):
        main(arguments)
    assert capsys.readouterr().out == expected


def test_help_of_a_command_is_what_its_own_option_prints(capsys):
    outs = []
    for arguments in (["vram", "--help"], ["help", "vram"]):
        with pytest.raises(SystemExit, match="0"):
            main(arguments)
        outs.append(capsys.readouterr().out)
    assert outs[0] == outs[1] and "usage: rwkv-core vram" in outs[0]


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("rwkv-core gen", ["generate"]),
        ("rwkv-core greet --lo", ["--loudly"]),
        ("rwkv-core generate -b nearly-", ["nearly-ready"]),
        ("rwkv-core help ver", ["verify"]),
    ],
)
def test_the_tab_key_completes(line, offered, install_plugin, tmp_path):
    pytest.importorskip("argcomplete", reason="the extra completion is not installed")
    plugin = COMMAND_PLUGIN.replace('("name")', '("--loudly")') + BACKEND_PLUGIN
    variables = {
        "PYTHONPATH": str(install_plugin("greeting", plugin)),
        "_ARGCOMPLETE": "1",
        "_ARGCOMPLETE_IFS": "\n",
        "_ARGCOMPLETE_STDOUT_FILENAME": str(tmp_path / "offered"),
        "COMP_LINE": line,
        "COMP_POINT": str(len(line)),
    }
    done = run(env={**os.environ, **variables})
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "offered").read_text().split() == offered


def test_version(capsys):
    with pytest.raises(SystemExit, match="0"):
        main(["--version"])
    assert capsys.readouterr().out.startswith("rwkv-core 0.")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nosuch"], "unknown command 'nosuch' (see rwkv-core --help)"),
        (["genrate", "x"], "unknown command 'genrate'; did you mean generate?"),
        (["perp"], "did you mean perplexity?"),
        (["help", "genrate"], "did you mean generate?"),
        (["--verison"], "unknown option --verison; did you mean --version?"),
        (["-m", "x", "generate"], "unknown option -m; the options of a command come after it"),
        (["generate", "x", "--nosuch"], "unknown option --nosuch (see rwkv-core generate --help)"),
        (["generate", "x", "--top_p=1"], "did you mean --top-p? (see rwkv-core generate --help)"),
        (["generate", "x", "--temp", "1"], "did you mean --temperature?"),
        (["perplexity", "--max-token"], "did you mean --max-tokens? (see rwkv-core perplexity --"),
        (["generate", "x", "-q"], "unknown option -q (see rwkv-core generate --help)"),
        (["generate", "x", "y"], "found 'y', expected no more arguments (see rwkv-core generate"),
        (["generate", "x", "-n", "many"], "(see rwkv-core generate --help)"),
        (["generate", "x", "-m", "no/such.pth"], "no such file"),
        (["vram", "-m", "."], "a folder"),
    ],
)
def test_a_mistake_is_one_line_and_status_2(arguments, message, capsys):
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("rwkv-core: error: ") and message in captured.err
    assert len(captured.err.splitlines()) == 1


COMMAND_PLUGIN = """
import rwkv_core
from rwkv_core.cli import Command

def add_arguments(parser):
    parser.add_argument("name")

def run(args):
    if args.name == "nobody":
        raise ZeroDivisionError("nobody\\nthere")
    print("hello", args.name)
    return 7

@rwkv_core.hookimpl
def rwkv_commands():
    return [Command("greet", "greet somebody", add_arguments, run)]
"""


BACKEND_PLUGIN = """
@rwkv_core.hookimpl
def rwkv_backends():
    status = rwkv_core.Status(False)
    return [rwkv_core.Backend("nearly-ready", "", rwkv_core.CONTRACT, lambda: status)]
"""


def test_a_plugin_adds_a_command(install_plugin, capsys):
    install_plugin("greeting", COMMAND_PLUGIN)
    assert main(["greet", "you"]) == 7
    assert capsys.readouterr().out == "hello you\n"


def test_a_failure_in_a_plugins_command_is_one_line(install_plugin, capsys, monkeypatch):
    install_plugin("greeting", COMMAND_PLUGIN)
    monkeypatch.delenv("RWKV_DEBUG", raising=False)
    assert main(["greet", "nobody"]) == 2
    assert capsys.readouterr().err == (
        "rwkv-core: error: ZeroDivisionError: nobody there (in the plugin greeting 1.0)\n"
    )


def test_rwkv_debug_shows_the_traceback(install_plugin, capsys, monkeypatch):
    install_plugin("greeting", COMMAND_PLUGIN)
    monkeypatch.setenv("RWKV_DEBUG", "1")
    assert main(["greet", "nobody"]) == 2
    assert "Traceback (most recent call last)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("sound", "faulty", "reason"),
    [
        ('"greet"', '"vram"', "command vram is left out: vram is a built-in command"),
        ('add_argument("name")', 'add_argument("-name", nosuch=1)', "greet is left out: TypeError"),
        ('add_argument("name")', "exit()", "greet is left out: SystemExit"),
        ('"greet somebody"', "None", "greet is left out: AttributeError"),
        ("[Command(", "[rwkv_core.Backend('greet', '', 1, run)] or [Command(", "found a Backend"),
    ],
)
def test_a_faulty_command_of_a_plugin_hurts_no_other(install_plugin, capsys, sound, faulty, reason):
    install_plugin("greeting", COMMAND_PLUGIN.replace(sound, faulty))
    assert main(["vram"]) == 0
    captured = capsys.readouterr()
    assert "169M" in captured.out and reason in captured.err


@pytest.mark.needs_backend
@pytest.mark.skipif(not hasattr(os, "fork"), reason="pipes of another kind")
def test_a_reader_that_goes_away_is_no_error(small_model):
    command = [*PROGRAM, "generate", "a", "-n", "1000000", "--ignore-eos", "-m", str(small_model)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout.read(10)
        process.stdout.close()
        errors = process.stderr.read().decode().splitlines()
    assert process.returncode == 141
    assert len(errors) == 1 and errors[0].startswith("model: ")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux")
def test_a_full_disk_is_one_line():
    with open("/dev/full", "w") as full:
        done = subprocess.run([*PROGRAM, "vram"], stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("rwkv-core: error: standard output cannot be written: No space left")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs signals")
def test_ctrl_c_while_modules_are_imported_prints_nothing():
    # Interrupted where Python looks for the first module that the command line imports.
    code = """
        import importlib.abc, signal, sys
        class Interrupting(importlib.abc.MetaPathFinder):
            def find_spec(self, name, *_):
                if name == "rwkv_core.cli":
                    signal.raise_signal(signal.SIGINT)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        sys.meta_path.insert(0, Interrupting())
        from rwkv_core.__main__ import main
        main()
    """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == -signal.SIGINT and done.stderr == done.stdout == ""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs a POSIX shell")
@pytest.mark.parametrize("closing", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_a_closed_standard_stream_is_no_error(closing):
    command = f'"$0" -m rwkv_core list-backends {closing}'
    done = subprocess.run(["sh", "-c", command, sys.executable], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert (">&-" in closing.replace("2>&-", "")) == (done.stdout == "")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs a POSIX shell")
def test_an_error_with_stderr_closed_still_shows_in_the_status():
    command = '"$0" -m rwkv_core vram -m no/such.pth 2>&-'
    assert subprocess.run(["sh", "-c", command, sys.executable]).returncode == 2


def test_what_a_plugin_prints_is_not_among_the_output(install_plugin):
    noisy = "import sys\nprint('noise')\nsys.stdout = open('/dev/null', 'w')\n" + COMMAND_PLUGIN
    noisy = noisy.replace("    parser.", "    print('noise')\n    parser.")
    folder = install_plugin("greeting", noisy)
    path = os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])
    done = run("greet", "you", env={**os.environ, "PYTHONPATH": path})
    assert (done.returncode, done.stdout, done.stderr) == (7, "hello you\n", "noise\nnoise\n")


def test_a_plugins_text_does_not_steer_the_terminal(install_plugin, capsys):
    install_plugin("broken-plugin", "raise RuntimeError('oh\\x1b[2J no')")
    assert main(["list-backends"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "broken-plugin broken - RuntimeError: oh\ufffd[2J no" in shown


def test_each_parameter_of_sampling_is_an_argument_with_its_help(capsys):
    for command in ("generate", "chat"):
        with pytest.raises(SystemExit, match="0"):
            main([command, "--help"])
        out = " ".join(capsys.readouterr().out.split())
        for parameter in PARAMETERS:
            assert f"{parameter.flag} {parameter.metavar} {parameter.help}" in out
