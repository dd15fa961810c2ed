"""The type of samplers; plugins add some with the hook `rwkv_samplers`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from rwkv_core.backends.descriptor import Option

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Logits: TypeAlias = "NDArray[np.float64]"
Processor: TypeAlias = Callable[["Logits", Sequence[int]], "Logits"]


@dataclass(frozen=True)
class Sampler:
    """The descriptor that a plugin's `rwkv_samplers` hook returns.

    Attributes:
        name, summary: one word, and one line for a listing.
        start: called once per generation with the options, checked, with defaults filled in. It
            returns a new function that takes float64 logits [V] and the tokens generated so far,
            and returns logits [V]. What this function remembers is for one generation only. `start`
            raises OptionError for a value out of range.
        options: the options that a user may set, as NAME:KEY=VALUE.
    """

    name: str
    summary: str
    start: Callable[[Mapping[str, Any]], Processor]
    options: tuple[Option, ...] = ()
