"""`numba`: kernels are compiled, cached and compiled again; interrupts during compilation."""

import shutil
from pathlib import Path

import pytest

from numba_process import python

pytest.importorskip("numba")
rwkv_backend_numpy = pytest.importorskip("rwkv_backend_numpy")

SIGMOID = (
    "import numpy as np; from rwkv_backend_numpy.numba.vector_operations import sigmoid; "
    "found = np.zeros((1, 4), np.float32); sigmoid(found, found); print(found[0, 3])"
)


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    """A folder with the cached kernels for SIGMOID."""
    folder = tmp_path_factory.mktemp("sigmoid")
    assert python(SIGMOID, folder=folder) == "0.5\n"
    return folder


@pytest.fixture
def folder(compiled, tmp_path):
    """A copy of those kernels, to damage."""
    return shutil.copytree(compiled, tmp_path / "kernels")


@pytest.mark.parametrize("suffix", ["nbi", "nbc"])
@pytest.mark.parametrize("damage", ["emptied", "cut short", "other bytes", "a folder"])
def test_a_kernel_that_cannot_be_read_is_compiled_anew(folder, damage, suffix):
    (path,) = folder.rglob(f"*sigmoid*.{suffix}")
    whole = path.read_bytes()
    path.unlink()
    if damage == "a folder":
        path.mkdir()
    else:
        part = whole[: len(whole) // 2]
        path.write_bytes({"emptied": b"", "cut short": part, "other bytes": part[::-1]}[damage])
    assert python(SIGMOID, folder=folder) == "0.5\n"
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
    """An interrupt could get lost in LLVM's callbacks into Python, and leave half a kernel."""
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
    from rwkv_backend_numpy.numba.vector_operations import sigmoid
    try:
        sigmoid("no array", 1)
    except KeyboardInterrupt:
        print("interrupted")
    """
    assert python(code, folder=tmp_path) == "interrupted\n"


def test_an_interrupts_handler_may_call_kernels(tmp_path):
    code = f"""{INTERRUPTED}
    import numpy as np
    from rwkv_backend_numpy.numba.vector_operations import relu_squared
    found = np.full((1, 4), 3, np.float32)
    signal.signal(signal.SIGINT, lambda *_: relu_squared(found, found))
    {SIGMOID.replace("found", "other")}
    print(found[0, 3])
    """
    assert python(code, folder=tmp_path) == "0.5\n9.0\n"


def test_kernels_whose_files_were_exchanged_are_compiled_anew(folder):
    """Two processes that compile at the same time may leave such files, for another type."""
    code = """
        import numpy as np
        from rwkv_backend_numpy.numba.vector_operations import sigmoid
        for dtype in (np.float32, np.float64):
            found = np.zeros((1, 4), dtype)
            sigmoid(found, found)
            print(found[0, 3])
    """
    assert python(code, folder=folder) == "0.5\n0.5\n"
    one, other = sorted(folder.rglob("*sigmoid*.nbc"))
    first, second = one.read_bytes(), other.read_bytes()
    one.write_bytes(second)
    other.write_bytes(first)
    assert python(code, folder=folder) == "0.5\n0.5\n"


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
    """The changed file may also be one from which the kernel's file imports inner loops."""
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
    """The given folder, the package's and the user's are all not writable."""
    code = f"""
        from numba.core import caching
        for locator in (caching._CacheLocator, *caching._CacheLocator.__subclasses__()):
            locator.ensure_cache_path = lambda self: (_ for _ in ()).throw(OSError("read-only"))
        {SIGMOID}
    """
    assert python(code, folder=tmp_path / "none") == "0.5\n"
    assert not (tmp_path / "none").exists()


def test_listing_backends_imports_no_numba():
    code = """
        import sys
        from rwkv_core.cli import main
        main(["list-backends"])
        print("numba" in sys.modules)
    """
    lines = python(code, folder="").splitlines()
    assert any(line.startswith("numba ") for line in lines) and lines[-1] == "False"
