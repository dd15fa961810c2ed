"""PrefixCache: the longest known beginning, never that of other tokens, within its bytes."""

from __future__ import annotations

import hashlib

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from rwkv_core.serving.prefix_cache import Entry, PrefixCache

TOKENS = st.lists(st.integers(0, 2), max_size=12).map(tuple)
ROOTS = st.sampled_from([b"", b"one"])
STEPS = st.lists(st.tuples(st.sampled_from(["add", "find", "has"]), ROOTS, TOKENS), max_size=60)


def entry(root: bytes, tokens: tuple[int, ...], n_floats: int = 8) -> Entry:
    """One whose state tells of which tokens it is."""
    digest = hashlib.sha256(repr((root, tokens)).encode()).digest()
    state = np.resize(np.frombuffer(digest, np.uint8).astype(np.float32), n_floats)
    return Entry(root, np.array(tokens, np.int64), state, state[:2].copy())


@settings(max_examples=300, deadline=None)
@given(steps=STEPS, max_bytes=st.sampled_from([0, 60, 300, 1000, 10**6]))
def test_no_state_is_given_to_other_tokens(
    steps: list[tuple[str, bytes, tuple[int, ...]]], max_bytes: int
) -> None:
    cache = PrefixCache(max_bytes)
    known: dict[tuple[bytes, tuple[int, ...]], None] = {}
    for action, root, tokens in steps:
        if action == "add":
            new = entry(root, tokens)
            known[root, tokens] = None
            for gone in cache.add(new):
                del known[gone.root, tuple(gone.tokens.tolist())]
        elif action == "has":
            assert cache.has(root, tokens) == ((root, tokens) in known)
        else:
            found = cache.find(root, tokens)
            beginnings = [tokens[:n] for n in range(len(tokens) + 1)]
            there = [one for one in beginnings if (root, one) in known]
            shared = [one for one in beginnings if any(r == root and k[: len(one)] == one
                      for r, k in known)]  # fmt: skip
            assert found.n_shared == (len(shared[-1]) if shared else 0)
            assert (found.entry is None) == (not there)
            if found.entry is not None:
                assert tuple(found.entry.tokens.tolist()) == there[-1]
                assert np.array_equal(found.entry.state, entry(root, there[-1]).state)
        assert cache.nbytes == sum(one.nbytes for one in cache) <= max_bytes
        assert {(one.root, tuple(one.tokens.tolist())) for one in cache} == known.keys()


def test_the_least_recently_used_goes_first() -> None:
    size = entry(b"", (0,)).nbytes
    cache = PrefixCache(3 * size)
    for token in range(3):
        assert cache.add(entry(b"", (token,))) == []
    assert cache.find(b"", [0, 5, 5]).entry is not None
    assert [one.tokens.tolist() for one in cache.add(entry(b"", (3,)))] == [[1]]
    assert cache.has(b"", [2])
    assert [one.tokens.tolist() for one in cache.add(entry(b"", (4,)))] == [[0]]


def test_what_is_larger_than_the_cache_is_not_kept() -> None:
    cache = PrefixCache(1000)
    cache.add(entry(b"", (1,)))
    large = entry(b"", (2,), 1000)
    assert cache.add(large) == [large]
    assert len(cache) == 1
