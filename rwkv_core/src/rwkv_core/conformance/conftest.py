"""The backend under test, once for each of its types, and a small model on it."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

import rwkv_core
from rwkv_core.conformance import reference
from rwkv_core.conformance.closeness import as_rounded
from rwkv_core.conformance.plugin import build_ops, given_options
from rwkv_core.errors import BackendError, OptionError
from rwkv_core.model import Model
from rwkv_core.tensor_ops import TensorOps

pytest.register_assert_rewrite("rwkv_core.conformance.closeness")

VARIED = ("dtype", "bits", "runtime_dtype")


def pytest_collection_modifyitems(config: pytest.Config) -> None:
    if config.getoption("rwkv_backend") is None:
        raise pytest.UsageError(
            "rwkv_core.conformance tests one backend: name it with --rwkv-backend NAME "
            "(`rwkv-core list-backends` prints their names)"
        )


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "options" in metafunc.fixturenames and metafunc.config.getoption("rwkv_backend"):
        combinations = list(_combinations(metafunc.config))
        ids = ["-".join(map(str, chosen.values())) or "default" for chosen in combinations]
        metafunc.parametrize("options", combinations, ids=ids, indirect=True, scope="session")


def _combinations(config: pytest.Config) -> Iterator[dict[str, Any]]:
    """Every choice of types that the descriptor lists and the command line leaves open."""
    rows = {row.name: row for row in rwkv_core.list_backends() if row.status == "ready"}
    given = given_options(config)
    known = rows[config.getoption("rwkv_backend")].options
    varied = [o for o in known if o.name in VARIED and o.choices and o.name not in given]
    for values in product(*(option.choices for option in varied)):
        yield {option.name: value for option, value in zip(varied, values, strict=True)}


@pytest.fixture(scope="session")
def options(request: pytest.FixtureRequest) -> dict[str, Any]:
    """The backend's options in this round."""
    return given_options(request.config) | request.param


@pytest.fixture(scope="session")
def ops(request: pytest.FixtureRequest, options: dict[str, Any]) -> TensorOps:
    """The operations under test. A combination of types that is refused here is skipped."""
    try:
        return build_ops(request.config, options)
    except (BackendError, OptionError) as error:
        # That the defaults work has been seen by now.
        pytest.skip(str(error))


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture(scope="session")
def tokens() -> list[int]:
    """Three hundred tokens of the small model's vocabulary."""
    return np.random.default_rng(1).integers(0, reference.N_VOCAB, 300).tolist()


@pytest.fixture(scope="session")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of the small model's weights."""
    path = tmp_path_factory.mktemp("conformance") / "model.safetensors"
    weights = reference.random_weights()
    save_file({name: array.astype(np.float32) for name, array in weights.items()}, path)
    return path


@pytest.fixture(scope="session")
def model(
    request: pytest.FixtureRequest, path: Path, ops: TensorOps, options: dict[str, Any]
) -> Model:
    """The small model on the backend under test."""
    return rwkv_core.load(path, request.config.getoption("rwkv_backend"), **options)


@pytest.fixture(scope="session")
def expected(ops: TensorOps, tokens: list[int]) -> reference.Run:
    """The reference's run over `tokens`, with the weights as the backend rounds them."""
    return reference.run(as_rounded(ops, reference.random_weights()), tokens)
