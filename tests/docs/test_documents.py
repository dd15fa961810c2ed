"""Runs the programs and commands of the READMEs and the pages under rwkv_core/docs."""

import argparse
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

import rwkv_core
from rwkv_core.cli import BUILTIN_COMMANDS

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "rwkv_core" / "docs"
DOCUMENTS = sorted([ROOT / "README.md", *ROOT.glob("rwkv_*/README.md"), *DOCS.rglob("*.md")])
BACKENDS, TUTORIAL = DOCS / "backends.md", DOCS / "writing-a-backend.md"

# Runs programs one after the other, with one set of names, as someone types them who follows a
# page; prints what each has printed.
RUN_IN_TURN = """
import contextlib, io, json, sys
names, printed = {"__name__": "__main__"}, []
for place, program in json.load(sys.stdin):
    with contextlib.redirect_stdout(io.StringIO()) as out:
        exec(compile(program, place, "exec"), names)
    printed.append(out.getvalue())
print(json.dumps(printed))
"""


class Block(NamedTuple):
    document: Path
    line: int
    file: str  # the name given in the line before, `NAME`: means that the block is that file
    language: str
    code: str
    output: str | None  # of a program, where the page shows it in a block of text right below


def blocks(document: Path) -> list[Block]:
    text = document.read_text()
    found = []
    pattern = r"(?:`([^`\n]+)`:\n\n)?^```(\w+)\n(.*?)^```$(?:\n\n```text\n(.*?)^```$)?"
    for match in re.finditer(pattern, text, re.M | re.S):
        line = text.count("\n", 0, match.start(2)) + 1
        found.append(Block(document, line, match[1] or "", match[2], match[3], match[4]))
    return found


ALL = [block for document in DOCUMENTS for block in blocks(document)]


def pages_with(language: str) -> list[pytest.param]:
    """A parameter for each document that has such blocks: they are run in turn."""
    found: dict[Path, list[Block]] = {}
    for block in ALL:
        if block.language == language and not block.file:
            found.setdefault(block.document, []).append(block)
    return [
        pytest.param(page, id=str(document.relative_to(ROOT))) for document, page in found.items()
    ]


def run(*command: str | Path, cwd: Path, stdin: str = "", **variables: str) -> str:
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    done = subprocess.run(
        command,
        cwd=cwd,
        env={**os.environ, "PATH": path, **variables},
        input=stdin,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def check_shown(shown: str, printed: str) -> None:
    """Fail unless `printed` equals the page's text, in which `...` stands for any text."""
    wanted = ".*".join(map(re.escape, shown.strip("\n").split("...")))
    assert re.fullmatch(wanted, printed.strip("\n"), re.S), f"shown:\n{shown}\nprinted:\n{printed}"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    shutil.copy(ROOT / "README.md", tmp_path)
    return tmp_path


@pytest.mark.parametrize("page", pages_with("python"))
def test_python(page: list[Block], folder: Path) -> None:
    for block in blocks(page[0].document):
        if block.file:
            (folder / block.file).write_text(block.code)
    programs = [
        (f"{block.document.name}, block in line {block.line}", block.code) for block in page
    ]
    printed = run(sys.executable, "-c", RUN_IN_TURN, cwd=folder, stdin=json.dumps(programs))
    for block, found in zip(page, json.loads(printed.splitlines()[-1]), strict=True):
        if block.output is not None:
            check_shown(block.output, found)


@pytest.mark.parametrize("page", pages_with("console"))
def test_console(page: list[Block], folder: Path) -> None:
    for block in page:
        for command, shown in re.findall(r"^\$ (.*\n)((?:(?!\$ ).*\n)*)", block.code, re.M):
            assert "rwkv-core " in command
            printed = run("bash", "-c", command, cwd=folder)
            assert printed.strip()
            if shown:
                check_shown(shown, printed)


def shown_commands() -> list[str]:
    """Return the `rwkv-core` commands that are not run, as they need a model or another backend."""
    lines = [line for block in ALL if block.language == "sh" for line in block.code.splitlines()]
    return sorted({line for line in lines if line.startswith("rwkv-core ")})


@pytest.mark.parametrize("line", shown_commands())
def test_a_command_that_is_only_shown_parses(line: str) -> None:
    _, name, *arguments = shlex.split(line, comments=True)
    parser = argparse.ArgumentParser(allow_abbrev=False)
    next(one for one in BUILTIN_COMMANDS if one.name == name).add_arguments(parser)
    parser.parse_args(arguments)


def test_the_first_command_runs_the_main_job(tmp_path: Path) -> None:
    command = blocks(ROOT / "README.md")[0].code
    for name in ("rwkv_core", "rwkv_backend_numpy"):
        shutil.copytree(ROOT / name, tmp_path / name)
    assert len(run("bash", "-c", command, cwd=tmp_path).strip()) > 60


def test_the_second_command_is_what_ci_runs() -> None:
    command = blocks(ROOT / "README.md")[1].code.strip()
    assert command in (ROOT / ".ci" / "run").read_text().splitlines()


def test_the_backends_of_the_page_pass_the_suite_and_verify(tmp_path: Path) -> None:
    (tmp_path / "rwkv-core").symlink_to(ROOT)
    folder = tmp_path / "backend"
    folder.mkdir()
    environment = tmp_path / "environment"
    run(sys.executable, "-m", "venv", environment, cwd=tmp_path)
    # The page's commands, with the suite shared out to all cores.
    run(environment / "bin" / "pip", "install", "pytest-xdist", cwd=tmp_path)
    path = os.pathsep.join([str(environment / "bin"), os.environ["PATH"]])
    outputs = []
    for block in blocks(TUTORIAL):
        if block.file:
            (folder / block.file).write_text(block.code)
        elif block.language == "sh":
            command = ("bash", "-ec", block.code)
            outputs.append(run(*command, cwd=folder, PATH=path, PYTEST_ADDOPTS="-n auto"))
    assert len(outputs) == 2
    assert re.search(r"\d+ passed", outputs[0])
    assert outputs[1].count(" pass ") == 2  # verify, of two dtypes
    assert "backends: strict" in outputs[1]


def test_the_table_of_options_is_what_the_backends_say() -> None:
    table = re.search(r"<!-- options -->\n(.*?)<!-- end of options -->", BACKENDS.read_text(), re.S)
    assert table is not None
    rows = [line.strip("| ").split("|") for line in table[1].strip().splitlines()]
    header, *rows = [[cell.strip(" `") for cell in row] for row in rows]
    shown: dict[str, set[str]] = {name: set() for name in header[1:]}
    for option, *marks in rows[1:]:
        for name, mark in zip(header[1:], marks, strict=False):
            if mark:
                shown[name].add(option)
    installed = {
        row.name: {option.name for option in row.options} for row in rwkv_core.list_backends()
    }
    assert installed.keys() <= shown.keys()
    assert {name: shown[name] for name in installed} == installed


def test_the_readme_of_a_backend_has_its_options() -> None:
    for row in rwkv_core.list_backends():
        readme = (ROOT / row.distribution.replace("-", "_") / "README.md").read_text()
        rows = [line.split("|")[1] for line in readme.splitlines() if line.startswith("| `")]
        shown = {name for cell in rows for name in re.findall(r"`(\w+)`", cell)}
        assert {option.name for option in row.options} <= shown, row.name
