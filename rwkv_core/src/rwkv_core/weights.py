"""Declarations of a model's tensors, and counts of their parameters."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any, Literal, NamedTuple, TypeAlias

from numpy.typing import NDArray

Role: TypeAlias = Literal["table", "matrix", "low_rank", "vector"]
Size: TypeAlias = int | str


class Weight(NamedTuple):
    """One tensor of a model.

    In an architecture's declaration, `shape` has names of sizes ("n_embd"), and `name` leaves out
    the block ("att.key.weight"). In a model's list of weights, `shape` has numbers, and `name` is
    complete ("blocks.0.att.key.weight").
    """

    name: str
    shape: tuple[Any, ...]
    """Shape in BlinkDL's files."""
    role: Role
    """"table": rows are looked up; "matrix": [out, in], only multiplied with; "low_rank": [in, out]
    or several [n, in, out], narrow matrices that are not quantized; "vector": all others."""
    alias: str = ""
    """Name in transformers' files (for RWKV-7, in the files of FLA, flash linear attention); "" if
    it is the same as `name`."""
    transform: Callable[[NDArray[Any]], NDArray[Any]] | None = None
    """Function from a vector's values in a file, as float64, to the values for the equations."""
    repeat: Any = 1
    """How often each value of a vector is repeated for the equations, such as once for each channel
    of a head."""
    mean: float = 0.0
    spread: float = 1.0
    """Mean and standard deviation of a random model's values, so that its activations are in the
    range of a trained model's. For a matrix or table the deviation is also divided by sqrt(in)."""
    feeds_stream: bool = False
    """Whether the values, or the products with the matrix, are added to the residual stream."""
    first_layer: int = 0
    """The first layer with this weight. A file may also have it in earlier layers, unused."""

    @property
    def size(self) -> int:
        """Number of values."""
        return math.prod(self.shape)


def table(name: str, *shape: Size, **more: Any) -> Weight:
    """Return a declaration of a table, whose rows are looked up."""
    return Weight(name, shape, "table", **more)


def matrix(name: str, *shape: Size, **more: Any) -> Weight:
    """Return a declaration of a matrix [out, in]."""
    return Weight(name, shape, "matrix", **more)


def low_rank(name: str, *shape: Size, **more: Any) -> Weight:
    """Return a declaration of a narrow matrix [in, out], or of several [n, in, out]."""
    return Weight(name, shape, "low_rank", **more)


def vector(name: str, *shape: Size, **more: Any) -> Weight:
    """Return a declaration of a vector, which the equations get as one row."""
    return Weight(name, shape, "vector", **more)


def head_size_of(weights: Iterable[Weight]) -> int:
    """Return the number of channels of a model's heads; 0 for a model without heads.

    The size is found in the model's vectors. If a vector has the shape [n_head, head_size], it is
    the second number. If a vector has one value per head, which all channels of the head use, it is
    the vector's `repeat`.
    """
    vectors = [weight for weight in weights if weight.role == "vector"]
    sizes = [weight.shape[1] for weight in vectors if len(weight.shape) == 2]
    return max([0, *sizes, *(weight.repeat for weight in vectors if weight.repeat > 1)])


class Counts(NamedTuple):
    """Numbers of parameters by role and place."""

    embedding: int
    vectors: int
    block_matrices: int
    head: int
    low_rank: int

    @property
    def matrices(self) -> int:
        """Number of parameters in the matrices that every token is multiplied with."""
        return self.block_matrices + self.head

    @property
    def total(self) -> int:
        return self.embedding + self.vectors + self.matrices + self.low_rank
