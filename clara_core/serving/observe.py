"""Metrics for Prometheus, and one JSON log line for each request, without the text of requests."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

if TYPE_CHECKING:
    from clara_core.engine.sampling import Answer
    from clara_core.serving.state import ServerState

access = logging.getLogger("clara_core.serving.access")

_SECONDS: Final = (0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 600)
_KINDS: Final = ("prompt", "memory", "completion", "source")
_WHY_REFUSED: Final = ("requests", "bytes", "answers", "key", "host", "body")
_WHY_CANCELLED: Final = ("disconnect", "deadline", "shutdown")


class Metrics:
    """Metrics of one server. Every series starts at 0."""

    def __init__(self, state: ServerState) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter("clara_requests", "Requests answered.", ["route", "status"], registry=self.registry)
        self.seconds = Histogram(
            "clara_request_seconds",
            "Seconds of a request.",
            ["route"],
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.first_token = Histogram(
            "clara_time_to_first_token_seconds",
            "Seconds to the first piece.",
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.between_tokens = Histogram(
            "clara_inter_token_seconds", "Seconds between pieces of a stream.", buckets=_SECONDS, registry=self.registry
        )
        self.tokens = Counter("clara_tokens", "Tokens read and written.", ["kind"], registry=self.registry)
        self.refused = Counter("clara_refused", "Requests refused.", ["why"], registry=self.registry)
        self.cancelled = Counter("clara_cancelled", "Requests cancelled.", ["why"], registry=self.registry)
        for counter, labels in ((self.tokens, _KINDS), (self.refused, _WHY_REFUSED), (self.cancelled, _WHY_CANCELLED)):
            for label in labels:
                counter.labels(label)
        self.registry.register(_OfEngine(state))

    def answered(self, answer: Answer) -> None:
        """Count the tokens of an answer."""
        for kind in _KINDS:
            self.tokens.labels(kind).inc(getattr(answer, f"{kind}_tokens"))

    def page(self) -> bytes:
        """The metrics in Prometheus's text format."""
        return generate_latest(self.registry)


class _OfEngine(Collector):
    """The engine's own counters, read when Prometheus collects."""

    def __init__(self, state: ServerState) -> None:
        self._state = state

    def describe(self) -> list[Any]:
        return []

    def collect(self) -> Iterator[GaugeMetricFamily | CounterMetricFamily]:
        state, stats, cache = self._state, self._state.engine.stats(), self._state.engine.cache
        gauges = {
            "clara_ready": ("1 if the server is ready for requests, else 0.", state.why_not_ready() is None),
            "clara_requests_in_flight": ("Requests being answered.", state.in_flight),
            "clara_worker_waiting_answers": ("Answers that wait for a place in the batch.", stats.waiting),
            "clara_worker_waiting_questions": ("Questions and short texts that wait.", stats.questions),
            "clara_worker_waiting_passages": ("Passages of larger jobs that wait.", stats.passages),
            "clara_batch_rows": ("Answers being written.", stats.running),
            "clara_worker_turn_seconds": ("Seconds since the worker's turn began.", stats.turn_seconds),
            "clara_kv_used_bytes": ("Bytes of the KV cache in use.", stats.kv_used_bytes),
            "clara_kv_total_bytes": ("Bytes of the KV cache.", stats.kv_total_bytes),
            "clara_cache_bytes": ("Bytes of memories in the cache.", stats.cached_bytes),
        }
        for name, (meaning, value) in gauges.items():
            yield GaugeMetricFamily(name, meaning, value=float(value))
        counters = {
            "clara_cache_hits": ("Texts whose memory was in the cache.", cache.hits),
            "clara_cache_misses": ("Texts whose memory was not in the cache.", cache.misses),
            "clara_compressed": ("Questions and passages turned into memory tokens.", stats.compressed),
            "clara_preempted": ("Answers interrupted to free KV cache for older ones.", stats.preempted),
        }
        for name, (meaning, value) in counters.items():
            yield CounterMetricFamily(name, meaning, value=float(value))


def log_request(**facts: object) -> None:
    """Log one JSON line about a request."""
    if access.isEnabledFor(logging.INFO):
        access.info("%s", json.dumps({name: value for name, value in facts.items() if value is not None}))
