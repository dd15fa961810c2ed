"""The sizes of a model, and how many parameters they make."""

from __future__ import annotations

from typing import NamedTuple

_PILE_VOCAB = 50277
# Layers and width of the RWKV-4 models that BlinkDL published, trained on the Pile.
_KNOWN = {
    "169M": (12, 768),
    "430M": (24, 1024),
    "1.5B": (24, 2048),
    "3B": (32, 2560),
    "7B": (32, 4096),
    "14B": (40, 5120),
}


class Shape(NamedTuple):
    """The sizes that make one RWKV-4 model differ from another."""

    n_layer: int
    n_embd: int
    n_ffn: int
    """The width inside a feed-forward block, 4 x n_embd in every published model."""
    n_vocab: int


class Counts(NamedTuple):
    """Numbers of parameters, by how they are kept."""

    embedding: int
    vectors: int
    block_matrices: int
    head: int

    @property
    def matrices(self) -> int:
        """Parameters in the matrices that every token is multiplied with."""
        return self.block_matrices + self.head

    @property
    def total(self) -> int:
        return self.embedding + self.vectors + self.matrices


def count_parameters(shape: Shape) -> Counts:
    """The parameters of an RWKV-4 of this shape."""
    n_layer, d, f, v = shape
    # A block: 5 token-shift mixes, decay and first, and two layer norms of a weight and a bias.
    vectors = n_layer * (5 + 2 + 4) * d + 4 * d
    return Counts(v * d, vectors, n_layer * (5 * d * d + 2 * d * f), v * d)


def known_shapes() -> dict[str, Shape]:
    """The published RWKV-4 Pile models' shapes, by size."""
    return {
        name: Shape(n_layer, n_embd, 4 * n_embd, _PILE_VOCAB)
        for name, (n_layer, n_embd) in _KNOWN.items()
    }
