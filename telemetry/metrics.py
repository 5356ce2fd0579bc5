"""Prometheus metrics: a registry of the process's own, metrics of calls, and a server to scrape them from."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from wsgiref.simple_server import WSGIServer

from prometheus_client import (
    CollectorRegistry,
    Counter,
    GCCollector,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    start_http_server,
)

_CODE_NAMES = (
    "OK", "CANCELLED", "UNKNOWN", "INVALID_ARGUMENT", "DEADLINE_EXCEEDED", "NOT_FOUND", "ALREADY_EXISTS",
    "PERMISSION_DENIED", "RESOURCE_EXHAUSTED", "FAILED_PRECONDITION", "ABORTED", "OUT_OF_RANGE", "UNIMPLEMENTED",
    "INTERNAL", "UNAVAILABLE", "DATA_LOSS", "UNAUTHENTICATED",
)  # fmt: skip
"""Names of google.rpc.Code by number."""

_DURATION_BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
"""From a read in memory to a guest that takes its time to shut down."""

_STOP_DEADLINE_S = 5.0


def build_registry() -> CollectorRegistry:
    """Make a registry with the process's own metrics; not the library's global one, so that tests do not share it."""
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    PlatformCollector(registry=registry)
    GCCollector(registry=registry)
    return registry


class RpcMetrics:
    """Counts finished calls and how long they took, by method and outcome; an observer for the call pipeline."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._calls = Counter("limiquantix_rpc_calls", "Finished calls.", ("method", "code"), registry=registry)
        self._durations_s = Histogram(
            "limiquantix_rpc_duration_seconds",
            "How long calls took.",
            ("method",),
            buckets=_DURATION_BUCKETS_S,
            registry=registry,
        )
        self._children: dict[tuple[str, str], tuple[Counter, Histogram]] = {}
        """By method and code, since looking them up costs more than counting."""

    def call_finished(self, method: str, code: int, duration_s: float) -> None:
        """Take note of a finished call; `method` is "/package.Service/Method", `code` a google.rpc.Code number."""
        name = _CODE_NAMES[code] if 0 <= code < len(_CODE_NAMES) else "UNKNOWN"
        known = self._children.get((method, name))
        if known is None:
            known = self._children[method, name] = self._calls.labels(method, name), self._durations_s.labels(method)
        count, durations_s = known
        count.inc()
        durations_s.observe(duration_s)


@dataclass(frozen=True, slots=True)
class MetricsServer:
    """A running metrics server, in a thread of its own."""

    port: int
    _server: WSGIServer
    _thread: threading.Thread

    def stop(self) -> None:
        """Stop listening and wait for the thread. Blocks, up to half a second; safe to call twice."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(_STOP_DEADLINE_S)


def start_metrics_server(address: str, registry: CollectorRegistry) -> MetricsServer:
    """Serve `GET /metrics` on "host:port"; port 0 takes a free one, which the answer names.

    Raises:
        OSError: the address cannot be bound.
    """
    host, _, port = address.rpartition(":")
    server, thread = start_http_server(int(port), host.strip("[]"), registry)
    return MetricsServer(server.server_port, server, thread)
