"""Fixtures: the backend under test, once for each of its dtypes, and models on this backend."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache, lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from safetensors.numpy import save_file

import rwkv_core
from rwkv_core.backends.descriptor import Option
from rwkv_core.backends.tensor_ops import TensorOps
from rwkv_core.conformance.closeness import as_rounded
from rwkv_core.conformance.plugin import build_ops, given_options
from rwkv_core.conformance.references import blocks, rwkv5, rwkv6, rwkv7
from rwkv_core.conformance.references import rwkv4 as reference
from rwkv_core.errors import BackendError, OptionError
from rwkv_core.model import Model

pytest.register_assert_rewrite("rwkv_core.conformance.closeness")


def pytest_collection_modifyitems(config: pytest.Config) -> None:
    if config.getoption("rwkv_backend") is None:
        raise pytest.UsageError(
            "rwkv_core.conformance tests one backend: name it with --rwkv-backend NAME "
            "(`rwkv-core list-backends` prints their names)"
        )


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "options" in metafunc.fixturenames and metafunc.config.getoption("rwkv_backend"):
        combinations = _combinations(metafunc.config)
        ids = ["-".join(map(str, chosen.values())) or "default" for chosen in combinations]
        metafunc.parametrize("options", combinations, ids=ids, indirect=True, scope="session")


@lru_cache(maxsize=1)  # Needed for each test, and slow: it checks the status of every backend.
def _combinations(config: pytest.Config) -> list[dict[str, Any]]:
    """Return the combinations of types to test.

    Each dtype of the matrices is tested with the state's default dtype. Each other dtype of the
    state is tested with matrices of the same dtype, or of the default dtype if matrices cannot have
    it. If a dtype is given on the command line, only this dtype is tested.
    """
    rows = {row.name: row for row in rwkv_core.list_backends() if row.status == "ready"}
    known = {option.name: option for option in rows[config.getoption("rwkv_backend")].options}
    given = given_options(config)
    types = [_choices(known, given, name) for name in ("dtype", "runtime_dtype")]
    (first, *_), (usual, *others) = types
    pairs = [(dtype, usual) for dtype in types[0]]
    pairs += [(other if other in types[0] else first, other) for other in others]
    named = [{"dtype": dtype, "runtime_dtype": runtime} for dtype, runtime in pairs]
    return [{name: value for name, value in one.items() if value is not None} for one in named]


def _choices(known: Mapping[str, Option], given: Mapping[str, Any], name: str) -> list[Any]:
    """Return an option's choices, the default first.

    Returns [None] if the option has no choices, or if --rwkv-option sets it.
    """
    if name in given or name not in known or not known[name].choices:
        return [None]
    return sorted(known[name].choices, key=lambda choice: choice != known[name].default)


@pytest.fixture(scope="session")
def options(request: pytest.FixtureRequest) -> dict[str, Any]:
    """The backend's options in this round."""
    return given_options(request.config) | request.param


@pytest.fixture(scope="session")
def ops(request: pytest.FixtureRequest, options: dict[str, Any]) -> TensorOps:
    """The operations under test. Skips a combination of dtypes that the backend refuses."""
    try:
        return build_ops(request.config, options)
    except (BackendError, OptionError) as error:
        # The defaults have been tested by now.
        pytest.skip(str(error))


@pytest.fixture
def fresh_ops(request: pytest.FixtureRequest, options: dict[str, Any], ops: TensorOps) -> TensorOps:
    """Operations of this test only, since quantized matrices may change their properties."""
    return build_ops(request.config, options)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture(scope="session")
def tokens() -> list[int]:
    """Tokens of the models' vocabulary, more than one chunk."""
    return np.random.default_rng(1).integers(0, reference.SMALL.n_vocab, 540).tolist()


@cache
def _weights(sizes: reference.Sizes, key_size: int) -> reference.Weights:
    weights = reference.random_weights(sizes)
    for name in weights:
        if name.endswith("ffn.key.weight"):
            weights[name] *= key_size
    return weights


