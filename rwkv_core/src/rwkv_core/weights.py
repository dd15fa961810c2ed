"""A model's tensors: what an architecture declares of each, and their counts."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any, Literal, NamedTuple, TypeAlias

from numpy.typing import NDArray

Role: TypeAlias = Literal["table", "matrix", "low_rank", "vector"]
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
    """"table": rows are looked up; "matrix": [out, in], only multiplied with; "low_rank": [in, out]
    or several [n, in, out], narrow matrices that are not quantized; "vector": all else."""
    alias: str = ""
    """Its name in files of the transformers library, of RWKV-7 in those of FLA (flash linear
    attention), which transformers loads; "" where that is `name`."""
    transform: Callable[[NDArray[Any]], NDArray[Any]] | None = None
    """From the float64 values of a vector in a file to those that the equations take."""
    repeat: Any = 1
    """How many channels a value of a vector is of, such as all of a head; the equations get it for
    each."""
    mean: float = 0.0
    spread: float = 1.0
    """Mean and standard deviation of a random model's values, which keep its activations in the
    range of a trained model's. In a matrix or a table the deviation is divided by sqrt(in) too."""
    feeds_stream: bool = False
    """Whether its values, or its products, are added to the residual stream."""
    first_layer: int = 0
    """The first layer that has it. A file may hold it in earlier layers too, where it is unused."""

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


def low_rank(name: str, *shape: Size, **more: Any) -> Weight:
    """Return a declaration of a narrow matrix [in, out], or of several [n, in, out]."""
    return Weight(name, shape, "low_rank", **more)


def vector(name: str, *shape: Size, **more: Any) -> Weight:
    """Return a declaration of a vector, which the equations get as one row."""
    return Weight(name, shape, "vector", **more)


def head_size_of(weights: Iterable[Weight]) -> int:
    """Return how many channels a head of a model has, 0 for a model without heads.

    Vectors of heads are [n_head, head_size], or have one value for each head that is repeated.
    """
    vectors = [weight for weight in weights if weight.role == "vector"]
    sizes = [weight.shape[1] for weight in vectors if len(weight.shape) == 2]
    return max([0, *sizes, *(weight.repeat for weight in vectors if weight.repeat > 1)])


class Counts(NamedTuple):
    """Numbers of parameters, by how they are kept."""

    embedding: int
    vectors: int
    block_matrices: int
    head: int
    low_rank: int

    @property
    def matrices(self) -> int:
        """Parameters in the matrices that every token is multiplied with."""
        return self.block_matrices + self.head

    @property
    def total(self) -> int:
        return self.embedding + self.vectors + self.matrices + self.low_rank
