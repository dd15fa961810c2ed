"""Plugins are found, checked and listed; a broken one is a row, and the others work."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import pytest

import rwkv_core
from rwkv_core import BackendError, OptionError, plugins

GOOD = """
import rwkv_core
from rwkv_core import Backend, Option, Status

@rwkv_core.hookimpl
def rwkv_backends():
    return [Backend("{name}", "a test", {contract}, {status},
                    (Option("depth", int, 3, "how deep"), Option("eager", bool, False, "now"),
                     Option("parts", list, [], "names"), Option("kind", str, "a", "k", ("a", "b"))),
                    {requires})]

@rwkv_core.hookimpl
def rwkv_tensor_ops(backend, options):
    {body}
"""


def good(
    name: str,
    contract: object = rwkv_core.CONTRACT,
    status: str = "lambda: Status(True, score=1)",
    requires: str = "()",
    body: str = "return dict(options)",
) -> str:
    return GOOD.format(name=name, contract=contract, status=status, requires=requires, body=body)


BROKEN = {
    "import-error": ("import a_library_that_is_not_here", "a_library_that_is_not_here"),
    "exits": ("raise SystemExit(3)", "SystemExit: 3"),
    "misspelled": (
        "import rwkv_core\n@rwkv_core.hookimpl\ndef rwkv_backend(): return []",
        "did you mean rwkv_backends?",
    ),
    "unmarked": ("def rwkv_backends(): return []", "@rwkv_core.hookimpl"),
    "wrong-argument": (
        "import rwkv_core\n@rwkv_core.hookimpl\ndef rwkv_tensor_ops(backend, device): pass",
        "device",
    ),
    "raises": (
        "import rwkv_core\n@rwkv_core.hookimpl\ndef rwkv_backends(): raise KeyError('boom')",
        "KeyError: 'boom'",
    ),
    "newer": (good("newer", contract=99), "built for contract 99, this is contract 2"),
    "older": (
        good("older", contract=1),
        "built for contract 1, this is contract 2: upgrade the backend",
    ),
    "status-exits": (good("status-exits", status="exit"), "status check failed: SystemExit"),
    "interrupts": ("raise BaseException('odd')", "BaseException: odd"),
    "hook-exits": (
        "import rwkv_core\n@rwkv_core.hookimpl\ndef rwkv_backends(): exit(4)",
        "SystemExit: 4",
    ),
    "unprintable": (
        "class E(Exception):\n    def __str__(self): 1/0\nraise E",
        "E: (without a message)",
    ),
    "spaced": (good("two words"), "the name 'two words', expected a printable word"),
    "nameless": (good("nameless").replace('"nameless"', "None"), "found the name None"),
    "steers": (good("steers\\x1b[2J"), "expected a printable word"),
    "not-a-backend": (
        "import rwkv_core\n@rwkv_core.hookimpl\ndef rwkv_backends(): return [3]",
        "rwkv_backends returned a int, expected rwkv_core.Backend",
    ),
    "summary": (good("summary").replace('"a test"', "b'x'"), "summary: found b'x', expected str"),
    "contract": (good("contract", contract="'1'"), "contract: found '1', expected int"),
    "no-status": (good("no-status", status="None"), "status: found None, expected a function"),
    "requires": (good("requires", requires="'libfoo'"), "requires: found 'libfoo', expected tuple"),
    "requires-2": (good("requires-2", requires="(1,)"), "requires: found 1, expected str"),
    "options": (good("options").replace("(Option(", "([], Option("), "options: found []"),
    "option-type": (good("option-type").replace("int, 3", "dict, 3"), "found the type <class"),
    "option-help": (good("option-help").replace('"how deep"', "3"), "depth: help: found 3"),
    "option-default": (good("option-default").replace("int, 3", "int, []"), "depth: found []"),
    "status-type": (good("status-type", status="dict"), "status: found {}, expected Status"),
    "available": (good("available", status="lambda: Status('yes')"), "available: found 'yes'"),
    "score": (good("score", status="lambda: Status(True, score=float('nan'))"), "score: found nan"),
    "reason": (good("reason", status="lambda: Status(True, reason=None)"), "reason: found None"),
    "status-raises": (good("status-raises", status="lambda: 1/0"), "ZeroDivisionError"),
}


def row(name: str) -> rwkv_core.BackendInfo:
    rows = [row for row in rwkv_core.list_backends() if row.name == name]
    assert len(rows) == 1, f"{name}: {rows}"
    return rows[0]


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_plugin_is_listed_with_its_reason(
    install_plugin: Callable[..., Path], name: str
) -> None:
    source, reason = BROKEN[name]
    install_plugin(name, source, version="4.2")
    found = row(name)
    assert (found.status, found.distribution, found.version) == ("broken", name, "4.2")
    assert reason in found.reason
    assert found.reason.isprintable()


def test_broken_plugins_harm_no_other(install_plugin: Callable[..., Path]) -> None:
    before = [row for row in rwkv_core.list_backends() if row.status == "ready"]
    for name, (source, _) in BROKEN.items():
        install_plugin(name, source)
    install_plugin("a-good-one", good("a-good-one"))
    after = {row.name for row in rwkv_core.list_backends() if row.status == "ready"}
    assert after == {row.name for row in before} | {"a-good-one"}


def test_a_taken_name_stays_with_the_first(install_plugin: Callable[..., Path]) -> None:
    install_plugin("owner", good("mine"))
    install_plugin("taker", good("mine"))
    rows = [row for row in rwkv_core.list_backends() if row.name == "mine"]
    assert [(row.status, row.distribution) for row in rows] == [
        ("ready", "owner"),
        ("broken", "taker"),
    ]
    assert "the backend name 'mine' is taken by owner 1.0" in rows[1].reason


def test_the_projects_own_names_cannot_be_taken(
    install_plugin: Callable[..., Path], backend: str
) -> None:
    owner = row(backend).distribution
    install_plugin("aaa-first-in-the-alphabet", good(backend))
    ready = [r for r in rwkv_core.list_backends() if r.name == backend and r.status == "ready"]
    assert [r.distribution for r in ready] == [owner]


def test_asking_for_a_broken_backend_says_what_is_wrong(
    install_plugin: Callable[..., Path], small_model: Path
) -> None:
    install_plugin("newer", BROKEN["newer"][0])
    with pytest.raises(BackendError, match=r"newer 1\.0 is broken: built for contract 99"):
        rwkv_core.load(small_model, backend="newer")


def test_asking_for_an_unknown_backend_says_which_exist(small_model: Path) -> None:
    with pytest.raises(BackendError) as error:
        rwkv_core.load(small_model, backend="abacus")
    text = str(error.value)
    assert "no backend 'abacus' is installed" in text
    assert 'pip install "rwkv-core[' in text
    assert all(name in text for name in plugins.own_extras())


def test_asking_for_what_is_nearly_a_known_name_gives_the_extras_too(small_model: Path) -> None:
    with pytest.raises(BackendError) as error:
        rwkv_core.load(small_model, backend="torch-strem")
    assert "did you mean torch" in str(error.value)
    assert all(name in str(error.value) for name in plugins.own_extras())


def test_asking_for_one_of_the_projects_own_gives_the_install_line(small_model: Path) -> None:
    installed = {row.name for row in rwkv_core.list_backends()}
    missing = [name for name in plugins.own_extras() if name not in installed]
    if not missing:
        pytest.skip("all of the project's own backends are installed")
    for name in missing:
        with pytest.raises(BackendError) as error:
            rwkv_core.load(small_model, backend=name)
        assert f'pip install "rwkv-core[{name}]"' in str(error.value)


def test_an_unavailable_backend_says_what_to_install(
    install_plugin: Callable[..., Path], small_model: Path
) -> None:
    status = "lambda: Status(False, reason='libfoo is missing')"
    install_plugin("needy", good("needy", status=status, requires="('libfoo>=2',)"))
    assert row("needy").status == "unavailable"
    with pytest.raises(BackendError, match=r'libfoo is missing; .*pip install "libfoo>=2"'):
        rwkv_core.load(small_model, backend="needy")


def test_nothing_is_to_be_installed_where_all_is_there(
    install_plugin: Callable[..., Path], small_model: Path
) -> None:
    status = "lambda: Status(False, reason='FOO is set to nonsense')"
    install_plugin("set", good("set", status=status, requires="('numpy>=2',)"))
    with pytest.raises(BackendError, match=r"FOO is set to nonsense$"):
        rwkv_core.load(small_model, backend="set")


def test_a_library_missing_at_build_time_gives_the_install_line(
    install_plugin: Callable[..., Path],
) -> None:
    install_plugin("late", good("late", requires="('libbar',)", body="import libbar"))
    with pytest.raises(BackendError, match=r'No module named .libbar.; .*pip install "libbar"'):
        plugins.tensor_ops("late", {})


def test_a_backend_that_fails_to_start_is_one_line(install_plugin: Callable[..., Path]) -> None:
    install_plugin("fails", good("fails", body="return [][1]"))
    with pytest.raises(BackendError, match="backend fails failed to start: IndexError: list"):
        plugins.tensor_ops("fails", {})


def test_something_else_than_operations_is_refused(install_plugin: Callable[..., Path]) -> None:
    install_plugin("odd", good("odd"))
    with pytest.raises(BackendError, match=r"odd 1\.0 returned dict"):
        plugins.tensor_ops("odd", {})


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"dept": 1}, "has no option 'dept'; did you mean depth"),
        ({"depth": "deep"}, "option depth: found 'deep', expected int"),
        ({"depth": 1.5}, "option depth: found 1.5, expected int"),
        ({"depth": True}, "option depth: found True, expected int"),
        ({"eager": "perhaps"}, "option eager: found 'perhaps', expected bool"),
        ({"eager": 1}, "option eager: found 1, expected bool"),
        ({"kind": "c"}, "option kind: found 'c', expected one of: a, b"),
        ({"parts": 3}, "option parts: found 3, expected list"),
    ],
)
def test_a_bad_option_is_one_clear_line(
    install_plugin: Callable[..., Path], given: dict[str, object], message: str
) -> None:
    install_plugin("optional", good("optional"))
    with pytest.raises(OptionError) as error:
        plugins.tensor_ops("optional", given)
    assert message in str(error.value)


def test_options_are_converted_and_completed(install_plugin: Callable[..., Path]) -> None:
    body = "raise rwkv_core.BackendError(repr(sorted(options.items())))"
    install_plugin("optional", good("optional", body=body))
    expected = "[('depth', 7), ('eager', True), ('kind', 'a'), ('parts', ['x', 'y'])]"
    with pytest.raises(BackendError) as error:
        plugins.tensor_ops("optional", {"depth": "7", "eager": "yes", "parts": "x, y"})
    assert str(error.value) == expected


def test_the_highest_score_is_the_default(install_plugin: Callable[..., Path]) -> None:
    install_plugin("slow", good("slow", status="lambda: Status(True, score=-1)"))
    install_plugin("fast", good("fast", status="lambda: Status(True, score=1e9)"))
    install_plugin("gone", good("gone", status="lambda: Status(False, score=1e10)"))
    assert plugins.default_backend() == "fast"


def test_a_backend_that_starts_slowly_is_the_default_of_large_models_only(
    install_plugin: Callable[..., Path],
) -> None:
    install_plugin("quick", good("quick", status="lambda: Status(True, score=1e8)"))
    status = "lambda: Status(True, score=1e9, min_bytes=1000)"
    install_plugin("strong", good("strong", status=status))
    found = [plugins.default_backend(n_bytes) for n_bytes in (None, 1000, 999)]
    assert found == ["strong", "strong", "quick"]


def test_without_a_name_the_best_backend_that_takes_the_options_is_chosen(
    install_plugin: Callable[..., Path],
) -> None:
    quick = good("quick", status="lambda: Status(True, score=1e8)")
    install_plugin("quick", quick.replace('("a", "b")', '("a", "c")'))
    install_plugin("weak", good("weak", status="lambda: Status(True, score=1e7)"))
    status = "lambda: Status(True, score=1e9, min_bytes=1000)"
    install_plugin("strong", good("strong", status=status))
    chosen = plugins.default_backend
    assert chosen(None, {"kind": "c"}) == chosen(999, {"kind": "c"}) == "quick"
    assert (chosen(1000, {"kind": "a"}), chosen(999, {"kind": "a"})) == ("strong", "quick")
    # What the quick one lacks is worth the wait for the strongest of those that have it.
    assert chosen(999, {"kind": "b"}) == "strong"
    with pytest.raises(OptionError, match="strong has no option 'dept'; did you mean depth"):
        chosen(None, {"dept": 1})


def test_the_environment_names_the_allowed_plugins(
    install_plugin: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    install_plugin("one", good("one"))
    install_plugin("two", good("two"))
    monkeypatch.setenv("RWKV_PLUGINS", "two")
    plugins.registry.cache_clear()
    assert [row.name for row in rwkv_core.list_backends()] == ["two"]
    monkeypatch.setenv("RWKV_PLUGINS", "")
    plugins.registry.cache_clear()
    assert rwkv_core.list_backends() == []
    with pytest.raises(BackendError, match=r"no backend is ready here; install .*: pip install"):
        plugins.default_backend()


def test_failures_can_be_made_fatal(
    install_plugin: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    install_plugin("import-error", BROKEN["import-error"][0])
    monkeypatch.setenv("RWKV_PLUGINS_STRICT", "1")
    with pytest.raises(ModuleNotFoundError):
        rwkv_core.list_backends()


def test_listing_imports_no_tensor_library(install_plugin: Callable[..., Path]) -> None:
    folder = install_plugin("a-good-one", good("a-good-one"))
    code = (
        "import json, sys, rwkv_core; names = [b.name for b in rwkv_core.list_backends()]; "
        "heavy = {'numpy', 'torch', 'jax', 'tensorflow', 'numba', 'tokenizers', 'safetensors'}; "
        "print(json.dumps([names, sorted(heavy & set(sys.modules))]))"
    )
    path = os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])
    out = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": path},
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    names, imported = json.loads(out)
    assert "a-good-one" in names
    assert imported == []


def test_what_plugins_print_is_not_on_stdout(
    install_plugin: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    source = "import sys\nprint('a')\nsys.stdout = None\n" + good(
        "noisy", status="lambda: print('b') or Status(True)", body="print('c')"
    )
    install_plugin(
        "noisy", source.replace("    return [Backend", "    print('d')\n    return [Backend")
    )
    assert row("noisy").status == "ready"
    with pytest.raises(BackendError, match="NoneType"):
        plugins.tensor_ops("noisy", {})
    print("mine")
    captured = capsys.readouterr()
    assert captured.out == "mine\n" and {"a", "b", "c"} <= set(captured.err.split())


@pytest.mark.parametrize("body", ["exit(3)", "raise BaseException"])
def test_whatever_a_backend_raises_is_a_backend_error(
    install_plugin: Callable[..., Path], body: str
) -> None:
    install_plugin("fails", good("fails", body=body))
    install_plugin("a-good-one", good("a-good-one"))
    with pytest.raises(BackendError, match=r"fails failed to start: .*other ready.*a-good-one"):
        plugins.tensor_ops("fails", {})


def test_starting_a_backend_asks_no_other_for_its_status(
    install_plugin: Callable[..., Path], tmp_path: Path
) -> None:
    asked = tmp_path / "asked"
    status = f"lambda: open({str(asked)!r}, 'w').close() or Status(True)"
    install_plugin("watched", good("watched", status=status))
    install_plugin("chosen", good("chosen", body="raise rwkv_core.BackendError('started')"))
    with pytest.raises(BackendError, match="started"):
        plugins.tensor_ops("chosen", {})
    assert not asked.exists()


def test_the_allowed_plugins_may_be_spelled_as_pip_does(
    install_plugin: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RWKV_PLUGINS", "My_Plugin")
    install_plugin("my-plugin", good("mine"))
    assert [row.name for row in rwkv_core.list_backends()] == ["mine"]
    with pytest.raises(BackendError, match="RWKV_PLUGINS allows only: My_Plugin"):
        plugins.tensor_ops("numpy", {})
    monkeypatch.setenv("RWKV_PLUGINS", "nosuch")
    plugins.registry.cache_clear()
    with pytest.raises(BackendError, match="RWKV_PLUGINS allows only: nosuch"):
        plugins.default_backend()


def test_a_missing_module_that_is_not_the_required_library_means_to_reinstall(
    install_plugin: Callable[..., Path],
) -> None:
    install_plugin("late", good("late", requires="('libbar>=2',)", body="import part_of_late"))
    with pytest.raises(BackendError, match=r'part_of_late.*pip install --force-reinstall "late"'):
        plugins.tensor_ops("late", {})


def test_of_two_copies_on_the_path_the_first_counts(install_plugin: Callable[..., Path]) -> None:
    folder = install_plugin("copied", "import no_such_library", version="1.0")
    later = folder / "zzz_copied-0.5.dist-info"
    later.mkdir()
    (later / "METADATA").write_text("Metadata-Version: 2.1\nName: copied\nVersion: 0.5\n")
    (later / "entry_points.txt").write_text(f"[{plugins.GROUP}]\ncopied = copied\n")
    first = next(ep for ep in metadata.entry_points(group=plugins.GROUP) if ep.name == "copied")
    assert first.dist is not None
    assert row("copied").version == first.dist.version
