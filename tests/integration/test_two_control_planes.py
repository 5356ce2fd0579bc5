"""Two control planes, real processes, on one PostgreSQL: nothing is promised twice, one finishes what the other began.

Both speak to the same simulated hosts, which call whichever of the two answers.
"""

from __future__ import annotations

import itertools
import signal
import threading
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import create_engine, make_url, text

from tests.support.databases import FRESH_DATABASES
from tests.support.processes import ControlPlaneProcess, MockNodeProcess, start_control_plane, start_mock_node

LEASE_S = 4
DEADLINE_S = 60.0
SERVICE = "limiquantix.compute.v1"

Document = dict[str, Any]


@pytest.fixture
def url(tmp_path: Path) -> str:
    return FRESH_DATABASES["postgresql"](tmp_path)


@pytest.fixture
def planes(tmp_path: Path, url: str) -> Iterator[tuple[ControlPlaneProcess, ControlPlaneProcess]]:
    settings = {
        "operations": {"lease_s": LEASE_S},
        "scheduler": {"cpu_overcommit_ratio": 1.0, "reserved_cores": 0},
        "nodes": {"heartbeat_interval_s": 1},
        "ha": {"enabled": False},  # without etcd they cannot elect one of them
    }
    with (
        start_control_plane(tmp_path / "first", url, settings) as first,
        start_control_plane(tmp_path / "second", url, settings) as second,
    ):
        yield first, second


def create_request(name: str, **fields: Any) -> Document:
    return {"name": name, "spec": {"cpu": {"cores": 1}, "memory": {"sizeMib": 64}}, **fields}


def post(plane: ControlPlaneProcess, method: str, body: Document, **headers: str) -> httpx.Response:
    named = {f"limiquantix-{name.replace('_', '-')}": value for name, value in headers.items()}
    with plane.entry.client(headers=named) as client:
        return client.post(f"/{SERVICE}.{method}", json=body, timeout=DEADLINE_S)


def until(plane: ControlPlaneProcess, method: str, body: Document, holds: Any) -> Document:
    """Ask again and again until what is answered is as it shall be."""
    deadline = time.monotonic() + DEADLINE_S
    while True:
        service, _, name = method.partition("/")
        document = plane.call(service, name, body)
        if holds(document):
            return document
        assert time.monotonic() < deadline, document
        time.sleep(0.05)


def allocated_vcpus(plane: ControlPlaneProcess, node_id: str) -> int:
    node = plane.call("NodeService", "GetNode", {"id": node_id})
    return int(node["status"]["resources"]["cpu"].get("allocatedVcpus", 0))


class ClaimSampler:
    """Reads, again and again, what is claimed, what VMs there are and what fits, each time as of one commit."""

    _QUERY = text("SELECT allocated_vcpus, (SELECT coalesce(sum(vcpus), 0) FROM vms), capacity_vcpus FROM nodes")

    def __init__(self, url: str) -> None:
        self._engine = create_engine(make_url(url).set(drivername="postgresql+psycopg"))
        self._ends = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.samples: list[tuple[int, int, int]] = []
        """(claimed, sum of the VMs, capacity)"""

    def __enter__(self) -> ClaimSampler:
        self._look()  # before anything is claimed
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ends.set()
        self._thread.join()
        self._look()
        self._engine.dispose()

    def _run(self) -> None:
        while not self._ends.wait(0.002):
            self._look()

    def _look(self) -> None:
        with self._engine.connect() as connection:
            claimed, used, capacity = connection.execute(self._QUERY).one()
            self.samples.append((int(claimed), int(used), int(capacity)))


def test_parallel_creates_through_both_place_exactly_what_fits(
    planes: tuple[ControlPlaneProcess, ControlPlaneProcess], tmp_path: Path, url: str
) -> None:
    with start_mock_node(tmp_path / "node", *planes, vcpu_count=16, memory_mib=65536) as node:
        with ClaimSampler(url) as sampler, ThreadPoolExecutor(32) as callers:
            answers = list(
                callers.map(lambda n: post(planes[n % 2], "VMService/CreateVM", create_request(f"vm-{n}")), range(32))
            )

        assert {claimed for claimed, _, _ in sampler.samples} > {0, 16}  # it looked while claims were made
        assert all(claimed == used <= capacity == 16 for claimed, used, capacity in sampler.samples)
        placed = [answer for answer in answers if answer.is_success]
        refused = [answer.json() for answer in answers if not answer.is_success]
        assert {(each["code"], "need 1 vCPU" in each["message"]) for each in refused} == {("resource_exhausted", True)}
        assert len(placed) == 16
        assert allocated_vcpus(planes[1], node.node_id) == 16
        listed = planes[0].call("VMService", "ListVMs", {"pageSize": 100})
        assert listed["totalCount"] == 16
        assert {vm["id"] for vm in listed["vms"]} == {answer.json()["id"] for answer in placed}


