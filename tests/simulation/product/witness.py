"""What never may happen, looked for after every change of a guest and every transaction."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from limiquantix.compute.v1.ha_service_pb2 import Fence
from limiquantix.compute.v1.operation_pb2 import Operation
from limiquantix.compute.v1.vm_pb2 import VmStatus
from tests.simulation.product.loop import Violation, VirtualLoop

if TYPE_CHECKING:
    from tests.simulation.product.host import Host

_FINAL = frozenset({Operation.SUCCEEDED, Operation.FAILED, Operation.CANCELLED})


class Witness:
    """Sees all hosts, and reads the database by itself."""

    def __init__(self, loop: VirtualLoop, database: Path) -> None:
        self._loop = loop
        self._connection = sqlite3.connect(f"file:{database}?mode=ro", uri=True, isolation_level=None)
        self.hosts: Sequence[Host] = ()
        self.created: set[str] = set()
        """VMs that somebody was told exist."""
        self.doomed: set[str] = set()
        """VMs whose removal somebody asked for."""
        self.deleted: set[str] = set()
        """VMs that somebody was told are gone."""
        self.operation_ids: set[str] = set()
        """Operations that somebody was told are recorded."""
        self.wishes: dict[str, int] = {}
        """What VMs shall be as somebody was told is recorded, unless more was asked since."""
        self.settings_version = 0
        """The newest settings of high availability that somebody was told of."""
        self.failover_count = 0
        self.check_count = 0
        self._epoch = 0
        self._nodes: dict[str, str | None] = {}
        self._ended: dict[str, int] = {}
        self._known: dict[str, tuple[int, int, int]] = {}

    def close(self) -> None:
        """Let go of the database."""
        self._connection.close()

    def node_id(self, hostname: str) -> str:
        """Look up a node; "" if it has not registered."""
        rows = self._rows("SELECT id FROM nodes WHERE hostname = ?", hostname)
        return str(rows[0][0]) if rows else ""

    def guest_changed(self, host_name: str, vm_id: str, is_in_memory: bool) -> None:
        """A guest came up or went."""
        self._loop.note(f"{host_name}: VM {vm_id[:8]} {'runs' if is_in_memory else 'is off'}")
        where = [host.name for host in self.hosts if vm_id in host.in_memory()]
        if len(where) > 1:
            self._accuse(f"VM {vm_id} runs on {' and '.join(where)}")

    def committed(self) -> None:
        """A transaction ended, one way or the other."""
        self.check_count += 1
        self._look_at_epoch()
        self._look_at_vms()
        self._look_at_room()
        self._look_at_operations()
        self._look_at_hosts()

    def _accuse(self, what: str) -> None:
        if self._loop.failure is None:
            self._loop.note(f"VIOLATED: {what}")
            self._loop.failure = Violation(what)

    def _rows(self, query: str, *values: Any) -> list[Any]:
        return self._connection.execute(query, values).fetchall()

    def _look_at_epoch(self) -> None:
        for (epoch,) in self._rows("SELECT epoch FROM leadership"):
            if epoch < self._epoch:
                self._accuse(f"the epoch fell from {self._epoch} to {epoch}")
            self._epoch = epoch

    def _look_at_vms(self) -> None:
        found = self._rows("SELECT id, node_id, wanted_state FROM vms")
        nodes = {vm_id: node_id for vm_id, node_id, _ in found}
        for vm_id in sorted(self.created - self.doomed - nodes.keys()):
            if not self._rows("SELECT 1 FROM operations WHERE resource_id = ? AND state = ?", vm_id, Operation.FAILED):
                self._accuse(f"VM {vm_id}, which was acknowledged, is gone, and nothing says that it could not be made")
        if risen := self.deleted & nodes.keys():
            self._accuse(f"VMs whose removal was acknowledged are there again: {sorted(risen)}")
        for vm_id, _, wanted in found:
            if vm_id not in self.doomed and self.wishes.get(vm_id, wanted) != wanted:
                self._accuse(f"VM {vm_id} shall be {wanted}, although it was acknowledged that it be otherwise")
        for vm_id, node_id in nodes.items():
            before = self._nodes.get(vm_id)
            if before is not None and node_id is not None and before != node_id:
                self._moved(vm_id, before, node_id)
        self._nodes = nodes

    def _moved(self, vm_id: str, source: str, target: str) -> None:
        """A VM is on another node by its record: then a fence is proven, or it is off where it was."""
        self.failover_count += 1
        for (parameters,) in self._rows("SELECT parameters FROM operations WHERE resource_id = ?", vm_id):
            said = json.loads(parameters)
            if said.get("from_node_id") == source and (fence_id := said.get("fence_id")):
                query = "SELECT node_id, state FROM fences WHERE id = ? AND proven_at IS NOT NULL"
                if self._rows(query, fence_id) == [(source, Fence.PROVEN)]:
                    return
        names = dict(self._rows("SELECT id, hostname FROM nodes"))
        if any(host.name == names[source] and vm_id in host.in_memory() for host in self.hosts):
            self._accuse(
                f"VM {vm_id} was moved from {names[source]}, where it runs, to {names[target]} without a proof"
            )
        if self._rows("SELECT 1 FROM operations WHERE resource_id = ? AND kind = 'vm.failover'", vm_id):
            unended = "SELECT kind FROM operations WHERE resource_id = ? AND ended_at IS NULL"
            kinds = {kind for (kind,) in self._rows(unended, vm_id)}
            if "vm.failover" in kinds:
                self._accuse(f"VM {vm_id} was failed over from {names[source]} without a proof")

    def _look_at_room(self) -> None:
        query = (
            "SELECT hostname FROM nodes WHERE allocated_vcpus > capacity_vcpus "
            "OR allocated_memory_bytes > capacity_memory_bytes"
        )
        for (hostname,) in self._rows(query):
            self._accuse(f"more is claimed on {hostname} than it has")

    def _look_at_operations(self) -> None:
        states = dict(self._rows("SELECT id, state FROM operations"))
        for operation_id, state in self._ended.items():
            if states.get(operation_id, state) != state:
                self._accuse(f"operation {operation_id} had ended and goes on")
        for operation_id in sorted(self.operation_ids - states.keys()):
            self._accuse(f"operation {operation_id} was acknowledged and is not recorded")
        self._ended = {operation_id: state for operation_id, state in states.items() if state in _FINAL}

    def _look_at_hosts(self) -> None:
        (recorded,) = self._rows(
            "SELECT (SELECT coalesce(max(epoch), 0) FROM leadership), (SELECT coalesce(max(token), 0) FROM fences), "
            "(SELECT coalesce(max(version), 0) FROM ha_settings)"
        )
        if recorded[2] < self.settings_version:
            self._accuse(f"settings {self.settings_version} were acknowledged, and {recorded[2]} are recorded")
        for host in self.hosts:
            known = host.known()
            if known is None:
                continue
            if any(told > there for told, there in zip(known, recorded, strict=True)):
                self._accuse(f"{host.name} was told of epoch, token and version {known}, and {recorded} are recorded")
            before = self._known.get(host.name, known)
            if any(now < then for now, then in zip(known, before, strict=True)):
                self._accuse(f"{host.name} forgot what it was told: {before} became {known}")
            self._known[host.name] = known

    # -- when everything is mended

    def unfinished(self) -> list[str]:
        """Say what has not come to its end."""
        found = [
            f"operation {kind} of {resource_id[:8]} hangs in state {Operation.State.Name(state)}"
            for kind, resource_id, state in self._rows("SELECT kind, resource_id, state FROM operations")
            if state not in _FINAL
        ]
        for hostname, state in self._rows(
            "SELECT hostname, state FROM fences JOIN nodes ON nodes.id = current_node_id"
        ):
            found.append(f"{hostname} still has a fence in state {state}")
        names = dict(self._rows("SELECT id, hostname FROM nodes"))
        query = "SELECT id, node_id, wanted_state, power_state FROM vms"
        for vm_id, node_id, wanted, state in self._rows(query):
            where = [host.name for host in self.hosts if vm_id in host.in_memory()]
            should = [names[node_id]] if node_id is not None and wanted == VmStatus.RUNNING else []
            if where != should or (wanted == VmStatus.RUNNING) != (state == VmStatus.RUNNING):
                found.append(
                    f"VM {vm_id[:8]} runs on {where}, should on {should}, recorded as {state}, wanted {wanted}"
                )
        known = {vm_id for (vm_id,) in self._rows("SELECT id FROM vms")}
        for host in self.hosts:
            found += [f"{host.name} runs VM {vm_id}, which nobody knows" for vm_id in sorted(host.in_memory() - known)]
        return found
