"""Declares RWKV versions (`Architecture`) and the sizes of one model (`Config`).

A version's parameters are named tuples. The annotation of each field declares the tensor that the
field is loaded from: `key: Annotated[Matrix, matrix("key.weight", D, D)]`. So each tensor is
declared once, beside the equations that use it. Loading, validation, byte counts and random models
read this declaration.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache, partial
from types import MappingProxyType
from typing import Any, NamedTuple, get_args, get_type_hints

from numpy.typing import NDArray

from rwkv_core.weights import Counts, Size, Weight

# Names of the sizes of a model, for the shapes of its weights.
D, F, V = "n_embd", "n_ffn", "n_vocab"
# Of the heads of RWKV-5 to 7.
H, N = "n_head", "head_size"
# The shares of a token shift, in a random model.
MIX = {"mean": 0.5, "spread": 0.1}
# Placeholder for a tensor that a layer does not have.
ABSENT = ()

Shapes = Mapping[str, tuple[int, ...]]


class Group(NamedTuple):
    """Annotation of a field that holds a named tuple of weights, or one for each layer."""

    prefix: str
    """Prefix of the tensors' names; {} stands for the layer's number."""
    alias: str = ""
    """Prefix in transformers' files (for RWKV-7, FLA's); "" if it is the same as `prefix`."""
    feeds_stream: bool = False
    """`Weight.feeds_stream` of all tensors in the group."""
    layer: int = 0
    """Number of the group's layer."""

    @property
    def of_layers(self) -> bool:
        return "{}" in self.prefix


@dataclass(frozen=True, eq=False)
class Architecture:
    """An RWKV version.

    Attributes:
        name: the value of `Model.architecture`, such as "rwkv4".
        title: name shown to users, such as "RWKV-4".
        recognizes: takes the shapes of a file's tensors by BlinkDL's names; returns whether the
            file is of this version.
        embedding: the table that tokens are looked up in.
        parameters: the named tuple of all other weights; see this module's docstring.
        blocks: takes (ops, parameters, x [B, T, D], state [B, L, rows, D]); returns the residual
            stream after the last block and the state after the last token, in the same shapes.
        empty_state: takes a configuration; returns the initial state, float64 [L, rows, D].
        is_state: takes an array [L, rows, D]; returns whether it can be a state.
        differs: weights that replace the declared weights of `parameters`, by name; None for a
            weight that this version lacks.
    """

    name: str
    title: str
    recognizes: Callable[[Shapes], bool]
    embedding: Weight
    parameters: type
    blocks: Callable[..., tuple[Any, Any]]
    empty_state: Callable[[Config], NDArray[Any]]
    is_state: Callable[[NDArray[Any]], bool] = lambda array: True
    differs: Mapping[str, Weight | None] = field(default_factory=dict)


class Config(NamedTuple):
    """The sizes of a model."""

    n_layer: int
    n_embd: int
    n_ffn: int
    """The width inside a feed-forward block, such as 4 x n_embd."""
    n_vocab: int
    architecture: Architecture
    more: Mapping[str, int] = MappingProxyType({})
    """Sizes that only some versions have, such as "head_size"."""

    def weights(self) -> dict[str, Weight]:
        """Return the model's tensors by name, in the order in which a token uses them."""
        declared = declared_weights(self.architecture, self.n_layer)
        return {
            name: weight._replace(
                shape=self._sizes(weight.shape), repeat=self._sizes((weight.repeat,))[0]
            )
            for name, weight in declared.items()
        }

    def parameters(self, make: Callable[[Weight], Any]) -> Any:
        """Return the architecture's parameters: each weight replaced by `make(weight)`."""
        sized = partial(_make_sized, make, self.weights())
        return fill(self.architecture, self.n_layer, sized)

    def count_parameters(self) -> Counts:
        """Return the number of parameters, counted by role and place."""
        counts = {"table": 0, "vector": 0, "block": 0, "head": 0, "low_rank": 0}
        for name, weight in self.weights().items():
            place = "block" if name.startswith("blocks.") else "head"
            counts[place if weight.role == "matrix" else weight.role] += weight.size
        return Counts(*counts.values())

    def empty_state(self) -> NDArray[Any]:
        """Return the initial state, float64 [L, rows, D]."""
        return self.architecture.empty_state(self)

    @property
    def sizes(self) -> dict[str, int]:
        """Return the sizes by name, such as "n_embd"."""
        named = {name: size for name, size in self._asdict().items() if isinstance(size, int)}
        return named | dict(self.more)

    def _sizes(self, shape: tuple[Size, ...]) -> tuple[int, ...]:
        sizes = self.sizes
        return tuple(sizes[size] if isinstance(size, str) else size for size in shape)


