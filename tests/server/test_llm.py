"""The `llm` command against the server, set up as its documentation says."""

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from server_process import Server

pytestmark = pytest.mark.skipif(find_spec("llm") is None, reason="llm is not installed")
MODELS = """
- model_id: rwkv
  model_name: prose
  api_base: "{0}/v1"
  supports_schema: true
- model_id: rwkv-text
  model_name: prose
  api_base: "{0}/v1"
  completion: true
"""


@pytest.fixture(scope="module")
def folder(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("llm")
    (found / "extra-openai-models.yaml").write_text(MODELS.format(server.address))
    return found


def llm(folder: Path, *arguments: str) -> str:
    command = [sys.executable, "-m", "llm", *arguments]
    environment = os.environ | {"LLM_USER_PATH": str(folder)}
    found = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert found.returncode == 0, found.stderr
    return found.stdout.strip()


def last_log(folder: Path) -> dict[str, object]:
    return json.loads(llm(folder, "logs", "-n", "1", "--json"))[0]


def test_a_question_streamed_and_not(folder: Path) -> None:
    ask = ("-m", "rwkv", "What is the sea?", "-o", "max_tokens", "6", "-o", "seed", "1")
    assert llm(folder, *ask, "--no-stream") == llm(folder, *ask) != ""
    assert last_log(folder)["output_tokens"] == 6
    # A conversation goes on.
    llm(folder, "-c", "And why?", "-o", "max_tokens", "1", "-s", "Be brief.")
    assert last_log(folder)["input_tokens"] > 20


def test_a_text_that_is_continued(folder: Path) -> None:
    ask = ("-m", "rwkv-text", "The old man", "-o", "max_tokens", "4", "-o", "temperature", "0")
    assert llm(folder, *ask) == llm(folder, *ask, "--no-stream") != ""


def test_an_answer_by_a_schema(folder: Path) -> None:
    schema = {
        "type": "object", "properties": {"calm": {"type": "boolean"}}, "required": ["calm"],
        "additionalProperties": False,
    }  # fmt: skip
    ask = ("-m", "rwkv", "The sea?", "--schema", json.dumps(schema), "-o", "max_tokens", "60")
    assert json.loads(llm(folder, *ask)).keys() == {"calm"}
