"""What functions that take long call as they go on."""

from collections.abc import Callable
from typing import TypeAlias

OnProgress: TypeAlias = Callable[[int, int], object]
"""Called with how much is done and how much there is in all, such as bytes or tokens."""
