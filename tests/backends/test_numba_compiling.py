"""`numba`: what is compiled and kept, for which processors, and how threads and processes go on."""

import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

pytest.importorskip("numba")
rwkv_backend_numpy = pytest.importorskip("rwkv_backend_numpy")


def python(code, *, folder, **variables):
    """What a process of its own prints, which keeps its kernels in `folder`."""
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "NUMBA_CACHE_DIR": str(folder), **variables},
    ).stdout


@pytest.mark.parametrize(("processor", "dtype"), [("haswell", "int4"), ("generic", "int8")])
def test_other_processors_compute_the_same(tmp_path, processor, dtype):
    """Without the vectors of this one: as the kernels would be compiled there."""
    code = f"""
        from rwkv_core.cli import main
        main(["verify", "-b", "numba", "-o", "dtype={dtype}"])
    """
    found = python(code, folder=tmp_path, NUMBA_CPU_NAME=processor, NUMBA_CPU_FEATURES="")
    assert found.splitlines()[1].split()[:4] == ["numba", dtype, "cpu", "pass"]


SIGMOID = (
    "import numpy as np; from rwkv_backend_numpy.numba.vector_kernels import sigmoid; "
    "found = np.zeros((1, 4), np.float32); sigmoid(found, found); print(found[0, 3])"
)


LOGITS = """
    import hashlib, os, sys
    import rwkv_core
    model = rwkv_core.load("prose", "numba", dtype="int8")
    tokens = list(range(5))
    logits = model.forward(tokens, all_logits=True)[0], model.forward([7])[0]
    print(*(hashlib.md5(array.tobytes()).hexdigest() for array in logits))
"""


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """A folder with the kernels that LOGITS takes, and what it prints."""
    folder = tmp_path_factory.mktemp("kernels")
    return folder, python(LOGITS, folder=folder, NUMBA_NUM_THREADS="2")


@pytest.mark.parametrize("n_threads", ["1", "3", "16"])
def test_any_number_of_threads_gives_the_same_bits(kept, n_threads):
    folder, expected = kept
    assert python(LOGITS, folder=folder, NUMBA_NUM_THREADS=n_threads) == expected


def test_kernels_are_kept_for_later_processes(kept):
    folder, expected = kept
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*.nb[ci]")}
    assert before
    assert python(LOGITS, folder=folder) == expected
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*.nb[ci]")} == before