def test_same_request_through_both_at_once_makes_one_vm(
    planes: tuple[ControlPlaneProcess, ControlPlaneProcess], tmp_path: Path
) -> None:
    with start_mock_node(tmp_path / "node", *planes), ThreadPoolExecutor(16) as callers:
        for _ in range(5):
            request_id, name = str(uuid.uuid4()), f"vm-{uuid.uuid4().hex[:8]}"
            answers = list(
                callers.map(
                    lambda n, name=name, request_id=request_id: post(
                        planes[n % 2], "VMService/CreateVM", create_request(name), request_id=request_id
                    ),
                    range(16),
                )
            )

            assert [answer.status_code for answer in answers] == [200] * 16, [answer.text for answer in answers]
            assert len({answer.json()["id"] for answer in answers}) == 1
            assert len({answer.headers["limiquantix-operation-id"] for answer in answers}) == 1


def test_operations_on_one_vm_through_both_run_one_after_the_other(
    planes: tuple[ControlPlaneProcess, ControlPlaneProcess], tmp_path: Path
) -> None:
    with start_mock_node(tmp_path / "node", *planes), ThreadPoolExecutor(12) as callers:
        vm = planes[0].call("VMService", "CreateVM", create_request("busy", startOnCreate=True))

        methods = ["PauseVM", "ResumeVM", "RebootVM"] * 4
        answers = list(
            callers.map(
                lambda each: post(planes[each[0] % 2], f"VMService/{each[1]}", {"id": vm["id"]}), enumerate(methods)
            )
        )

        # Which of them the state allows depends on their order; none is refused for being busy, and none is lost.
        assert {answer.json().get("code", "ok") for answer in answers} <= {"ok", "failed_precondition"}
        page = planes[1].call("OperationService", "ListOperations", {"resourceId": vm["id"], "pageSize": 100})
        assert {operation["state"] for operation in page["operations"]} <= {"SUCCEEDED", "FAILED"}
        starts = sorted((each["startedAt"], each["endedAt"]) for each in page["operations"])
        assert all(earlier[1] <= later[0] for earlier, later in itertools.pairwise(starts))


@pytest.mark.parametrize("how", ["killed", "stopped"])
def test_create_of_a_process_that_ends_is_finished_by_the_other(
    planes: tuple[ControlPlaneProcess, ControlPlaneProcess], tmp_path: Path, how: str
) -> None:
    first, second = planes
    with start_mock_node(tmp_path / "node", *planes, vcpu_count=16) as node:
        pause(node)  # so that the create is under way for as long as we like
        answer = post(first, "VMService/CreateVM", create_request("half", startOnCreate=True), wait="false")
        assert answer.is_success, answer.text
        assert answer.json()["status"]["state"] == "PROVISIONING"
        first.kill() if how == "killed" else first.process.terminate()
        resume(node)

        ended = until(
            second,
            "OperationService/GetOperation",
            {"id": answer.headers["limiquantix-operation-id"]},
            lambda operation: "endedAt" in operation,
        )

        assert ended["state"] == "SUCCEEDED", ended
        vm = second.call("VMService", "GetVM", {"id": answer.json()["id"]})
        assert vm["status"]["state"] == "RUNNING"
        assert allocated_vcpus(second, node.node_id) == 1


def test_hosts_go_on_with_the_control_plane_that_is_left(
    planes: tuple[ControlPlaneProcess, ControlPlaneProcess], tmp_path: Path
) -> None:
    first, second = planes
    with start_mock_node(tmp_path / "node", *planes) as node:
        vm = first.call("VMService", "CreateVM", create_request("kept", startOnCreate=True))
        first.kill()

        heard = second.call("NodeService", "GetNode", {"id": node.node_id})["status"]["lastHeartbeat"]
        until(
            second,
            "NodeService/GetNode",
            {"id": node.node_id},
            lambda each: each["status"]["lastHeartbeat"] > heard and each["status"]["phase"] == "READY",
        )
        assert post(second, "VMService/StopVM", {"id": vm["id"], "force": True}).json()["status"]["state"] == "STOPPED"


def pause(node: MockNodeProcess) -> None:
    """Let a node daemon stand still."""
    node.process.send_signal(signal.SIGSTOP)


def resume(node: MockNodeProcess) -> None:
    """Let it go on."""
    node.process.send_signal(signal.SIGCONT)
