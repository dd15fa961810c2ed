"""Metrics for Prometheus, with names like vLLM's."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from rwkv_core.serving import Completion, Engine

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
_LABEL = "model_name"


class _EngineCollector(Collector):
    """Reads an engine's counters each time that Prometheus asks for metrics."""

    def __init__(self, engine: Engine, model_id: str) -> None:
        self._engine, self._model_id = engine, model_id

    def collect(self) -> Iterator[Metric]:
        stats = self._engine.stats()
        gauges = {
            "num_requests_running": (
                "Requests in prefill or decode",
                stats.running + stats.reading,
            ),
            "num_requests_waiting": ("Requests in the queue", stats.waiting),
            "prefix_cache_bytes": ("Bytes in the prefix cache", stats.cache_bytes),
            "prefix_cache_entries": ("States in the prefix cache", stats.cache_entries),
        }
        counters = {
            "prompt_tokens": ("Tokens of prompts", stats.prompt_tokens),
            "prompt_tokens_cached": ("Prompt tokens with a cached state", stats.cached_tokens),
            "generation_tokens": ("Tokens generated", stats.completion_tokens),
            "prefix_cache_queries": ("Lookups in the prefix cache", stats.cache_lookups),
            "prefix_cache_hits": ("Lookups that found a prefix", stats.cache_hits),
            "engine_steps": ("Decode steps of the batch", stats.steps),
            "engine_step_rows": ("Sum of the batch sizes of all decode steps", stats.step_rows),
        }
        for name, (help, value) in gauges.items():
            gauge = GaugeMetricFamily(f"rwkv:{name}", help, labels=[_LABEL])
            gauge.add_metric([self._model_id], value)
            yield gauge
        for name, (help, value) in counters.items():
            counter = CounterMetricFamily(f"rwkv:{name}", help, labels=[_LABEL])
            counter.add_metric([self._model_id], value)
            yield counter
        ended = CounterMetricFamily(
            "rwkv:request_success", "Requests by finish reason", labels=[_LABEL, "finished_reason"]
        )
        for reason, count in stats.finished.items():
            ended.add_metric([self._model_id, reason], count)
        yield ended


class Metrics:
    """The metrics of one server."""

    def __init__(self, engine: Engine, model_id: str) -> None:
        self._registry = CollectorRegistry()
        self._registry.register(_EngineCollector(engine, model_id))
        self._first, self._total, self._queued = (
            Histogram(
                f"rwkv:{name}", help, [_LABEL], buckets=_SECONDS, registry=self._registry
            ).labels(model_id)
            for name, help in (
                ("time_to_first_token_seconds", "Time from a request to its first token"),
                ("e2e_request_latency_seconds", "Time from a request to its end"),
                ("request_queue_time_seconds", "Time of a request in the queue"),
            )
        )

    def note(self, completion: Completion) -> None:
        """Record the times of a completed request."""
        times = completion.times
        self._queued.observe(times.queued)
        self._total.observe(times.total)
        if times.first_token is not None:
            self._first.observe(times.first_token)

    def text(self) -> bytes:
        """Return all metrics in Prometheus' text format."""
        return generate_latest(self._registry)
