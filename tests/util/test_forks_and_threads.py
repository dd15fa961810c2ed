"""A process that forks after it has computed, and two threads in one RWKV."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import rwkv_core
from rwkv_core import RWKVError, StateError

FORKS_AFTER_USE = """
import os, sys
import rwkv_core
model = rwkv_core.load(sys.argv[1], sys.argv[2])
_, state = model.forward([1])
child = os.fork()
if child == 0:
    acts = (
        lambda: model.forward([1]),
        lambda: model.forward([1], state),
        model.empty_state,
        lambda: model.stack_states([state, state]),
        lambda: rwkv_core.load(sys.argv[1], sys.argv[2]),
    )
    for act in acts:
        try:
            act()
        except rwkv_core.BackendError as error:
            print(error, flush=True)
    os._exit(0)
os.waitpid(child, 0)
model.forward([1], state)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no processes are forked here")
def test_a_process_forked_after_use_computes_or_says_what_to_do(
    small_model: Path, backend: str
) -> None:
    if backend not in ("numpy", "torch", "jax", "tf"):
        pytest.skip("as another backend's, or tested with its own kernels")
    command = [sys.executable, "-c", FORKS_AFTER_USE, str(small_model), backend]
    # With one thread, torch has none to lose.
    environment = {**os.environ, "OMP_NUM_THREADS": "2"}
    found = subprocess.run(
        command, capture_output=True, text=True, timeout=120, check=True, env=environment
    )
    errors = found.stdout.splitlines()
    assert len(errors) == (0 if backend == "numpy" else 5), found
    assert all("was forked" in error and "spawn" in error for error in errors)


def test_a_second_thread_in_one_object_is_told_so_and_changes_nothing(
    small_model: Path, backend: str
) -> None:
    rwkv = rwkv_core.RWKV(small_model, backend=backend)
    rwkv.load_context("a")
    before = rwkv.get_state()
    expected = rwkv.generate(5, temperature=0).tokens
    rwkv.set_state(before)
    acts = (
        lambda: rwkv.load_context("b"),
        lambda: rwkv.generate(1),
        lambda: rwkv.stream(1),
        rwkv.get_state,
        rwkv.reset_state,
        lambda: rwkv.set_state(before),
    )
    errors: list[RWKVError] = []

    def use_elsewhere(_: Any) -> None:
        with ThreadPoolExecutor(1) as other:
            for act in acts:
                with pytest.raises(StateError, match="another thread uses this object") as error:
                    other.submit(act).result()
                errors.append(error.value)

    assert rwkv.generate(5, temperature=0, on_progress=use_elsewhere).tokens == expected
    assert len(errors) >= 5 * len(acts)
    with ThreadPoolExecutor(1) as other:
        assert other.submit(rwkv.get_state).result() is rwkv.get_state()
