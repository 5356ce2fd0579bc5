"""The registry, metrics of calls and the scrape server."""

from __future__ import annotations

import urllib.error
import urllib.request

import pytest

from telemetry.metrics import RpcMetrics, build_registry, start_metrics_server


def test_rpc_metrics_count_calls_by_method_and_code() -> None:
    registry = build_registry()
    metrics = RpcMetrics(registry)
    metrics.call_finished("/s/M", 0, 0.02)
    metrics.call_finished("/s/M", 5, 0.01)
    metrics.call_finished("/s/M", 99, 0.01)
    for code in ("OK", "NOT_FOUND", "UNKNOWN"):
        assert registry.get_sample_value("limiquantix_rpc_calls_total", {"method": "/s/M", "code": code}) == 1
    assert registry.get_sample_value("limiquantix_rpc_duration_seconds_count", {"method": "/s/M"}) == 3


def test_registries_do_not_share_metrics() -> None:
    first, second = build_registry(), build_registry()
    RpcMetrics(first).call_finished("/s/M", 0, 0.01)
    RpcMetrics(second)
    labels = {"method": "/s/M", "code": "OK"}
    assert first.get_sample_value("limiquantix_rpc_calls_total", labels) == 1
    assert second.get_sample_value("limiquantix_rpc_calls_total", labels) is None


def test_metrics_server_serves_on_a_free_port_until_stopped() -> None:
    server = start_metrics_server("127.0.0.1:0", build_registry())
    url = f"http://127.0.0.1:{server.port}/metrics"
    with urllib.request.urlopen(url, timeout=60) as answer:
        assert b"process_resident_memory_bytes" in answer.read()
    server.stop()
    server.stop()
    with pytest.raises(urllib.error.URLError):
        urllib.request.urlopen(url, timeout=60)


def test_metrics_server_on_a_taken_port_raises() -> None:
    server = start_metrics_server("127.0.0.1:0", build_registry())
    try:
        with pytest.raises(OSError, match="in use"):
            start_metrics_server(f"127.0.0.1:{server.port}", build_registry())
    finally:
        server.stop()
