"""Times jobs that take turns, so that a busy moment of the machine affects all of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

# After _MAX_SECONDS no round begins, once there were _MIN_ROUNDS.
_MAX_SECONDS, _MIN_ROUNDS = 8.0, 3


def in_turn(jobs: Sequence[Callable[[], object]], rounds: int) -> list[list[float]]:
    """Run every job once in each round; return each job's times in seconds.

    A first round is not counted, since libraries compile in it, and caches and clocks settle. If
    the jobs take long, there are fewer rounds than `rounds`, but at least 3.
    """
    times: list[list[float]] = [[] for _ in jobs]
    began = time.perf_counter()
    for i in range(rounds + 1):
        if i > _MIN_ROUNDS and time.perf_counter() - began > _MAX_SECONDS:
            break
        taken = [seconds(job) for job in jobs]
        if i:
            for one, row in zip(taken, times, strict=True):
                row.append(one)
    return times


def seconds(job: Callable[[], object]) -> float:
    """Return how long one run of `job` takes, in seconds."""
    began = time.perf_counter()
    job()
    return time.perf_counter() - began
