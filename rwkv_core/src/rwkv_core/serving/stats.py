"""An engine's counters, for metrics."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Stats:
    """An engine's counters: counts since the start, except where present values are named.

    Attributes:
        waiting, reading, running: present number of requests in the queue, in prefill, and in the
            batch.
        prompt_tokens, cached_tokens: number of prompt tokens, and number of prompt tokens that were
            not prefilled, because their state was cached.
        completion_tokens: number of generated tokens.
        steps, step_rows: number of decode steps, and the sum of their batch sizes.
        cache_bytes, cache_entries: present size of the prefix cache in bytes and in entries.
        cache_lookups, cache_hits: number of lookups in the cache, and number of lookups that found
            a prefix.
        finished: number of ended requests by finish reason; "error" counts failed requests.
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
