"""lm-eval's `local-completions` on a small task: `nox -s lm_eval`, since it is 700 MB."""

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from typing import Any

import numpy as np
import pytest

from rwkv_core import RWKV
from server_process import Server

pytestmark = pytest.mark.skipif(
    find_spec("lm_eval") is None, reason="lm-eval is not installed: nox -s lm_eval"
)
ITEMS = [
    {"text": "The old man looked at", "choices": [" the sea", " quickly of"], "label": 0},
    {"text": "It was a dark and", "choices": [" of the", " stormy night"], "label": 1},
    {"text": "He said that he", "choices": [" would go", " green house"], "label": 0},
]
# YAML includes JSON.
COMMON = {"dataset_path": "json", "test_split": "test", "doc_to_text": "{{text}}"}
CHOOSING = COMMON | {
    "task": "choosing", "output_type": "multiple_choice", "doc_to_choice": "{{choices}}",
    "doc_to_target": "{{label}}", "target_delimiter": "", "metric_list": [{"metric": "acc"}],
}  # fmt: skip
WRITING = COMMON | {
    "task": "writing", "output_type": "generate_until", "doc_to_target": "{{label}}",
    "generation_kwargs": {"until": ["\n"], "max_gen_toks": 6},
    "metric_list": [{"metric": "exact_match"}],
}  # fmt: skip


@pytest.fixture(scope="module")
def samples(server: Server, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Any]]:
    """What lm-eval writes of each item of both tasks."""
    folder = tmp_path_factory.mktemp("lm_eval")
    data = folder / "items.jsonl"
    data.write_text("".join(f"{json.dumps(item)}\n" for item in ITEMS))
    for task in (CHOOSING, WRITING):
        task["dataset_kwargs"] = {"data_files": {"test": str(data)}}
        (folder / f"{task['task']}.yaml").write_text(json.dumps(task))
    arguments = f"model=prose,base_url={server.address}/v1/completions,num_concurrent=2"
    command = ["-m", "lm_eval", "--model", "local-completions", "--model_args", arguments]
    command += ["--tasks", "choosing,writing", "--include_path", str(folder), "--log_samples"]
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(folder / "hf")}
    found = subprocess.run(
        [sys.executable, *command, "--output_path", str(folder / "out")],
        env=os.environ | offline, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert found.returncode == 0, found.stderr
    assert "Using tokenizer remote" in found.stderr  # the server's own
    lines = {
        task: next((folder / "out").rglob(f"samples_{task}_*.jsonl")).read_text().splitlines()
        for task in ("choosing", "writing")
    }
    return {task: [json.loads(line) for line in of_task] for task, of_task in lines.items()}


def test_likelihoods_are_the_model_s(samples: dict[str, list[Any]]) -> None:
    rwkv = RWKV("prose", backend="numpy")
    for item, sample in zip(ITEMS, samples["choosing"], strict=True):
        for choice, ((found, is_greedy),) in zip(item["choices"], sample["resps"], strict=True):
            begin = rwkv.tokenizer.encode(item["text"])
            tokens = rwkv.tokenizer.encode(item["text"] + choice)
            logits, _ = rwkv.model.forward(tokens[:-1], all_logits=True)
            logits = rwkv.model.to_numpy(logits).astype(np.float64)[len(begin) - 1 :]
            logprobs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
            rest = tokens[len(begin) :]
            expected = logprobs[np.arange(len(rest)), rest].sum()
            assert float(found) == pytest.approx(expected, abs=1e-3)
            assert is_greedy == str(list(logits.argmax(-1)) == rest)


def test_texts_are_the_model_s(samples: dict[str, list[Any]]) -> None:
    rwkv = RWKV("prose", backend="numpy")
    for item, sample in zip(ITEMS, samples["writing"], strict=True):
        rwkv.reset_state()
        rwkv.load_context(item["text"])
        expected = rwkv.generate(6, temperature=0, stop_strings=["\n"]).text
        assert sample["resps"] == [[expected]]
