"""The type of progress callbacks."""

from collections.abc import Callable
from typing import TypeAlias

OnProgress: TypeAlias = Callable[[int, int], object]
"""Called with the amount done so far and the total amount, in bytes or tokens."""
