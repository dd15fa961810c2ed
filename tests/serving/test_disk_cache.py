"""The prefix cache on disk: it serves the next run, and nothing damaged is read."""

import subprocess
import sys
from pathlib import Path

import pytest

from pth_writer import write_pth
from random_model import random_weights
from rwkv_core import RWKV, StateError, prequantize
from rwkv_core.serving import Engine
from waiting import wait_until

pytestmark = pytest.mark.needs_backend

PROMPT = list(range(60, 160)) * 2


def cached(rwkv: RWKV, folder: Path, prompt: list[int] = PROMPT, **options: int) -> int:
    """How many tokens of a prompt an engine that is started on this folder has in its cache."""
    with Engine(rwkv.model, rwkv.tokenizer, cache_folder=folder, **options) as engine:
        found = engine.submit(prompt, 4, seed=1).result
    with Engine(rwkv.model, rwkv.tokenizer, cache_bytes=0) as plain:
        assert plain.submit(prompt, 4, seed=1).result.text == found.text
    return found.usage.cached_tokens


def files(folder: Path) -> list[Path]:
    # The folders of entries only: those that are being written in vanish while they are looked at.
    return sorted(folder.glob("[!.]*/*.prefix"))


def test_the_next_run_has_it(rwkv: RWKV, tmp_path: Path) -> None:
    assert cached(rwkv, tmp_path) == 0
    assert cached(rwkv, tmp_path) == len(PROMPT)
    assert cached(rwkv, tmp_path, [*PROMPT, 5]) == len(PROMPT)


def test_another_model_has_files_of_its_own(rwkv: RWKV, backend: str, tmp_path: Path) -> None:
    cached(rwkv, tmp_path / "cache")
    write_pth(tmp_path / "other.pth", random_weights(6, 256, rwkv.model.n_vocab))
    other = RWKV(tmp_path / "other.pth", backend, tokenizer=rwkv.tokenizer)
    assert cached(other, tmp_path / "cache") == 0
    assert len({path.parent for path in files(tmp_path / "cache")}) == 2


def test_each_quantization_has_files_of_its_own(rwkv: RWKV, backend: str, tmp_path: Path) -> None:
    cached(rwkv, tmp_path / "cache")
    for group_size in (64, 128):
        file = prequantize("prose", tmp_path / f"{group_size}.pqth", 4, group_size)
        quantized = RWKV(file, backend, tokenizer=rwkv.tokenizer)
        assert cached(quantized, tmp_path / "cache") == 0
        assert cached(quantized, tmp_path / "cache") == len(PROMPT)


def test_each_group_size_of_an_option_has_files_of_its_own(tmp_path: Path) -> None:
    pytest.importorskip("numba")
    for group_size in (64, 128):
        rwkv = RWKV("prose", "numba", dtype="int4", group_size=group_size)
        assert cached(rwkv, tmp_path) == 0


@pytest.mark.parametrize("damage", ["empty", "cut", "byte", "swapped", "random"])
def test_a_damaged_file_is_not_read(rwkv: RWKV, tmp_path: Path, damage: str) -> None:
    cached(rwkv, tmp_path)
    cached(rwkv, tmp_path, [9, *PROMPT])
    paths = files(tmp_path)
    whole = {path: path.read_bytes() for path in paths}
    for path, other in zip(paths, [*paths[1:], paths[0]], strict=True):
        data = whole[path]
        path.write_bytes(
            {
                "empty": b"",
                "cut": data[:-100],
                "byte": data[:-50] + bytes([data[-50] ^ 1]) + data[-49:],
                "swapped": whole[other],
                "random": bytes(range(256)) * 40,
            }[damage]
        )
    assert cached(rwkv, tmp_path) == 0
    assert cached(rwkv, tmp_path) == len(PROMPT)


def test_it_stays_within_its_bytes(rwkv: RWKV, tmp_path: Path) -> None:
    for first in range(5):
        cached(rwkv, tmp_path, [first, *PROMPT], cache_bytes=150_000)
    assert 0 < sum(path.stat().st_size for path in files(tmp_path)) < 160_000
    assert cached(rwkv, tmp_path, [4, *PROMPT], cache_bytes=150_000) == 1 + len(PROMPT)


def test_a_smaller_bound_removes_only_what_it_needs_room_for(rwkv: RWKV, tmp_path: Path) -> None:
    prompts = [[first, *PROMPT] for first in range(5)]
    for prompt in prompts:
        cached(rwkv, tmp_path, prompt)
    before = files(tmp_path)
    cached(rwkv, tmp_path, cache_bytes=0)
    with Engine(rwkv.model, rwkv.tokenizer, cache_folder=tmp_path, cache_bytes=300_000) as engine:
        assert 0 < engine.stats().cache_entries < len(before)
        assert engine.stats().cache_bytes < 300_000
    assert files(tmp_path) == before
    # The first write goes beyond the bound: the oldest files make room.
    assert cached(rwkv, tmp_path, [9, *PROMPT], cache_bytes=300_000) == 0
    after = files(tmp_path)
    assert sum(path.stat().st_size for path in after) < 310_000
    assert cached(rwkv, tmp_path, prompts[-1], cache_bytes=300_000) == len(prompts[-1])
    assert cached(rwkv, tmp_path, prompts[0], cache_bytes=300_000) == 0


def test_an_entry_that_is_too_large_removes_no_file(rwkv: RWKV, tmp_path: Path) -> None:
    cached(rwkv, tmp_path)
    before = files(tmp_path)
    cached(rwkv, tmp_path, [9, *PROMPT], cache_bytes=1000)
    assert files(tmp_path) == before


def test_a_folder_that_cannot_be_is_one_line(rwkv: RWKV, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StateError, match="cannot be written") as error:
        Engine(rwkv.model, rwkv.tokenizer, cache_folder=tmp_path / "file")
    assert "\n" not in str(error.value)


KILLED = """
import sys, os, threading, time
from rwkv_core import RWKV
from rwkv_core.serving import Engine
rwkv = RWKV("prose", sys.argv[1])
engine = Engine(rwkv.model, rwkv.tokenizer, cache_folder=sys.argv[2])
engine.submit([60] * 20, 2).result
print("begun", flush=True)
for i in range(10**6):
    engine.submit([i % 250, *range(60, 100)], 2).result
"""


def test_a_killed_run_leaves_nothing_that_is_read_wrong(
    rwkv: RWKV, backend: str, tmp_path: Path
) -> None:
    command = [sys.executable, "-c", KILLED, backend, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == b"begun\n"
            wait_until(lambda: len(files(tmp_path)) >= 5)
        finally:
            process.kill()
    assert cached(rwkv, tmp_path, [1, *range(60, 100)]) in (0, 41)
    assert cached(rwkv, tmp_path, [1, *range(60, 100)]) == 41
    assert not list(tmp_path.rglob(".rwkv-core-*"))
