"""The three machines of docs/operations.md, with files as deploy/ha-config.sh makes them, whose hosts join."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import grpc
import pytest

from controlplane.ha_settings import HighAvailabilitySettings
from limiquantix.compute.v1 import ha_service_pb2 as ha_api
from limiquantix.compute.v1 import vm_service_pb2 as vm_api
from limiquantix.compute.v1.vm_pb2 import VirtualMachine, VmStatus
from limiquantix.rpc.credentials import MachineCertificate
from limiquantix.rpc.identity import CONTROL_PLANE_SERVER_NAME, node_server_name
from tests.support.entry import Entry, prepare
from tests.support.ha_machines import (
    ETCD_PORT,
    HOSTS_PORT,
    NODE_PORT,
    Machine,
    PlaneClient,
    machines_on_a_bridge,
    postgresql_on,
)
from tests.support.ha_parts import CALL_S, until
from tests.support.stores import open_store

pytestmark = pytest.mark.timeout(300)

HA = HighAvailabilitySettings(heartbeat_interval_s=1, freshness_s=1.5, objection_s=1.0, pause_s=0.5)
"""Quick times, as safe as the usual ones."""
START_S = 90.0

FoundT = TypeVar("FoundT")


@dataclass
class Cluster:
    """The machines, and a caller of each control plane."""

    machines: list[Machine]
    entry: Entry
    clients: dict[str, PlaneClient]

    async def status(self, machine: Machine) -> ha_api.HaStatus:
        return await self.clients[machine.name].ha.GetHaStatus(ha_api.GetHaStatusRequest(), timeout=CALL_S)

    async def vm(self, machine: Machine, vm_id: str) -> VirtualMachine:
        return await self.clients[machine.name].vms.GetVM(vm_api.GetVMRequest(id=vm_id), timeout=CALL_S)

    async def until(self, look: Callable[[], Awaitable[FoundT | None]], what: str) -> FoundT:
        """Wait; what does not come about is told with what all programs logged."""
        try:
            return await until(look, what, START_S)
        except AssertionError as error:
            raise AssertionError(f"{error}\n" + "\n".join(machine.said() for machine in self.machines)) from error

    async def until_elected(self, machine: Machine) -> None:
        async def look() -> bool | None:
            status = await self.status(machine)
            return True if status.leader_hostname == machine.name and not status.obstacle else None

        await self.until(look, f"{machine.name} being elected")

    async def until_well(self) -> None:
        """Wait until every control plane has itself heard every host, and every host fences itself."""

        async def look() -> bool | None:
            for machine in self.machines:
                nodes = (await self.status(machine)).nodes
                heard = {node.hostname for node in nodes if node.HasField("last_heard_at") and node.is_self_fencing}
                if heard != {each.name for each in self.machines}:
                    return None
            return True

        await self.until(look, "every control plane hearing every host")


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[Cluster]:
    """All of it running, node2's control plane being the one that decides."""
    storage = tmp_path / "images"
    storage.mkdir()
    changes = {"ha": HA.model_dump(mode="json", exclude_unset=True), "coordination": {"session_ttl_s": 2}}
    with ExitStack() as stack:
        machines = stack.enter_context(machines_on_a_bridge(tmp_path))
        for machine in machines:
            machine.start_etcd()
        url = stack.enter_context(postgresql_on(machines[0])).url()
        token = await asyncio.to_thread(prepare, url)
        machines[1].start_control_plane(changes)
        await until(lambda: has_authority(url), "the first control plane making the authority", START_S)
        entries = {each.name: await asyncio.to_thread(each.entry, url, token) for each in machines}
        clients = {name: PlaneClient(entry) for name, entry in entries.items()}
        made = Cluster(machines, entries["node2"], clients)
        await made.until_elected(machines[1])
        for machine in machines:
            machine.join(made.entry.join_token(machine.name), storage)
        for machine in (machines[0], machines[2]):
            machine.start_control_plane(changes)
        for machine in machines:
            machine.start_node(storage)
        await made.until_well()
        yield made
        for client in clients.values():
            await client.channel.close()


async def has_authority(database_url: str) -> bool | None:
    async with open_store(database_url) as store:
        return await store.read(lambda tx: tx.authority()) is not None or None


def channel_of(address: str, server_name: str, held: MachineCertificate, *, shows: bool = True) -> grpc.aio.Channel:
    """Open a channel that believes whom a machine believes, and shows what it shows."""
    pair = (held.key_pem, held.certificate_pem) if shows else ()
    credentials = grpc.ssl_channel_credentials(held.authority_pem, *pair)
    return grpc.aio.secure_channel(address, credentials, options=(("grpc.ssl_target_name_override", server_name),))


async def is_let_in(channel: grpc.aio.Channel) -> bool:
    """Whether TLS comes about; what the call is answered then does not matter."""
    async with channel:
        try:
            nothing = channel.unary_unary("/nowhere/Nothing", request_serializer=bytes, response_deserializer=bytes)
            await nothing(b"", timeout=CALL_S)
        except grpc.aio.AioRpcError as error:
            return error.code() is grpc.StatusCode.UNIMPLEMENTED
    return True


async def test_machine_that_decides_and_runs_the_vm_dies_and_the_vm_runs_elsewhere(cluster: Cluster) -> None:
    first, doomed, _ = cluster.machines
    created = json.loads(
        doomed.cli(cluster.entry, "-o", "json", "vm", "create", "db-1", "--cpus", "1", "--memory", "256MiB",
                   "--disk", "1GiB", "--node", "node2", "--ha", "--start")
    )  # fmt: skip
    vm_id, dead_node_id = created["id"], created["status"]["nodeId"]

    async def is_protected() -> bool | None:
        return True if (await cluster.vm(first, vm_id)).status.is_protected else None

    await cluster.until(is_protected, "the VM being protected")
    host = first.identity()
    for port, server_name, held in (
        (ETCD_PORT, "node1", first.of_stores()),
        (HOSTS_PORT, CONTROL_PLANE_SERVER_NAME, host.certificate),
        (NODE_PORT, node_server_name(host.machine.id), host.certificate),
    ):
        door = first.doors[port]
        assert await is_let_in(channel_of(door, server_name, held)), port
        assert not await is_let_in(channel_of(door, server_name, held, shows=False)), port
        assert not await is_let_in(channel_of(door, doomed.address, held)), port
        assert not await is_let_in(grpc.aio.insecure_channel(door)), port

    doomed.die()

    async def runs_elsewhere() -> bool | None:
        status = (await cluster.vm(first, vm_id)).status
        return True if status.state == VmStatus.RUNNING and status.node_id != dead_node_id else None

    await cluster.until(runs_elsewhere, "the VM running elsewhere")
    fences = await cluster.clients[first.name].ha.ListFences(ha_api.ListFencesRequest(), timeout=CALL_S)
    # A machine that runs much else beside may fall behind with another's heartbeats, but not until that is proven dead.
    proven = [(fence.hostname, fence.proof.method) for fence in fences.fences if fence.proof.method]
    assert proven == [("node2", ha_api.FENCE_METHOD_LEASE_EXPIRED)]
    assert (await cluster.status(first)).leader_hostname in ("node1", "node3")
