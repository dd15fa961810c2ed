"""A bad option of any backend ends a command with one line that names it, and no traceback."""

import pytest

import rwkv_core
from rwkv_core.cli import main

WRONG = {
    int: ("several", "0", "-1", "2.5", "1" + "0" * 20),
    float: ("much", "-1", "nan", "-inf", "1e308"),
    bool: ("perhaps",),
    str: ("no-such-thing",),
    list: ("no-such-thing", ","),
}


def options_of(backend: str) -> tuple[rwkv_core.Option, ...]:
    return next(row.options for row in rwkv_core.list_backends() if row.name == backend)


def refusal(backend: str, option: str, capsys: pytest.CaptureFixture[str]) -> str:
    assert main(["generate", "a", "-n", "1", "-m", "prose", "-b", backend, "-o", option]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert len(err.splitlines()) <= 2
    return err


def test_a_wrong_value_is_refused_by_the_options_name(backend, capsys):
    options = options_of(backend)
    assert options
    for option in options:
        for value in WRONG[option.type]:
            message = refusal(backend, f"{option.name}={value}", capsys)
            assert option.name in message, (option.name, value)


def test_an_unknown_option_is_refused_with_the_known_ones(backend, capsys):
    message = refusal(backend, "no_such_option=1", capsys)
    assert "no_such_option" in message
    assert all(option.name in message for option in options_of(backend))


def test_a_wrong_type_is_refused_from_python(backend):
    for option in options_of(backend):
        with pytest.raises(rwkv_core.OptionError, match=option.name):
            rwkv_core.load("prose", backend=backend, **{option.name: object()})


def test_no_help_speaks_of_a_dtype_that_a_backend_does_not_have(backend):
    options = options_of(backend)
    if "dtype" not in [option.name for option in options]:
        assert not [option.name for option in options if " dtype" in option.help]
