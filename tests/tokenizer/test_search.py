"""The search for a model's tokenizer: beside the model, in its repository, on the hub."""

from pathlib import Path

import pytest

import rwkv_core
from byte_tokenizer import write_byte_tokenizer
from pth_writer import write_pth
from random_model import random_weights
from rwkv_core import RWKV, TokenizerError
from rwkv_core.cli import main
from rwkv_core.sources import local_file
from rwkv_core.tokenizer.search import find_tokenizer

PILE, WORLD = 50277, 65536
WORLD_FILE = "rwkv_vocab_v20230424.txt"


@pytest.fixture(scope="module")
def byte_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    write_byte_tokenizer(path)
    return path.read_bytes()


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """Models of a layer 8 wide, alone in their folders, by vocabulary."""
    paths = {}
    for n_vocab in (PILE, WORLD, 300):
        paths[n_vocab] = tmp_path_factory.mktemp(f"of-{n_vocab}") / "model.pth"
        write_pth(paths[n_vocab], random_weights(1, 8, n_vocab))
    return paths


@pytest.fixture
def offline(web, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


def test_a_tokenizer_beside_the_model_is_found(tmp_path):
    for name in ("20B_tokenizer.json", "tokenizer.json"):
        (tmp_path / name).write_text("{}")
        assert find_tokenizer(tmp_path / "model.pth", PILE).name == name


def test_worlds_vocabulary_is_for_worlds_models_alone(tmp_path):
    (tmp_path / "20B_tokenizer.json").write_text("{}")
    (tmp_path / WORLD_FILE).write_text("")
    assert find_tokenizer(tmp_path / "model.pth", WORLD).name == WORLD_FILE
    assert find_tokenizer(tmp_path / "model.pth", PILE).name == "20B_tokenizer.json"


def test_a_file_in_the_models_repository_is_beside_it(web):
    web.repositories["owner/repo"] = {
        "tokenizer.json": b"{}", "sub/m.pth": b"m", "sub/20B_tokenizer.json": b"{}",
    }  # fmt: skip
    path = local_file("hf://owner/repo/sub/m.pth")
    found = find_tokenizer(path, PILE)
    assert found == path.with_name("20B_tokenizer.json") and found.is_file()
    asked = len(web.requests)
    assert find_tokenizer(path, PILE) == found
    assert len(web.requests) == asked


@pytest.mark.needs_backend
def test_a_pile_model_alone_takes_the_hubs_tokenizer(web, models, backend, byte_tokenizer):
    web.repositories["EleutherAI/gpt-neox-20b"] = {"tokenizer.json": byte_tokenizer}
    rwkv = RWKV(models[PILE], backend)
    assert rwkv.tokenizer.decode(rwkv.tokenizer.encode("in the end")) == "in the end"
    rwkv.load_context("the")
    assert len(rwkv.generate(2, seed=1).tokens) == 2
    asked = len(web.gets("tokenizer.json"))
    RWKV(models[PILE], backend)
    assert len(web.gets("tokenizer.json")) == asked


@pytest.mark.needs_backend
def test_a_tokenizer_of_the_hub_that_does_not_fit_is_refused(web, models, backend):
    one = f"{WORLD - 1} 'a' 1\n".encode()
    web.repositories["EleutherAI/gpt-neox-20b"] = {"tokenizer.json": one}
    with pytest.raises(TokenizerError, match="has 65536 tokens, the model knows 50277"):
        RWKV(rwkv_core.load(models[PILE], backend))


@pytest.mark.needs_backend
def test_offline_the_error_of_a_pile_model_says_what_to_get(offline, models, backend, capsys):
    assert main(["generate", "a", "-m", str(models[PILE]), "-b", backend]) == 2
    error = capsys.readouterr().err
    assert "https://huggingface.co/EleutherAI/gpt-neox-20b/resolve/main/tokenizer.json" in error
    assert "--tokenizer" in error and len(error.splitlines()) <= 3


@pytest.mark.needs_backend
def test_a_world_model_without_its_vocabulary_says_what_to_get(offline, models, backend):
    with pytest.raises(TokenizerError, match=WORLD_FILE) as error:
        RWKV(models[WORLD], backend)
    assert "--tokenizer" in str(error.value) and str(error.value).count("\n") == 1


@pytest.mark.needs_backend
def test_a_model_of_another_vocabulary_fetches_none(web, models, backend):
    with pytest.raises(TokenizerError, match="this model knows 300 tokens"):
        RWKV(models[300], backend)
    assert web.requests == []


@pytest.mark.needs_backend
def test_a_world_model_runs_with_its_vocabulary(models, backend, tmp_path, capsys):
    path = tmp_path / "vocabulary.txt"
    path.write_text("".join(f"{n} {chr(96 + n)!r} 1\n" for n in range(1, 27)))
    given = ["generate", "abc", "-n", "3", "--ignore-eos", "-m", str(models[WORLD]), "-b", backend]
    assert main([*given, "--tokenizer", str(path)]) == 0
    assert capsys.readouterr().out.strip().isalpha()
