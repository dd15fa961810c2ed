"""The model that ships, loaded once per backend, and an engine on it."""

from collections.abc import Iterator
from functools import cache

import pytest

from rwkv_core import RWKV
from rwkv_core.serving import Engine


@cache
def _prose(backend: str) -> RWKV:
    return RWKV("prose", backend=backend)


@pytest.fixture
def rwkv(backend: str) -> RWKV:
    return _prose(backend)


@pytest.fixture
def engine(rwkv: RWKV) -> Iterator[Engine]:
    with Engine(rwkv.model, rwkv.tokenizer, max_batch=8) as engine:
        yield engine
