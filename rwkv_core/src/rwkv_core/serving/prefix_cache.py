"""Cache of the states after prefixes of prompts: a trie over tokens, bounded in bytes.

The cache holds NumPy arrays and does not depend on a model. The least recently used entry is
dropped first.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Tokens = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Entry:
    """The state after a sequence of tokens.

    Attributes:
        root: digest of the state before the tokens; b"" for the empty state.
        tokens: int64 [n].
        state: the state's array [L, R, D].
        logits: the logits after the last token, float32 [V].
    """

    root: bytes
    tokens: Tokens
    state: NDArray[Any]
    logits: NDArray[np.float32]

    @property
    def nbytes(self) -> int:
        # Tokens count twice: the trie's edges hold them too, except where entries share edges.
        return self.state.nbytes + self.logits.nbytes + 2 * self.tokens.nbytes


class Found(NamedTuple):
    """The result of a lookup.

    Attributes:
        entry: the entry of the longest cached prefix; None if there is none.
        n_shared: length of the longest prefix that the tokens share with any entry's tokens.
    """

    entry: Entry | None
    n_shared: int


@dataclass(eq=False)
class _Node:
    """A node of the trie: `edge` holds the tokens between its parent and it."""

    edge: Tokens
    parent: _Node | None
    entry: Entry | None = None
    children: dict[int, _Node] = field(default_factory=dict)


class PrefixCache:
    """Entries, which are looked up by their root (the state before the tokens) and their tokens.

    Attributes:
        max_bytes: largest total size of the entries in bytes.
        nbytes: present total size of the entries in bytes.
        lookups, hits: number of calls of `find`, and of calls that found an entry.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.nbytes = self.lookups = self.hits = 0
        self._roots: dict[bytes, _Node] = {}
        # The least recently used first.
        self._used: OrderedDict[_Node, None] = OrderedDict()

    def __len__(self) -> int:
        return len(self._used)

    def __iter__(self) -> Iterator[Entry]:
        """The entries, the least recently used first."""
        return iter([node.entry for node in self._used if node.entry is not None])

    def find(self, root: bytes, tokens: Sequence[int]) -> Found:
        """Find the entry of the longest cached prefix of `tokens`. It counts as used."""
        self.lookups += 1
        wanted = np.asarray(tokens, np.int64)
        best, n_shared, node = None, 0, self._roots.get(root)
        while node is not None:
            n_more = n_same(node.edge, wanted[n_shared:])
            n_shared += n_more
            if n_more < len(node.edge):
                break
            best = node if node.entry is not None else best
            node = node.children.get(int(wanted[n_shared])) if n_shared < len(wanted) else None
        if best is None:
            return Found(None, n_shared)
        self.hits += 1
        self._used.move_to_end(best)
        return Found(best.entry, n_shared)

    def has(self, root: bytes, tokens: Sequence[int]) -> bool:
        """Whether there is an entry for exactly these tokens. It counts as used."""
        node, rest = self._roots.get(root), np.asarray(tokens, np.int64)
        while node is not None and n_same(node.edge, rest) == len(node.edge):
            rest = rest[len(node.edge) :]
            if not len(rest):
                if node.entry is not None:
                    self._used.move_to_end(node)
                return node.entry is not None
            node = node.children.get(int(rest[0]))
        return False

    def add(self, entry: Entry) -> list[Entry]:
        """Add an entry, or replace the entry of the same tokens. Returns the dropped entries.

        An entry larger than `max_bytes` is not added, and is returned.
        """
        if entry.nbytes > self.max_bytes:
            return [entry]
        node = self._node(entry.root, entry.tokens)
        if node.entry is not None:
            self.nbytes -= node.entry.nbytes
        node.entry = entry
        self.nbytes += entry.nbytes
        self._used[node] = None
        self._used.move_to_end(node)
        dropped = []
        while self.nbytes > self.max_bytes:
            dropped.append(self._drop(next(iter(self._used))))
        return dropped

    def _node(self, root: bytes, tokens: Tokens) -> _Node:
        """Return the node of `tokens`, which is made if it does not exist."""
        node = self._roots.setdefault(root, _Node(tokens[:0], None))
        while len(tokens):
            child = node.children.get(int(tokens[0]))
            if child is None:
                child = _Node(tokens.copy(), node)
                node.children[int(tokens[0])] = child
                return child
            n_shared = n_same(child.edge, tokens)
            node = child if n_shared == len(child.edge) else _split(child, n_shared)
            tokens = tokens[n_shared:]
        return node

    def _drop(self, node: _Node) -> Entry:
        entry = node.entry
        assert entry is not None
        del self._used[node]
        node.entry = None
        self.nbytes -= entry.nbytes
        self._prune(entry.root, node)
        return entry

    def _prune(self, root: bytes, node: _Node) -> None:
        """Remove nodes that lead to no entry, from `node` up; merge a node with its only child."""
        while node.entry is None and not node.children:
            if node.parent is None:
                del self._roots[root]
                return
            del node.parent.children[int(node.edge[0])]
            node = node.parent
        if node.entry is None and len(node.children) == 1 and node.parent is not None:
            (child,) = node.children.values()
            child.edge = np.concatenate([node.edge, child.edge])
            child.parent = node.parent
            node.parent.children[int(child.edge[0])] = child


def n_same(one: Tokens, other: Tokens) -> int:
    """Return the length of the longest common prefix of two sequences of tokens."""
    n_tokens = min(len(one), len(other))
    different = np.flatnonzero(one[:n_tokens] != other[:n_tokens])
    return int(different[0]) if len(different) else n_tokens


def _split(node: _Node, n_tokens: int) -> _Node:
    """Split the edge of `node` after `n_tokens` tokens. Returns the new node between."""
    assert node.parent is not None
    middle = _Node(node.edge[:n_tokens].copy(), node.parent)
    node.parent.children[int(node.edge[0])] = middle
    node.edge, node.parent = node.edge[n_tokens:].copy(), middle
    middle.children[int(node.edge[0])] = node
    return middle
