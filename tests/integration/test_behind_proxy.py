"""A control plane behind a reverse proxy: limits and the trail count callers, and nobody invents an address."""

from __future__ import annotations

from pathlib import Path

from controlplane.config import HttpSettings
from tests.support.closed_cluster import ADMINISTRATOR, ClosedCluster, closed_cluster

FAILURES_COUNT = 40
"""More than one address may have."""


async def failures_from(cluster: ClosedCluster, *told: str) -> set[int]:
    """Fail to log in, with other names and, in turn, these headers; returns the statuses."""
    statuses = set()
    for number in range(FAILURES_COUNT):
        body = {"name": f"nobody{number}", "password": "wrong"}
        sent = {"x-forwarded-for": told[number % len(told)]} if told else {}
        statuses.add((await cluster.post("AuthService/Login", body, "", **sent)).status)
    return statuses


async def addresses(cluster: ClosedCluster) -> set[str]:
    records = await cluster.done("AuditService/ListAuditRecords", {"method": "Login", "pageSize": 200})
    return {each.get("address", "") for each in records["records"]}


async def test_behind_a_trusted_proxy_each_caller_has_its_own_address(tmp_path: Path) -> None:
    http = HttpSettings.model_validate({"listen_address": "127.0.0.1:0", "trusted_proxies": ["127.0.0.0/8"]})
    async with closed_cluster(tmp_path, http=http) as cluster:
        assert 429 in await failures_from(cluster, "192.0.2.1", "198.51.100.9, 192.0.2.1"), "the left can be invented"
        assert await cluster.login(ADMINISTRATOR), "the proxy's own address has failed never"
        assert {"192.0.2.1", "127.0.0.1"} <= await addresses(cluster)
        assert "198.51.100.9" not in await addresses(cluster)


async def test_without_trusted_proxies_headers_are_nothing(tmp_path: Path) -> None:
    async with closed_cluster(tmp_path) as cluster:
        assert 429 in await failures_from(cluster, *(f"192.0.2.{number}" for number in range(FAILURES_COUNT)))
        assert await addresses(cluster) == {"127.0.0.1"}
