"""`numba`: target processors, threads and processes."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
from filelock import FileLock

from numba_process import LOGITS, python

pytest.importorskip("numba")
pytest.importorskip("rwkv_backend_numpy")

PSEUDO_TERMINALS = os.name == "posix"


@pytest.mark.parametrize(("processor", "dtype"), [("haswell", "int4"), ("generic", "int8")])
def test_other_processors_compute_the_same(tmp_path, processor, dtype):
    """The kernels are compiled for a processor with smaller vectors than this one."""
    code = f"""
        from rwkv_core.cli import main
        main(["verify", "-b", "numba", "-o", "dtype={dtype}"])
    """
    found = python(code, folder=tmp_path, NUMBA_CPU_NAME=processor, NUMBA_CPU_FEATURES="")
    assert found.splitlines()[1].split()[:4] == ["numba", dtype, "cpu", "pass"]


def on_terminal(folder):
    """Return the terminal's output for one token, with kernels cached in `folder`."""
    import pty

    side, child = pty.openpty()
    arguments = ["generate", "a", "-n", "1", "-m", "prose", "-b", "numba"]
    with subprocess.Popen(
        [sys.executable, "-m", "rwkv_core", *arguments, "-o", "dtype=int8"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=child,
        env={**os.environ, "NUMBA_CACHE_DIR": str(folder)},
    ) as process:
        os.close(child)
        shown = b""
        try:
            while some := os.read(side, 4096):
                shown += some
        except OSError:  # Linux's way to say that the other side is closed.
            pass
        os.close(side)
    assert process.returncode == 0
    return shown.decode()


class Kept(NamedTuple):
    folder: Path
    """The cached kernels for LOGITS."""
    shown: str
    """What a terminal showed while most of them were compiled."""
    printed: str
    """By LOGITS."""


@pytest.fixture(scope="session")
def kept(tmp_path_factory):
    """Kernels that are compiled once, which takes 20 s, for all processes of this run."""
    run = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        run = run.parent
    folder, outputs = run / "kernels", run / "kernels.json"
    with FileLock(run / "kernels.lock"):
        if not outputs.exists():
            folder.mkdir(exist_ok=True)
            shown = on_terminal(folder) if PSEUDO_TERMINALS else ""
            printed = python(LOGITS, folder=folder, NUMBA_NUM_THREADS="2")
            outputs.write_text(json.dumps([shown, printed]))
    return Kept(folder, *json.loads(outputs.read_text()))


@pytest.mark.parametrize("n_threads", ["1", "3", "16"])
def test_any_number_of_threads_gives_the_same_bits(kept, n_threads):
    assert python(LOGITS, folder=kept.folder, NUMBA_NUM_THREADS=n_threads) == kept.printed


def test_kernels_are_kept_for_later_processes(kept, tmp_path):
    # A copy, since other tests may add kernels at the same time.
    folder = shutil.copytree(kept.folder, tmp_path / "kernels")
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*.nb[ci]")}
    assert before
    assert python(LOGITS, folder=folder) == kept.printed
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*.nb[ci]")} == before


def test_a_process_without_the_right_to_use_tiles_does_without(tmp_path):
    """Linux refuses AMX's tiles to a process with a signal stack that cannot hold them."""
    refused = """
        import ctypes
        class Stack(ctypes.Structure):
            _fields_ = [("at", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t)]
        room = ctypes.create_string_buffer(4096)
        stack = Stack(ctypes.addressof(room), 0, len(room))
        assert ctypes.CDLL(None).sigaltstack(ctypes.byref(stack), None) == 0
    """
    code = """
        import hashlib
        import numpy as np
        from rwkv_core.plugins import tensor_ops
        ops = tensor_ops("numba", {"dtype": "int8"})
        rng = np.random.default_rng(0)
        matrix, x = (rng.normal(size=shape).astype(np.float32) for shape in [(40, 64), (1, 16, 64)])
        y = ops.matmul(ops.matrix(matrix), ops.vector(x))
        print(hashlib.md5(ops.to_numpy(y).tobytes()).hexdigest())
    """
    # Products of codes are exact, so the kernels agree.
    assert python(code, folder=tmp_path) == python(refused + code, folder=tmp_path)


def test_python_threads_do_not_disturb_each_other(kept):
    code = """
        from concurrent.futures import ThreadPoolExecutor
        import numpy as np, rwkv_core
        model = rwkv_core.load("prose", "numba", dtype="int8")
        tokens = list(range(5))
        expected = model.forward(tokens)[0]
        with ThreadPoolExecutor(4) as pool:
            found = list(pool.map(lambda _: model.forward(tokens)[0], range(60)))
        print(all(np.array_equal(logits, expected) for logits in found))
    """
    assert python(code, folder=kept.folder) == "True\n"


def test_threads_that_sleep_are_woken_for_the_next_kernel(kept):
    """If a worker were never woken again, the others would do its work from then on."""
    code = """
        import time
        from rwkv_backend_numpy.numba.workers import _ASLEEP, Workers
        for _ in range(20):
            workers = Workers()
            for _ in range(2):
                deadline = time.monotonic() + 20
                while workers.control[0, _ASLEEP, 0] < 3 and time.monotonic() < deadline:
                    time.sleep(0.001)
                assert workers.control[0, _ASLEEP, 0] == 3
                workers.wake()
    """
    python(code, folder=kept.folder, NUMBA_NUM_THREADS="4")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no processes are forked here")
def test_a_forked_process_computes_with_threads_of_its_own(kept):
    code = """
        import os, signal, threading, rwkv_core
        model = rwkv_core.load("prose", "numba", dtype="int8")
        expected = model.forward([1])[0].tolist()
        if os.fork() == 0:
            signal.alarm(20)
            same = model.forward([1])[0].tolist() == expected
            print(same, len(threading.enumerate()), flush=True)
            os._exit(0)
        assert os.wait()[1] == 0
    """
    assert python(code, folder=kept.folder, NUMBA_NUM_THREADS="3") == "True 3\n"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no processes are forked here")
def test_a_process_forked_while_another_thread_computes_goes_on(kept):
    code = """
        import os, signal, threading, rwkv_core
        model = rwkv_core.load("prose", "numba", dtype="int8")
        model.forward([1])
        over = threading.Event()

        def compute():
            while not over.is_set():
                model.forward(list(range(100)))

        thread = threading.Thread(target=compute)
        thread.start()
        for _ in range(5):
            over.wait(0.02)
            if os.fork() == 0:
                signal.alarm(20)
                model.forward([1])
                os._exit(0)
            print(os.wait()[1])
        over.set()
        thread.join()
    """
    assert python(code, folder=kept.folder) == "0\n" * 5


@pytest.mark.skipif(not PSEUDO_TERMINALS, reason="no pseudo-terminals here")
def test_a_terminal_shows_once_that_kernels_are_being_compiled(kept):
    assert kept.shown.count("compiling kernels") == 1
    assert "compiling" not in on_terminal(kept.folder)


def test_a_process_ends_while_threads_still_look_for_work(kept):
    code = """
        import rwkv_core
        model = rwkv_core.load("prose", "numba", dtype="int8")
        model.forward([1])
    """
    for _ in range(5):
        python(code, folder=kept.folder, NUMBA_NUM_THREADS="4")
