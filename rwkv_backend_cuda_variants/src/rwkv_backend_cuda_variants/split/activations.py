"""Activations on several devices, each with all channels or a slice of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from operator import add, getitem, mul, neg, sub, truediv
from typing import Any

import torch
from torch import Tensor

from rwkv_backend_cuda_variants.split.group import OneProcess, Processes


class Parts:
    """An activation on the devices of this process.

    Attributes:
        tensors: one per device: equal tensors, or slices along the last axis if `width` is given.
        width: size of the last axis that the slices divide; None if every device has all channels.
    """

    def __init__(
        self, group: OneProcess | Processes, tensors: Sequence[Tensor], width: int | None = None
    ) -> None:
        self.group, self.tensors, self.width = group, tensors, width

    def sliced(self) -> Parts:
        """Return each device's slice. Needs no exchange."""
        if self.width is not None:
            return self
        width = self.tensors[0].shape[-1]
        own = self.group.own(width)
        slices = [tensor[..., piece] for tensor, piece in zip(self.tensors, own, strict=True)]
        return Parts(self.group, slices, width)

    def whole(self) -> Parts:
        """Return all channels on every device. Needs an exchange if the channels are in slices."""
        if self.width is None:
            return self
        return Parts(self.group, self.group.gather(self.tensors, self.width))

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape with all channels."""
        return (*self.tensors[0].shape[:-1], self.width or self.tensors[0].shape[-1])

    def __add__(self, other: Any) -> Any:
        return _of_two(add, self, other)

    def __sub__(self, other: Any) -> Any:
        return _of_two(sub, self, other)

    def __mul__(self, other: Any) -> Any:
        return _of_two(mul, self, other)

    def __truediv__(self, other: Any) -> Any:
        return _of_two(truediv, self, other)

    def __rsub__(self, other: Any) -> Any:
        return in_lockstep(lambda tensor: other - tensor, self)

    def __rtruediv__(self, other: Any) -> Any:
        return in_lockstep(lambda tensor: other / tensor, self)

    __radd__, __rmul__ = __add__, __mul__

    def __neg__(self) -> Any:
        return in_lockstep(neg, self)

    def __getitem__(self, key: Any) -> Any:
        return in_lockstep(lambda tensor: getitem(tensor, key), self)

    @classmethod
    def __torch_function__(
        cls, function: Any, types: Any, arguments: Any = (), options: Any = None
    ) -> Any:
        """Run torch's elementwise functions, and its stack and concat for a list of Parts."""
        if function in (torch.exp, torch.tanh):
            return in_lockstep(function, *arguments)
        if function not in (torch.stack, torch.concat):
            return NotImplemented
        parts, *more = arguments
        return in_lockstep(lambda *tensors: function(tensors, *more, **(options or {})), *parts)


def _of_two(operator: Callable[..., Any], one: Parts, other: Any) -> Any:
    """Apply a binary `operator` to Parts and Parts, or to Parts and a number."""
    if isinstance(other, Parts):
        return in_lockstep(operator, one, other)
    return in_lockstep(lambda tensor: operator(tensor, other), one)


def in_lockstep(function: Callable[..., Any], *arguments: Parts) -> Any:
    """Run `function`, which treats every channel alike, on one device after the other.

    `function` gets the tensors that the arguments have on this device. If some arguments hold a
    slice of the channels per device and others all channels, `function` gets slices of all of them.
    If `function` returns a tuple, the result is a tuple of Parts.
    """
    if any(argument.width is not None for argument in arguments):
        arguments = tuple(argument.sliced() for argument in arguments)
    group, width = arguments[0].group, arguments[0].width
    rows = zip(*(argument.tensors for argument in arguments), strict=True)
    results = [function(*row) for row in rows]
    if isinstance(results[0], tuple):
        return tuple(Parts(group, result, width) for result in zip(*results, strict=True))
    return Parts(group, results, width)
