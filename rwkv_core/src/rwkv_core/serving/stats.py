"""Counts of an engine, for its users' metrics."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Stats:
    """What an engine does and has done since it was made.

    Attributes:
        waiting, reading, running: requests in the queue, with a prompt being read, being continued.
        finished: requests by how they ended: a finish reason or "error".
        prompt_tokens, cached_tokens: of prompts so far; those of them that were not read, as their
            state was known.
        completion_tokens: generated.
        steps, step_rows: tokens computed for the batch, and the requests in them in all.
        cache_bytes, cache_entries: what the prefix cache holds.
        cache_lookups, cache_hits: prompts looked up, and those of which it had a beginning.
    """

    waiting: int
    reading: int
    running: int
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    steps: int
    step_rows: int
    cache_bytes: int
    cache_entries: int
    cache_lookups: int
    cache_hits: int
    finished: Mapping[str, int] = field(default_factory=dict)
