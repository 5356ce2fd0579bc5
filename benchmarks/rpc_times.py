"""How long calls took inside a daemon, from the metrics it serves."""

from __future__ import annotations

import json
import ssl
from collections.abc import Mapping
from dataclasses import dataclass

import httpx
from prometheus_client.parser import text_string_to_metric_families

_FAMILY = "limiquantix_rpc_duration_seconds"
_TIMEOUT_S = 10.0


@dataclass(frozen=True, slots=True)
class Total:
    """Calls of a method since the daemon's start, and the seconds they took together."""

    call_count: float
    seconds: float


RpcTimes = Mapping[str, Total]
"""By the method's last name."""


def metrics_url_of_node(log_text: str) -> str:
    """Find, in what a node daemon logged as JSON lines, where it serves its metrics; its last start counts.

    Raises:
        LookupError: it did not say.
    """
    for line in reversed(log_text.splitlines()):
        if '"metrics_address"' in line:
            return f"http://{json.loads(line)['metrics_address']}"
    raise LookupError("the node daemon's log does not say where it serves its metrics")


async def fetch_rpc_times(base_url: str, trust: ssl.SSLContext | bool = True) -> RpcTimes:
    """Ask a daemon for its metrics.

    Args:
        trust: whom to believe, of a URL that begins with https.
    """
    async with httpx.AsyncClient(timeout=_TIMEOUT_S, trust_env=False, verify=trust) as client:
        answer = await client.get(f"{base_url}/metrics")
        answer.raise_for_status()
    return parse_rpc_times(answer.text)


def parse_rpc_times(exposition: str) -> RpcTimes:
    """Read the totals out of the Prometheus text format."""
    seconds: dict[str, float] = {}
    counts: dict[str, float] = {}
    for family in text_string_to_metric_families(exposition):
        if family.name != _FAMILY:
            continue
        for sample in family.samples:
            method = sample.labels["method"].rpartition("/")[2]
            if sample.name.endswith("_sum"):
                seconds[method] = sample.value
            elif sample.name.endswith("_count"):
                counts[method] = sample.value
    return {method: Total(counts[method], seconds[method]) for method in counts}


def mean_ms(before: RpcTimes, after: RpcTimes, method: str) -> float:
    """Mean milliseconds of the calls made between two readings; 0 if there were none."""
    none = Total(0, 0)
    first, last = before.get(method, none), after.get(method, none)
    count = last.call_count - first.call_count
    return 1000 * (last.seconds - first.seconds) / count if count else 0.0
