"""Fixtures: the backends installed here, a small random model with a tokenizer, fake plugins."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import rwkv_core
from byte_tokenizer import write_byte_tokenizer
from pth_writer import write_pth
from random_model import random_weights
from rwkv_core import plugins

READY = [row.name for row in rwkv_core.list_backends() if row.status == "ready"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        needs = "backend" in item.fixturenames or item.get_closest_marker("needs_backend")
        if needs and not READY:
            item.add_marker(pytest.mark.skip(reason="no backend is installed here"))


@pytest.fixture(params=READY or [None])
def backend(request: pytest.FixtureRequest) -> str:
    """The name of each backend that is ready here, one after the other."""
    return request.param


@pytest.fixture(scope="session")
def small_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model of 2 layers, 32 wide, beside a tokenizer of single bytes."""
    folder = tmp_path_factory.mktemp("small")
    n_vocab = write_byte_tokenizer(folder / "tokenizer.json")
    write_pth(folder / "small.pth", random_weights(2, 32, n_vocab, seed=1))
    return folder / "small.pth"


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