@pytest.mark.parametrize("suffix", ["nbi", "nbc"])
@pytest.mark.parametrize("damage", ["emptied", "cut short", "other bytes", "a folder"])
def test_a_kernel_that_cannot_be_read_is_compiled_anew(tmp_path, damage, suffix):
    assert python(SIGMOID, folder=tmp_path) == "0.5\n"
    (path,) = tmp_path.rglob(f"*sigmoid*.{suffix}")
    whole = path.read_bytes()
    path.unlink()
    if damage == "a folder":
        path.mkdir()
    else:
        part = whole[: len(whole) // 2]
        path.write_bytes({"emptied": b"", "cut short": part, "other bytes": part[::-1]}[damage])
    assert python(SIGMOID, folder=tmp_path) == "0.5\n"
    assert path.is_dir() or path.stat().st_size > len(whole) // 2


def test_a_disk_that_is_full_keeps_no_kernels(tmp_path):
    code = f"""
        import resource
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))
        {SIGMOID}
    """
    assert python(code, folder=tmp_path) == "0.5\n"
    assert not list(tmp_path.rglob("*.nbc"))
    assert python(SIGMOID, folder=tmp_path) == "0.5\n"


INTERRUPTED = """
    import signal, threading
    from numba.core import event
    timer = threading.Timer(0.2, lambda: signal.raise_signal(signal.SIGINT))
    class Interrupt(event.Listener):
        on_start = lambda self, started: timer.ident or timer.start()
        on_end = lambda self, ended: timer.join()
    event.register("numba:compile", Interrupt())
"""


def test_an_interrupt_waits_for_a_kernel_to_be_compiled(tmp_path):
    """LLVM calls back into Python, which would lose it there, and the kernel would be half done."""
    code = f"""{INTERRUPTED}
    try:
        {SIGMOID}
    except KeyboardInterrupt:
        print("interrupted")
    {SIGMOID}
    """
    assert python(code, folder=tmp_path) == "interrupted\n0.5\n"


def test_an_interrupt_comes_through_where_a_kernel_cannot_be_compiled(tmp_path):
    code = f"""{INTERRUPTED}
    from rwkv_backend_numpy.numba.vector_kernels import sigmoid
    try:
        sigmoid("no array", 1)
    except KeyboardInterrupt:
        print("interrupted")
    """
    assert python(code, folder=tmp_path) == "interrupted\n"


def test_an_interrupts_handler_may_call_kernels(tmp_path):
    code = f"""{INTERRUPTED}
    import numpy as np
    from rwkv_backend_numpy.numba.vector_kernels import relu_squared
    found = np.full((1, 4), 3, np.float32)
    signal.signal(signal.SIGINT, lambda *_: relu_squared(found, found))
    {SIGMOID.replace("found", "other")}
    print(found[0, 3])
    """
    assert python(code, folder=tmp_path) == "0.5\n9.0\n"


def test_kernels_whose_files_were_exchanged_are_compiled_anew(tmp_path):
    """As two processes that compile at a time may leave them, for another type of arguments."""
    code = """
        import numpy as np
        from rwkv_backend_numpy.numba.vector_kernels import sigmoid
        for dtype in (np.float32, np.float64):
            found = np.zeros((1, 4), dtype)
            sigmoid(found, found)
            print(found[0, 3])
    """
    assert python(code, folder=tmp_path) == "0.5\n0.5\n"
    one, other = sorted(tmp_path.rglob("*sigmoid*.nbc"))
    first, second = one.read_bytes(), other.read_bytes()
    one.write_bytes(second)
    other.write_bytes(first)
    assert python(code, folder=tmp_path) == "0.5\n0.5\n"


def test_a_setting_that_numba_cannot_follow_is_one_line(tmp_path):
    code = """
        import sys
        from rwkv_core.cli import main
        sys.stderr = sys.stdout
        main(["generate", "a", "-n", "1", "-m", "prose", "-b", "numba"])
    """
    *_, last = python(code, folder=tmp_path, NUMBA_DISABLE_JIT="1").splitlines()
    assert last.startswith("rwkv-core: error: numba: found NUMBA_DISABLE_JIT")
    assert last.endswith("unset it")


def test_an_edited_source_file_is_compiled_anew(tmp_path):
    """Also one that the kernel's own file takes its inner loops from."""
    package = tmp_path / "rwkv_backend_numpy"
    shutil.copytree(Path(rwkv_backend_numpy.__file__).parent, package)
    kept = []
    for _ in range(3):
        python(SIGMOID, folder=tmp_path / "kernels", PYTHONPATH=str(tmp_path))
        kept.append(len(list((tmp_path / "kernels").rglob("*sigmoid*.nbc"))))
        if len(kept) == 2:
            with (package / "numba" / "activations.py").open("a") as file:
                file.write("# Edited.\n")
    assert kept == [1, 1, 2]


def test_nowhere_to_keep_them(tmp_path):
    """Neither the folder asked for, nor beside the package, nor the user's own can be written."""
    code = """
        from numba.core import caching
        for locator in (caching._CacheLocator, *caching._CacheLocator.__subclasses__()):
            locator.ensure_cache_path = lambda self: (_ for _ in ()).throw(OSError("read-only"))
        import rwkv_core
        print(rwkv_core.load("prose", "numba").forward([1])[0].shape)
    """
    assert python(code, folder=tmp_path / "none").strip() == "(4096,)"
    assert not (tmp_path / "none").exists()


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
    assert python(code, folder=kept[0]) == "True\n"


def test_threads_that_sleep_are_woken_for_the_next_kernel(kept):
    """One that is forgotten leaves the others to do its work, for as long as the process lives."""
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
    python(code, folder=kept[0], NUMBA_NUM_THREADS="4")


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
    assert python(code, folder=kept[0], NUMBA_NUM_THREADS="3") == "True 3\n"


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
    assert python(code, folder=kept[0]) == "0\n" * 5


def on_terminal(folder):
    """What a terminal shows of a token, generated with kernels kept in `folder`."""
    pty = pytest.importorskip("pty", reason="no pseudo-terminals here")
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


def test_a_terminal_shows_once_that_kernels_are_being_compiled(tmp_path):
    assert on_terminal(tmp_path).count("compiling kernels") == 1
    assert "compiling" not in on_terminal(tmp_path)


def test_a_process_ends_while_threads_still_look_for_work(kept):
    code = """
        import rwkv_core
        model = rwkv_core.load("prose", "numba", dtype="int8")
        model.forward([1])
    """
    for _ in range(5):
        python(code, folder=kept[0], NUMBA_NUM_THREADS="4")


def test_listing_backends_imports_no_numba():
    code = """
        import sys
        from rwkv_core.cli import main
        main(["list-backends"])
        print("numba" in sys.modules)
    """
    lines = python(code, folder="").splitlines()
    assert any(line.startswith("numba ") for line in lines) and lines[-1] == "False"