class Models:
    """Makes model files, models on the backend under test, and reference runs, each only once."""

    def __init__(self, folder: Path, backend: str, tokens: list[int]) -> None:
        self._folder, self._backend, self._tokens = folder, backend, tokens
        self._expected: dict[Any, reference.Run] = {}

    def path(self, sizes: reference.Sizes, key_size: int = 1) -> Path:
        path = self._folder / f"{sizes.n_layer}x{sizes.n_embd}-{key_size}.safetensors"
        if not path.exists():
            weights = _weights(sizes, key_size)
            save_file({name: array.astype(np.float32) for name, array in weights.items()}, path)
        return path

    def load(self, sizes: reference.Sizes, options: dict[str, Any], key_size: int = 1) -> Model:
        return rwkv_core.load(self.path(sizes, key_size), self._backend, **options)

    def expected(
        self, ops: TensorOps, sizes: reference.Sizes, n_tokens: int | None = None, key_size: int = 1
    ) -> reference.Run:
        """Return the reference's run over `tokens`, with weights as the backend must round them."""
        key = (sizes, n_tokens, key_size, ops.dtype)
        if key not in self._expected:
            weights = as_rounded(ops, _weights(sizes, key_size))
            self._expected[key] = reference.run(weights, self._tokens[:n_tokens])
        return self._expected[key]


@pytest.fixture(scope="session")
def models(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, tokens: list[int]
) -> Models:
    folder = tmp_path_factory.mktemp("conformance")
    return Models(folder, request.config.getoption("rwkv_backend"), tokens)


@pytest.fixture(scope="session")
def model(models: Models, ops: TensorOps, options: dict[str, Any]) -> Model:
    """The model of most tests, on the backend under test."""
    return models.load(reference.MEDIUM, options)


@pytest.fixture(scope="session")
def expected(models: Models, ops: TensorOps) -> reference.Run:
    """The reference's run of that model over `tokens`."""
    return models.expected(ops, reference.MEDIUM)


LATER_VERSIONS = ("rwkv5.0", "rwkv5.1", "rwkv5.2", "rwkv6", "rwkv7")
_later_runs: dict[Any, blocks.Run] = {}


class Loaded(NamedTuple):
    """A model of RWKV-5 to 7, and the reference's run over the first of `tokens`."""

    model: Model
    expected: blocks.Run


@cache
def later_weights(version: str, sizes: blocks.Sizes) -> reference.Weights:
    if version == "rwkv7":
        return rwkv7.random_weights(sizes)
    if version == "rwkv6":
        return rwkv6.random_weights(sizes)
    return rwkv5.random_weights(sizes, version.removeprefix("rwkv"))


def save_weights(path: Path, weights: reference.Weights) -> None:
    narrow = {name: array.astype(np.float32) for name, array in weights.items()}
    save_file({name: np.ascontiguousarray(array) for name, array in narrow.items()}, path)


@pytest.fixture(scope="session")
def load_later(
    request: pytest.FixtureRequest,
    ops: TensorOps,
    options: dict[str, Any],
    tokens: list[int],
    tmp_path_factory: pytest.TempPathFactory,
) -> Callable[[str, blocks.Sizes], Loaded]:
    """Return a function that loads a model (version, sizes) on the tested backend, only once."""
    if ops.fixed_shapes and (ops.dtype, ops.runtime_dtype) != ("float32", "float32"):
        # Products and scans are compared in every type; these compile some hundred functions.
        pytest.skip("each shape costs a compilation: later versions run whole in float32 alone")
    folder = tmp_path_factory.mktemp("later")
    runs = {"rwkv6": rwkv6.run, "rwkv7": rwkv7.run}

    @cache
    def load(version: str, sizes: blocks.Sizes) -> Loaded:
        weights = later_weights(version, sizes)
        path = folder / f"{version}-{sizes.n_embd}-{sizes.n_ffn}.safetensors"
        save_weights(path, weights)
        try:
            model = rwkv_core.load(path, request.config.getoption("rwkv_backend"), **options)
        except OptionError as error:
            pytest.skip(str(error))  # The model does not fit with these options.
        # The weights are float32, so a float64 file would not be more precise.
        key = version, sizes, "float32" if ops.dtype == "float64" else ops.dtype
        if key not in _later_runs:
            run = runs.get(version, rwkv5.run)
            _later_runs[key] = run(
                as_rounded(ops, weights), tokens[: 80 if sizes == blocks.MEDIUM else 20]
            )
        return Loaded(model, _later_runs[key])

    return load
