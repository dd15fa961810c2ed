"""Fixtures: the backends installed here, a small random model with a tokenizer, fake plugins."""

import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from huggingface_hub import constants

import rwkv_core
from byte_tokenizer import write_byte_tokenizer
from hub_server import Hub, serve
from pth_writer import write_pth
from random_model import random_weights
from rwkv_core import plugins
from rwkv_core.sources import download

# Backends that are installed and meant: RWKV_TEST_BACKENDS (comma-separated) narrows them down.
_MEANT = os.environ.get("RWKV_TEST_BACKENDS")
READY = [
    row.name
    for row in rwkv_core.list_backends()
    if row.status == "ready" and (_MEANT is None or row.name in _MEANT.split(","))
]
# What is above the contract does the same on all of them: it is tested on this one.
ONE = "numpy" if "numpy" in READY else next(iter(READY), None)


# A run that a shell started in the background ignores Ctrl-C, and so would the processes it starts.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    meant = [item for item in items if _is_meant(item)]
    config.hook.pytest_deselected(items=[item for item in items if item not in meant])
    items[:] = meant
    if not READY:
        for item in items:
            if _needs_one(item) or _is_of_a_backend(item):
                item.add_marker(pytest.mark.skip(reason="no backend is installed here"))


def _is_meant(item: pytest.Item) -> bool:
    """Return whether a test checks something here that no other nox session checks."""
    if _needs_one(item):
        backend = item.callspec.params.get("backend", ONE) if hasattr(item, "callspec") else ONE
        return backend == ONE and (_MEANT is None or ONE in ("numpy", None))
    # Where backends are tested, the session of the core alone runs what uses none.
    return _MEANT is None or not READY or _is_of_a_backend(item)


def _needs_one(item: pytest.Item) -> bool:
    return item.get_closest_marker("needs_backend") is not None


def _is_of_a_backend(item: pytest.Item) -> bool:
    return "backend" in item.fixturenames or item.path.parent.name == "backends"


@pytest.fixture(params=READY or [None])
def backend(request: pytest.FixtureRequest) -> str:
    """The name of each backend that is ready and selected, one after the other."""
    return request.param


@pytest.fixture(scope="session")
def small_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model of 2 layers, 32 wide, beside a tokenizer of single bytes."""
    folder = tmp_path_factory.mktemp("small")
    n_vocab = write_byte_tokenizer(folder / "tokenizer.json")
    write_pth(folder / "small.pth", random_weights(2, 32, n_vocab, seed=1))
    return folder / "small.pth"


@pytest.fixture
def web(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A server that stands for the Hugging Face hub in this process and its children."""
    with serve() as server:
        monkeypatch.setenv("HF_ENDPOINT", server.address)
        monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
        monkeypatch.setenv("RWKV_CACHE", str(tmp_path / "cache"))
        monkeypatch.delenv("HF_TOKEN", raising=False)
        # What the client has read from the environment when it was imported.
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hf" / "hub"))
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "hf" / "token"))
        # So that small files come in several pieces, and nothing waits long.
        monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 10_000)
        monkeypatch.setattr(download, "PAUSE", 0.01)
        yield server


@pytest.fixture
def address(web: Hub) -> str:
    """Return the address of a file outside the hub."""
    return web.address.replace("127.0.0.1", "localhost") + "/file.bin"


@pytest.fixture
def install_plugin(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., Path]]:
    """Puts a plugin where pip would: a module beside a .dist-info folder, on the path.

    Returns the folder, for the PYTHONPATH of a subprocess.
    """
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.syspath_prepend(folder)
    modules: list[str] = []

    def install(name: str, source: str, version: str = "1.0") -> Path:
        module = name.replace("-", "_")
        modules.append(module)
        (folder / f"{module}.py").write_text(source)
        info = folder / f"{module}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        (info / "entry_points.txt").write_text(f"[{plugins.GROUP}]\n{name} = {module}\n")
        plugins.registry.cache_clear()
        return folder

    yield install
    for module in modules:
        sys.modules.pop(module, None)
    plugins.registry.cache_clear()
