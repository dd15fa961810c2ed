"""Which pip commands messages give, with and without a release."""

import json
import shlex
import shutil
from importlib import metadata
from pathlib import Path

import pytest

from rwkv_core import BackendError, plugins
from rwkv_core.plugins.install_advice import install_extra

ROOT = Path(__file__).parents[2]


def _come_from(monkeypatch: pytest.MonkeyPatch, url: str | None) -> None:
    """Make rwkv-core look as if pip had installed it from there; None: from an index."""
    installed = metadata.distribution("rwkv-core")
    read_text = type(installed).read_text

    def read(self: metadata.Distribution, name: str) -> str | None:
        if name != "direct_url.json":
            return read_text(self, name)
        return None if url is None else json.dumps({"url": url, "dir_info": {}})

    monkeypatch.setattr(type(installed), "read_text", read)


def test_with_no_backend_one_line_recommends_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RWKV_PLUGINS", "")
    plugins.registry.cache_clear()
    with pytest.raises(BackendError) as error:
        plugins.default_backend()
    plugins.registry.cache_clear()
    assert "\n" not in str(error.value)
    assert str(error.value).count('pip install "') == 1
    assert 'pip install "rwkv-core[numba]"' in str(error.value)


def test_advice_names_the_checkout_that_rwkv_core_comes_from(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    checkout = tmp_path / "a checkout"
    for project in ROOT.glob("rwkv_*/pyproject.toml"):
        (checkout / project.parent.name).mkdir(parents=True)
        shutil.copy(project, checkout / project.parent.name)
    _come_from(monkeypatch, (checkout / "rwkv_core").as_uri())
    folders = [str(checkout / f"rwkv_backend_{name}") for name in ("torch", "cuda_variants")]
    advice = install_extra("cuda-variants")
    assert advice == (
        'pip install "rwkv-core[cuda-variants]", or from the checkout: pip install '
        + shlex.join(folders)
    )
    assert install_extra("numba").endswith(shlex.quote(f"{checkout}/rwkv_backend_numpy[numba]"))
    assert install_extra("conformance").endswith(shlex.quote(f"{checkout}/rwkv_core[conformance]"))
    # A checkout that is gone, a wheel, or another place that is no folder.
    _come_from(monkeypatch, "file:///nowhere/rwkv_core")
    assert install_extra("torch").endswith("from the checkout: pip install ./rwkv_backend_torch")
    _come_from(monkeypatch, None)
    assert install_extra("torch") == 'pip install "rwkv-core[torch]"'
