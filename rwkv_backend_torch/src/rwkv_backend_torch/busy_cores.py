"""Computes in one thread while other processes keep the cores busy.

torch's threads wait for one another after each operation. If a thread has lost its core to another
process, all threads wait until the scheduler gives it a core again, which takes milliseconds. On
two cores with two busy processes, prefill and decoding took 4 to 28 times as long as on idle cores
with two threads, and 1.3 to 2.5 times as long with one thread.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

# On idle cores, the calling thread works all the time that a call takes; with a busy process on
# each core, half of it.
_IDLE_SHARE = 0.75
# A slow call counts for _TIMES its duration, but at least _LEAST and at most _MOST seconds.
_TIMES, _LEAST, _MOST = 30, 1.0, 15.0


@dataclass
class _Slow:
    """The last slow call of one size: a call during which other processes kept the cores busy.

    Attributes:
        seconds_per_row: duration of the call divided by its number of rows.
        until: the value of `time.perf_counter()` until which calls of about this size run in one
            thread.
        one_is_faster: whether the last call in one thread took less time per row than the slow
            call.
    """

    seconds_per_row: float
    until: float
    one_is_faster: bool = True


class BusyCores:
    """Measures how long the calling thread did not run during a call, to notice busy cores.

    Slow calls are recorded by size: two sizes are the same if the calls' numbers of rows have the
    same number of bits, such as 4 to 7 rows.
    """

    def __init__(self) -> None:
        self._slow: dict[int, _Slow] = {}

    def watch(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return `function`; after a slow call, it runs in one thread as long as that is faster."""

        def run(*arguments: Any) -> Any:
            n_threads = torch.get_num_threads()
            if n_threads == 1:
                return function(*arguments)
            n_rows = _rows(arguments)
            kind = n_rows.bit_length()
            slow, began = self._slow.get(kind), time.perf_counter()
            if slow is not None and began >= slow.until:
                slow = None
            if slow is not None and slow.one_is_faster:
                torch.set_num_threads(1)
                try:
                    result = function(*arguments)
                finally:
                    torch.set_num_threads(n_threads)
                took = (time.perf_counter() - began) / n_rows
                slow.one_is_faster = took < slow.seconds_per_row
                return result
            ran = time.thread_time()
            result = function(*arguments)
            passed = time.perf_counter() - began
            if slow is None and time.thread_time() - ran < _IDLE_SHARE * passed:
                until = began + passed + min(max(_TIMES * passed, _LEAST), _MOST)
                self._slow[kind] = _Slow(passed / n_rows, until)
            return result

        return run


def _rows(arguments: tuple[Any, ...]) -> int:
    """Return the number of rows of the first tensor [..., D], the model's input."""
    tensor = next((one for one in arguments if isinstance(one, Tensor)), None)
    return 1 if tensor is None else max(1, tensor.shape[:-1].numel())