def declared_weights(architecture: Architecture, n_layer: int) -> dict[str, Weight]:
    """Return the tensors of a model by name, in the order of use; shapes hold names of sizes."""
    found = [architecture.embedding]
    fill(architecture, n_layer, found.append)
    return {weight.name: weight for weight in found}


# No closure and no comprehension may hold `make` below: their frames, and so the matrices loaded so
# far, would stay alive in the traceback of an error.
def fill(architecture: Architecture, n_layer: int, make: Callable[[Weight], Any]) -> Any:
    """Return the architecture's named tuple of parameters, with `make(weight)` for each weight.

    `make` is called in the order of use. A weight's name is complete, such as
    "blocks.3.att.key.weight". Its shape holds names of sizes, such as "n_embd", instead of numbers.
    """
    return _fill(architecture.differs, n_layer, make, architecture.parameters, Group(""))


def _fill(
    differs: Mapping[str, Weight | None],
    n_layer: int,
    make: Callable[[Weight], Any],
    kind: Any,
    group: Group,
) -> Any:
    values: list[Any] = []
    for part, note in _fields(kind):
        if isinstance(note, Weight):
            weight = differs.get(note.name, note)
            if weight is None or weight.first_layer > group.layer:
                values.append(ABSENT)
            else:
                values.append(make(_weight_in(group, weight)))
        elif note.of_layers:
            groups = [_group_in(group, note, i) for i in range(n_layer)]
            values.append(tuple(map(partial(_fill, differs, n_layer, make, part), groups)))
        else:
            values.append(_fill(differs, n_layer, make, part, _group_in(group, note)))
    return kind._make(values)


def _make_sized(make: Callable[[Weight], Any], weights: dict[str, Weight], weight: Weight) -> Any:
    return make(weights[weight.name])


def _weight_in(group: Group, weight: Weight) -> Weight:
    return weight._replace(
        name=group.prefix + weight.name,
        alias=group.alias + (weight.alias or weight.name),
        feeds_stream=group.feeds_stream or weight.feeds_stream,
    )


def _group_in(group: Group, inner: Group, layer: int = 0) -> Group:
    return Group(
        group.prefix + inner.prefix.format(layer),
        group.alias + (inner.alias or inner.prefix).format(layer),
        group.feeds_stream or inner.feeds_stream,
        group.layer or layer,
    )


def leaves(parameters: Any) -> Iterator[tuple[Weight, Any]]:
    """Yield (declaration, value) for each weight in parameters that `fill` made, in order."""
    kind: Any = type(parameters)
    for value, (_, note) in zip(parameters, _fields(kind), strict=True):
        if isinstance(note, Weight):
            if value is not ABSENT:
                yield note, value
        else:
            for part in value if note.of_layers else [value]:
                yield from leaves(part)


@cache
def _fields(kind: Any) -> list[tuple[Any, Weight | Group]]:
    """Return each field's annotation, and a group's named tuple."""
    hints = get_type_hints(kind, include_extras=True)
    found = []
    for hint in hints.values():
        note = hint.__metadata__[0]
        of_layers = isinstance(note, Group) and note.of_layers
        found.append((get_args(hint.__origin__)[0] if of_layers else hint.__origin__, note))
    return found
