"""A model's tensors: what an architecture declares of each, and their counts."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, TypeAlias

from numpy.typing import NDArray

Role: TypeAlias = Literal["table", "matrix", "vector"]
Size: TypeAlias = int | str


class Weight(NamedTuple):
    """One tensor of a model.

    An architecture declares it with sizes by name ("n_embd"), and within a block by the name that
    it has there ("att.key.weight"). The weights of a model have numbers and full names.
    """

    name: str
    shape: tuple[Any, ...]
    """Axes as BlinkDL's files have them."""
    role: Role
    """"table": rows are looked up; "matrix": only multiplied with; "vector": all else."""
    alias: str = ""
    """Its name in files of the transformers library; "" where that is `name`."""
    transform: Callable[[NDArray[Any]], NDArray[Any]] | None = None
    """From the float64 values of a vector in a file to those that the equations take."""
    mean: float = 0.0
    spread: float = 1.0
    """Mean and standard deviation of a random model's values, which keep its activations in the
    range of a trained model's. In a matrix or a table the deviation is divided by sqrt(in) too."""
    feeds_stream: bool = False
    """Whether its values, or its products, are added to the residual stream."""

    @property
    def size(self) -> int:
        """How many values it has."""
        return math.prod(self.shape)


def table(name: str, *shape: Size, **more: Any) -> Weight:
    """Return a declaration of a table, whose rows are looked up."""
    return Weight(name, shape, "table", **more)


def matrix(name: str, *shape: Size, **more: Any) -> Weight:
    """Return a declaration of a matrix [out, in]."""
    return Weight(name, shape, "matrix", **more)


def vector(name: str, *shape: Size, **more: Any) -> Weight:
    """Return a declaration of a vector; `shape` has one axis that is not 1."""
    return Weight(name, shape, "vector", **more)


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
