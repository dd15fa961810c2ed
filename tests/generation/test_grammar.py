"""Text that follows a schema, a regular expression or a grammar."""

import json
import re
from pathlib import Path

import pytest

import rwkv_core
from rwkv_core.cli import main
from rwkv_core.errors import OptionError

pytest.importorskip("llguidance")
pytestmark = pytest.mark.needs_backend

SCHEMA = {
    "type": "object",
    "properties": {"name": {"enum": ["Ahab", "Ishmael"]}, "old": {"type": "boolean"}},
    "required": ["name", "old"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def rwkv() -> rwkv_core.RWKV:
    found = rwkv_core.RWKV("prose", backend="numpy")
    found.load_context("The captain:")
    return found


def test_json_follows_its_schema(rwkv: rwkv_core.RWKV) -> None:
    begin = rwkv.get_state()
    for seed, schema in enumerate((SCHEMA, json.dumps(SCHEMA))):
        rwkv.set_state(begin)
        found = rwkv.generate(60, seed=seed, json_schema=schema)
        assert json.loads(found.text).keys() == {"name", "old"}
        assert found.stop_reason == "stop_token"


def test_text_matches_its_expression_or_grammar(rwkv: rwkv_core.RWKV) -> None:
    begin = rwkv.get_state()
    text = rwkv.generate(20, seed=1, regex="[0-9]{3}-[a-z]{4}").text
    assert re.fullmatch("[0-9]{3}-[a-z]{4}", text)
    rwkv.set_state(begin)
    assert rwkv.generate(20, seed=1, grammar='start: "a" "b"+ "c"', temperature=0).text[:2] == "ab"


@pytest.mark.parametrize(
    "options",
    [
        {"json_schema": "{"}, {"json_schema": {"type": "whale"}}, {"regex": "("},
        {"grammar": "start: nothing"}, {"regex": "a", "grammar": 'start: "a"'}, {"regex": 3},
    ],
)  # fmt: skip
def test_a_mistake_is_told_at_once(rwkv: rwkv_core.RWKV, options: dict[str, object]) -> None:
    with pytest.raises(OptionError, match="|".join(options)):
        rwkv.stream(5, **options)


def test_the_command_reads_a_schema_from_a_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "schema.json"
    path.write_text(json.dumps(SCHEMA))
    command = ["generate", "The captain:", "-m", "prose", "-b", "numpy", "-n", "60"]
    assert main([*command, "--json-schema", str(path)]) == 0
    assert json.loads(capsys.readouterr().out).keys() == {"name", "old"}
    path.write_text("{}}")
    assert main([*command, "--json-schema", str(path)]) == 2
    assert "json_schema" in capsys.readouterr().err
