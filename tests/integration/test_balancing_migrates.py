"""Balancing with real processes: what it recommends is carried out by migrations between simulated hosts."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from hypervisor.mock import store as mock_store
from hypervisor.types import PowerState
from tests.faults.scale import RUNS_EVERYTHING
from tests.support.processes import ControlPlaneProcess, MockNodeProcess, start_control_plane, start_mock_node

DEADLINE_S = 60.0
SLOW_MIB_PER_S = 16
"""A VM of `VM_MIB` takes some seconds then: a test that needs a migration under way has time."""
VM_MIB = 64
HOST = {"vcpu_count": 8, "memory_mib": 1024}
SETTINGS = {
    "operations": {"lease_s": 2},
    "ha": {"enabled": False},  # loads are told with every heartbeat then
    "nodes": {"heartbeat_interval_s": 1},
    "scheduler": {"cpu_overcommit_ratio": 1.0, "reserved_cores": 0, "reserved_memory_mib": 0},
}
DRS = {
    "hysteresis_points": 0,
    # What was moved may go on at once: a second run must have nothing to propose for other reasons.
    "hold_s": 0,
    "node_cool_down_s": 0,
}

Document = dict[str, Any]


@dataclass
class Cluster:
    """A control plane that can be killed and started again, and its hosts by name."""

    directory: Path
    drs: Mapping[str, Any]
    stack: ExitStack
    hosts: dict[str, MockNodeProcess] = field(default_factory=dict)
    hosts_address: str = "127.0.0.1:0"

    def start(self) -> None:
        """Run the control plane, where the one before was and with its database."""
        settings = {**SETTINGS, "drs": {**DRS, **self.drs}}
        process = start_control_plane(self.directory / "plane", settings=settings, hosts_listen=self.hosts_address)
        self.plane: ControlPlaneProcess = self.stack.enter_context(process)
        self.hosts_address = self.plane.hosts_address

    def add_host(self, name: str, **mock: float) -> None:
        """Run a node daemon."""
        process = start_mock_node(self.directory / name, self.plane, hostname=name, **{**HOST, **mock})
        self.hosts[name] = self.stack.enter_context(process)

    def create(self, name: str, on: str, cores: int = 1) -> str:
        """Have a VM run on a host; returns its id."""
        spec = {"cpu": {"cores": cores}, "memory": {"sizeMib": VM_MIB}}
        request = {"name": name, "spec": spec, "nodeId": self.hosts[on].node_id, "startOnCreate": True}
        return str(self.plane.call("VMService", "CreateVM", request)["id"])

    def fill(self, *names: str) -> dict[str, str]:
        """Have VMs of these names run on host "a"; returns their ids."""
        return {name: self.create(name, "a") for name in names}

    def run(self) -> Document:
        """Look at the load."""
        return self.plane.call("BalancingService", "RunBalancing", {})

    def run_until_some(self) -> list[Document]:
        """Look until something is recommended: hosts tell their load a little after they start."""
        return list(self.until(self.run, lambda made: made.get("recommendations"))["recommendations"])

    def apply(self, identity: str, **headers: str) -> Document:
        """Carry one out."""
        with self.plane.entry.client(headers=headers) as client:
            answer = client.post(
                "/limiquantix.compute.v1.BalancingService/ApplyRecommendation",
                json={"id": identity},
                timeout=DEADLINE_S,
            )
        assert answer.is_success, answer.text
        document: Document = answer.json()
        return document

    def get(self, identity: str) -> Document:
        """Read a recommendation."""
        return self.plane.call("BalancingService", "GetRecommendation", {"id": identity})

    def recommendations(self) -> list[Document]:
        """Read all of them."""
        listed = self.plane.call("BalancingService", "ListRecommendations", {"pageSize": 1000})
        return list(listed.get("recommendations", ()))

    def migrations(self, vm_id: str = "") -> list[Document]:
        """Read the operations that move VMs, of one or of all."""
        request = {"kinds": ["vm.migrate"], "resourceId": vm_id}
        return list(self.plane.call("OperationService", "ListOperations", request).get("operations", ()))

    def placed_on(self, name: str) -> set[str]:
        """Ids of the VMs that the control plane has on a host."""
        vms = self.plane.call("VMService", "ListVMs", {"pageSize": 1000}).get("vms", ())
        return {vm["id"] for vm in vms if vm["status"].get("nodeId") == self.hosts[name].node_id}

    def running_on(self, name: str) -> set[str]:
        """Ids of the VMs that the simulated hypervisor itself has running."""
        vms = mock_store.load(self.directory / name / "data" / "mock-vms.json")
        return {vm_id for vm_id, vm in vms.items() if vm.state is PowerState.RUNNING}

    def until(self, ask: Callable[[], Any], holds: Callable[[Any], Any]) -> Any:
        """Ask again and again until what is answered is as it shall be."""
        deadline = time.monotonic() + DEADLINE_S
        for pause_s in itertools.repeat(0.1):
            if holds(answer := ask()):
                return answer
            assert time.monotonic() < deadline, answer
            time.sleep(pause_s)


@contextmanager
def cluster_of(directory: Path, drs: Mapping[str, Any], hosts: Mapping[str, Mapping[str, float]]) -> Iterator[Cluster]:
    """Run a control plane and hosts."""
    with ExitStack() as stack:
        cluster = Cluster(directory, drs, stack)
        cluster.start()
        for name, mock in hosts.items():
            cluster.add_host(name, **mock)
        yield cluster


def test_fault_08_applied_recommendations_move_vms_until_a_second_run_has_nothing_to_propose(tmp_path: Path) -> None:
    with cluster_of(tmp_path, {"automation": "manual"}, {"a": {}, "b": {}, "c": {}}) as cluster:
        vms = cluster.fill("one", "two", "three", "four", "five", "six")
        made = cluster.run_until_some()
        assert {each["sourceNodeId"] for each in made} == {cluster.hosts["a"].node_id}
        assert all(int(each["costDirtyBytesPerSec"]) > 0 for each in made), "the hosts measured them"
        assert {each["targetNodeId"] for each in made} <= {cluster.hosts[name].node_id for name in "bc"}

        applied = [cluster.apply(each["id"]) for each in made]

        assert {each["status"] for each in applied} == {"APPLIED"}, json.dumps(applied)
        for name in "bc":
            meant = {each["vmId"] for each in made if each["targetNodeId"] == cluster.hosts[name].node_id}
            assert cluster.placed_on(name) == meant
            assert cluster.running_on(name) == meant
        assert cluster.running_on("a") == set(vms.values()) - {each["vmId"] for each in made}
        assert {cluster.get(each["id"])["status"] for each in made} == {"APPLIED"}
        # What the hosts say of themselves is of a moment ago.
        assert cluster.until(cluster.run, lambda found: not found.get("recommendations"))["message"]


def test_full_automation_moves_vms_unasked_and_then_leaves_them(tmp_path: Path) -> None:
    with cluster_of(tmp_path, {"automation": "full", "interval_s": 1}, {"a": {}, "b": {}}) as cluster:
        cluster.fill("one", "two", "three", "four")
        cluster.until(lambda: len(cluster.running_on("b")), lambda count: count == 2)
        cluster.until(cluster.recommendations, lambda found: [each["status"] for each in found].count("APPLIED") == 2)
        turn = cluster.plane.call("BalancingService", "GetBalance", {})["lastRunAt"]
        cluster.until(
            lambda: cluster.plane.call("BalancingService", "GetBalance", {})["lastRunAt"], lambda at: at > turn
        )

        assert {each["decidedBy"] for each in cluster.recommendations()} == {"balancer"}
        assert cluster.running_on("b") == cluster.placed_on("b")
        assert len(cluster.migrations()) == 2


@pytest.mark.parametrize("how", ["killed", *(["stopped"] if RUNS_EVERYTHING else [])])
def test_control_plane_that_ends_while_a_vm_moves_notes_it_as_applied_after_its_restart(
    tmp_path: Path, how: str
) -> None:
    slow = {"migration_mib_per_sec": SLOW_MIB_PER_S}
    with cluster_of(tmp_path, {"automation": "manual"}, {"a": slow, "b": slow}) as cluster:
        cluster.fill("one", "two")
        (wanted,) = cluster.run_until_some()
        begun = cluster.apply(wanted["id"], **{"limiquantix-wait": "false"})
        assert (begun["status"], bool(begun["operationId"])) == ("APPROVED", True)
        cluster.until(
            lambda: cluster.migrations(wanted["vmId"]), lambda found: "the transfer" in found[0].get("waitingFor", "")
        )
        if how == "killed":
            cluster.plane.kill()
        else:
            cluster.plane.stop()
        assert wanted["vmId"] in cluster.running_on("a") | cluster.running_on("b")

        cluster.start()
        ended = cluster.until(lambda: cluster.get(wanted["id"]), lambda found: found["status"] != "APPROVED")

        assert ended["status"] == "APPLIED", ended
        assert cluster.placed_on("b") == cluster.running_on("b") == {wanted["vmId"]}
        assert [each["id"] for each in cluster.migrations(wanted["vmId"])] == [begun["operationId"]]
        cluster.until(cluster.run, lambda found: not found.get("recommendations"))
