"""Computes in one thread while other processes keep the cores busy.

torch's threads wait for one another after each operation. If one of them has lost its core to
another process, all wait until the scheduler gives it one back, which takes milliseconds. On two
cores with two busy processes, prefill and decoding took 3 to 12 times as long as on idle cores; in
one thread they take 1.3 to 2.5 times as long.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch

# On idle cores, the calling thread works all the time that a call takes; with a busy process on
# each core, half of it.
_IDLE_SHARE = 0.75
# For so many times the duration of a slow call, and seconds, the next calls have one thread.
_TIMES, _LEAST, _MOST = 30, 1.0, 15.0


class BusyCores:
    """Notices that the cores are busy by how long a call's own thread did not run."""

    def __init__(self) -> None:
        self._busy_until = 0.0

    def watch(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return `function`, run in one thread after a call during which the cores were busy."""

        def run(*arguments: Any) -> Any:
            n_threads = torch.get_num_threads()
            if n_threads == 1:
                return function(*arguments)
            began = time.perf_counter()
            if began < self._busy_until:
                torch.set_num_threads(1)
                try:
                    return function(*arguments)
                finally:
                    torch.set_num_threads(n_threads)
            ran = time.thread_time()
            result = function(*arguments)
            passed = time.perf_counter() - began
            if time.thread_time() - ran < _IDLE_SHARE * passed:
                self._busy_until = began + passed + min(max(_TIMES * passed, _LEAST), _MOST)
            return result

        return run
