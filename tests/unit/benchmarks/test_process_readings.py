"""What is read from daemons: their metrics and, of the kernel, their memory."""

from __future__ import annotations

from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from benchmarks.memory import Footprint, read_footprint
from benchmarks.rpc_times import Total, mean_ms, metrics_url_of_node, parse_rpc_times
from telemetry.metrics import RpcMetrics

ROLLUP = """5555-7fff ---p 00000000 00:00 0                          [rollup]
Rss:              104448 kB
Pss:               52224 kB
Pss_Dirty:         40000 kB
"""


def test_rpc_times_of_a_daemons_own_metrics_are_found_by_method() -> None:
    registry = CollectorRegistry()
    metrics = RpcMetrics(registry)
    metrics.call_finished("/limiquantix.compute.v1.VMService/StartVM", 0, 0.25)
    metrics.call_finished("/limiquantix.compute.v1.VMService/StartVM", 0, 0.5)
    times = parse_rpc_times(generate_latest(registry).decode())
    assert times == {"StartVM": Total(2, 0.75)}


def test_mean_between_readings_counts_only_calls_between_them() -> None:
    before, after = {"StartVM": Total(2, 10.0)}, {"StartVM": Total(6, 12.0)}
    assert mean_ms(before, after, "StartVM") == 500.0


def test_mean_of_a_method_never_called_is_zero() -> None:
    assert mean_ms({}, {}, "StartVM") == 0.0


def test_metrics_of_a_restarted_node_daemon_are_where_it_said_last() -> None:
    log = '{"event": "listening", "metrics_address": "127.0.0.1:1"}\n{"event": "x"}\n'
    assert metrics_url_of_node(log + log.replace(":1", ":2")) == "http://127.0.0.1:2"


def test_metrics_of_a_node_daemon_that_did_not_say_are_an_error() -> None:
    with pytest.raises(LookupError, match="does not say"):
        metrics_url_of_node("Traceback\n")


def test_footprint_is_read_in_mebibytes(tmp_path: Path) -> None:
    (tmp_path / "42").mkdir()
    (tmp_path / "42" / "smaps_rollup").write_text(ROLLUP)
    assert read_footprint(42, tmp_path) == Footprint(pss_mib=51.0, rss_mib=102.0)
