"""Two control planes, real processes, on one PostgreSQL and one etcd: which decides, and that people can see it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.databases import FRESH_DATABASES
from tests.support.etcd import EtcdCluster, etcd_cluster
from tests.support.processes import ControlPlaneProcess, start_control_plane

DEADLINE_S = 60.0
SESSION_TTL_S = 5

Document = dict[str, Any]


@pytest.fixture
def etcd(tmp_path: Path) -> Iterator[EtcdCluster]:
    with etcd_cluster(tmp_path / "etcd") as cluster:
        yield cluster


def until(find: Callable[[], Document | None]) -> Document:
    deadline = time.monotonic() + DEADLINE_S
    while (found := find()) is None:
        assert time.monotonic() < deadline, "in vain"
        time.sleep(0.05)
    return found


def deciding(plane: ControlPlaneProcess, but: str = "") -> Callable[[], Document | None]:
    """Find the status in which somebody decides, and another one than was named."""

    def find() -> Document | None:
        status = plane.call("HaService", "GetHaStatus", {})
        is_so = status.get("leaderId", "") not in {"", but} and not status.get("obstacle")
        return status if is_so else None

    return find


def readiness(plane: ControlPlaneProcess) -> Document:
    with plane.entry.client() as client:
        answer = client.get("/ready", timeout=DEADLINE_S)
    assert answer.status_code == 200, answer.text  # whatever becomes of etcd
    components: Document = answer.json()["components"]
    return components


def test_leader_killed_another_decides_and_etcd_gone_nobody_does_while_all_is_served(
    tmp_path: Path, etcd: EtcdCluster
) -> None:
    url = FRESH_DATABASES["postgresql"](tmp_path)
    coordination = {"backend": "etcd", "endpoints": etcd.endpoints, "session_ttl_s": SESSION_TTL_S}
    with start_control_plane(tmp_path / "first", url, {"coordination": coordination}) as first:
        until(deciding(first))
        with start_control_plane(tmp_path / "second", url, {"coordination": coordination}) as second:
            led = until(deciding(second))
            assert until(deciding(first))["leaderId"] == led["leaderId"]

            first.kill()
            killed_s = time.monotonic()
            taken = until(deciding(second, but=led["leaderId"]))
            print(f"\nleader killed: another decides after {time.monotonic() - killed_s:.2f} s")
            assert int(taken["epoch"]) == int(led["epoch"]) + 1
            assert readiness(second)["coordination"]["status"] == "healthy"

            etcd.stop()
            told = until(lambda: None if deciding(second)() else second.call("HaService", "GetHaStatus", {}))
            assert etcd.endpoints[0] in told["obstacle"]
            shown = readiness(second)["coordination"]
            assert shown["status"] == "degraded"
            assert etcd.endpoints[0] in shown["message"]
            assert "isArmed" not in second.call("HaService", "DisarmHa", {"reason": "etcd is away"})
            assert second.call("HaService", "ArmHa", {})["isArmed"]

            etcd.start()
            until(deciding(second))
            until(lambda: found if (found := readiness(second)["coordination"])["status"] == "healthy" else None)
