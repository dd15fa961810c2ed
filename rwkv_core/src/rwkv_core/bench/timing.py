"""Times of jobs that take turns, so that a busy moment of the machine hits all of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

# Beyond so many seconds, no more rounds than the fewest.
_MAX_SECONDS, _MIN_ROUNDS = 8.0, 3


def in_turn(jobs: Sequence[Callable[[], object]], rounds: int) -> list[list[float]]:
    """The seconds that each job took, all of them run once in each round.

    One round before those that count lets libraries compile, and caches and clocks settle. What
    takes long is measured less often than `rounds`, though three times at least.
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
    """How long one run of `job` takes."""
    began = time.perf_counter()
    job()
    return time.perf_counter() - began
