"""Machines prove who they are to each other, over real connections: joining, renewing, and all that must not work."""

from __future__ import annotations

import asyncio
import ssl
import sys
import uuid
from asyncio.subprocess import PIPE, STDOUT
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest

from controlplane.authority.certificates import Authority
from controlplane.daemons.grpc_calls import CallTimeouts
from controlplane.daemons.grpc_pool import GrpcDaemonPool
from limiquantix.compute.v1 import node_service_pb2 as api
from limiquantix.compute.v1.join_service_pb2_grpc import add_JoinServiceServicer_to_server
from limiquantix.compute.v1.node_pb2 import CpuInfo, MemoryInfo
from limiquantix.compute.v1.node_service_pb2_grpc import NodeServiceStub
from limiquantix.errors import ApiError, Code, Reason
from limiquantix.node.v1.node_daemon_pb2 import VMIdRequest
from limiquantix.node.v1.node_daemon_pb2_grpc import NodeDaemonServiceStub
from limiquantix.rpc.channel import open_channel
from limiquantix.rpc.credentials import MachineCredentials
from limiquantix.rpc.identity import CONTROL_PLANE_SERVER_NAME, MachineIdentity, Role
from limiquantix.rpc.pipeline import CallPipeline
from limiquantix.rpc.server import RpcServer
from limiquantix.rpc.status import from_rpc_error
from nodedaemon.control_plane import GrpcControlPlane
from nodedaemon.identity.files import IdentityFile, NodeIdentity
from nodedaemon.identity.joining import JoinFailed, join
from nodedaemon.identity.renewal import GrpcRenewer, Renewal
from telemetry.metrics import RpcMetrics, build_registry
from tests.support.builders import make_node, make_vm
from tests.support.databases import fresh_sqlite
from tests.support.machine_site import (
    JOIN_SERVICE,
    LOOPBACK,
    CountingJoins,
    MachineSite,
    certificate_of,
    daemon_of,
    machine_site,
)
from tests.support.stores import add, open_store

DEADLINE_S = 60.0


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[MachineSite]:
    async with open_store(fresh_sqlite(tmp_path)) as store, machine_site(store) as made:
        yield made


async def joined(site: MachineSite, hostname: str = "host-1") -> NodeIdentity:
    return await join(await site.token(), hostname)


@asynccontextmanager
async def host_of(site: MachineSite, credentials: MachineCredentials) -> AsyncIterator[GrpcControlPlane]:
    client = GrpcControlPlane([site.hosts], credentials)
    try:
        yield client
    finally:
        await client.close()


def beat(node_id: str) -> api.UpdateHeartbeatRequest:
    return api.UpdateHeartbeatRequest(node_id=node_id)


def registration(hostname: str) -> api.RegisterNodeRequest:
    return api.RegisterNodeRequest(
        hostname=hostname,
        management_ip="192.0.2.7",
        cpu_info=CpuInfo(total_threads=4),
        memory_info=MemoryInfo(total_bytes=2**33),
    )


def vm_change(node_id: str, vm_id: str) -> api.VMChangeNotification:
    report = api.VMStatusReport(id=vm_id, name="vm-1", state_change_count=1)
    return api.VMChangeNotification(node_id=node_id, vm=report, event_type=api.VM_CHANGE_UPDATED)


async def refusal(call: Awaitable[object]) -> ApiError:
    with pytest.raises(ApiError) as refused:
        await call
    return refused.value


@asynccontextmanager
async def false_site(site: MachineSite, credentials: MachineCredentials) -> AsyncIterator[tuple[str, CountingJoins]]:
    """Something that takes joins, with a certificate that is none of a control plane's of the cluster."""
    joins = CountingJoins(site.joining, (), site.machines, site.migrations)
    server = RpcServer(
        CallPipeline({}, RpcMetrics(build_registry())),
        [JOIN_SERVICE],
        lambda rpc: add_JoinServiceServicer_to_server(joins, rpc),
        credentials.server(asks_for_certificate=False),
    )
    port = await server.start(LOOPBACK)
    try:
        yield f"127.0.0.1:{port}", joins
    finally:
        await server.stop(0)


# -- joining


async def test_host_joins_and_speaks_as_the_node_of_its_certificate(site: MachineSite) -> None:
    identity = await joined(site)
    assert identity.machine.cluster_id == site.cluster.id
    assert identity.addresses == (site.hosts,)
    async with host_of(site, MachineCredentials(identity.certificate)) as host:
        assert (await host.register(registration("host-1"))).id == identity.machine.id
        assert (await host.heartbeat(beat(identity.machine.id))).acknowledged
    text = f"node:{identity.machine.id}"
    assert site.nodes.heard == [("RegisterNode", text), ("UpdateHeartbeat", text)]


async def test_command_joins_and_keeps_who_the_host_is(site: MachineSite, tmp_path: Path) -> None:
    config = tmp_path / "node.yaml"
    config.write_text(f"node:\n  data_dir: {tmp_path / 'data'}\n  hostname: host-1\n")
    text = (await site.token(hostname="host-1")).encode()

    status, told = await run_join(config, text)

    assert status == 0, told
    identity = IdentityFile.under(tmp_path / "data").load()
    assert identity is not None
    assert identity.machine.id in told
    async with host_of(site, MachineCredentials(identity.certificate)) as host:
        assert (await host.heartbeat(beat(identity.machine.id))).acknowledged


async def run_join(config: Path, token: str) -> tuple[int | None, str]:
    """Run the command as people do; the token comes by its standard input."""
    command = (sys.executable, "-m", "nodedaemon", "--config", str(config), "join", "-")
    process = await asyncio.create_subprocess_exec(*command, stdin=PIPE, stdout=PIPE, stderr=STDOUT)
    async with asyncio.timeout(2 * DEADLINE_S):
        told, _ = await process.communicate(token.encode())
    return process.returncode, told.decode()


async def test_token_that_was_used_lets_nobody_in(site: MachineSite) -> None:
    token = await site.token()
    await join(token, "host-1")
    with pytest.raises(JoinFailed, match="the join token is not good"):
        await join(token, "host-2")


async def test_token_that_expired_lets_nobody_in(site: MachineSite) -> None:
    token = await site.token(lifetime=timedelta(minutes=5))
    site.shift = timedelta(minutes=6)
    with pytest.raises(JoinFailed, match="the join token is not good"):
        await join(token, "host-1")


async def test_whoever_is_not_of_the_tokens_authority_hears_nothing(site: MachineSite) -> None:
    forged, _ = Authority.make(site.cluster.id, site.now())
    false = MachineCredentials(certificate_of(forged, site.cluster.control_plane("cp-1")))
    async with false_site(site, false) as (address, joins):
        token = await site.token()
        with pytest.raises(JoinFailed, match="no control plane of the token's cluster answers"):
            await join(token, "host-1", [address])
        assert joins.join_count == 0
        assert (await join(token, "host-1", [address, site.people])).addresses == (site.hosts,), "the next one is true"


async def test_another_node_is_not_taken_for_a_control_plane(site: MachineSite) -> None:
    node = MachineCredentials(certificate_of(site.cluster.authority, site.cluster.node(str(uuid.uuid4()))))
    async with false_site(site, node) as (address, joins):
        with pytest.raises(JoinFailed):
            await join(await site.token(), "host-1", [address])
        assert joins.join_count == 0


# -- speaking for others


async def test_host_speaks_for_itself_and_of_its_own_vms_only(site: MachineSite) -> None:
    identity, other = await joined(site), await joined(site, "host-2")
    node_id, other_id = identity.machine.id, other.machine.id
    await add(site.store, make_node(id=node_id, hostname="host-1"))
    await add(site.store, make_node(id=other_id, hostname="host-2"))
    mine, theirs, seen = (make_vm(node_id=each) for each in (node_id, other_id, other_id))
    seen = await _seen_on(site, seen, node_id)
    for vm in (mine, theirs):
        await site.store.run(_inserting(vm))
    async with host_of(site, MachineCredentials(identity.certificate)) as host:
        for call in (
            host.heartbeat(beat(other_id)),
            host.register(registration("host-2")),
            host.sync_full_state(api.SyncFullStateRequest(node_id=other_id)),
            host.notify_vm_change(vm_change(other_id, theirs.id)),
            host.notify_vm_change(vm_change(node_id, theirs.id)),
        ):
            error = await refusal(call)
            assert (error.code, error.reason) == (Code.PERMISSION_DENIED, Reason.NOT_OF_THIS_NODE)
        assert site.nodes.heard == []
        for vm_id in (mine.id, seen.id, str(uuid.uuid4())):
            assert (await host.notify_vm_change(vm_change(node_id, vm_id))).acknowledged
        gone = vm_change(node_id, theirs.id)
        gone.event_type = api.VM_CHANGE_DELETED
        assert (await host.notify_vm_change(gone)).acknowledged, "what the source of a migration says last"


async def _seen_on(site: MachineSite, vm: Any, node_id: str) -> Any:
    seen = replace(vm, sightings={node_id: vm.power_state})
    await site.store.run(_inserting(seen))
    return seen


def _inserting(vm: Any) -> Any:
    return lambda tx: tx.insert_vm(vm)


# -- who is let in


async def test_port_for_hosts_takes_good_certificates_of_its_authority_only(site: MachineSite) -> None:
    identity = await joined(site)
    other, _ = Authority.make(site.cluster.id, site.now())
    old = certificate_of(site.cluster.authority, identity.machine, timedelta(days=8))
    stranger = certificate_of(other, identity.machine)
    trusted = site.cluster.authority.certificate_pem
    for credentials in (
        grpc.ssl_channel_credentials(trusted),
        grpc.ssl_channel_credentials(trusted, stranger.key_pem, stranger.certificate_pem),
        grpc.ssl_channel_credentials(trusted, old.key_pem, old.certificate_pem),
    ):
        async with open_channel(site.hosts, credentials, CONTROL_PLANE_SERVER_NAME) as channel:
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await NodeServiceStub(channel).UpdateHeartbeat(beat(identity.machine.id), timeout=DEADLINE_S)
        assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
    async with host_of(site, MachineCredentials(stranger)) as host:
        assert (await refusal(host.heartbeat(beat(identity.machine.id)))).code is Code.UNAVAILABLE
    assert site.nodes.heard == []


async def test_machine_that_is_no_node_of_this_cluster_is_refused(site: MachineSite) -> None:
    for identity in (
        MachineIdentity(str(uuid.uuid4()), Role.NODE, str(uuid.uuid4())),
        site.cluster.node(str(uuid.uuid4())),
        site.cluster.control_plane("cp-1"),
    ):
        credentials = MachineCredentials(certificate_of(site.cluster.authority, identity))
        async with host_of(site, credentials) as host:
            error = await refusal(host.heartbeat(beat(str(uuid.uuid4()))))
        assert (error.code, error.reason) == (Code.UNAUTHENTICATED, Reason.CERTIFICATE_REFUSED), identity


async def test_revoked_host_is_refused_on_open_connections_and_joins_again_as_the_same_node(site: MachineSite) -> None:
    identity = await joined(site)
    node_id = identity.machine.id
    async with host_of(site, MachineCredentials(identity.certificate)) as host:
        assert (await host.heartbeat(beat(node_id))).acknowledged
        site.shift = timedelta(seconds=2)  # certificates count in whole seconds
        await site.joining.revoke_certificate(node_id)
        await site.machines.refresh()
        error = await refusal(host.heartbeat(beat(node_id)))
        assert (error.code, error.reason) == (Code.UNAUTHENTICATED, Reason.CERTIFICATE_REFUSED)
        assert "join token" in error.message
    again = await join(await site.token(node_id=node_id), "host-1")
    assert again.machine.id == node_id
    async with host_of(site, MachineCredentials(again.certificate)) as host:
        assert (await host.heartbeat(beat(node_id))).acknowledged


# -- the daemon's port


async def test_daemon_takes_commands_of_its_clusters_control_planes_only(site: MachineSite) -> None:
    identity, other = await joined(site), await joined(site, "host-2")
    foreign = MachineIdentity(str(uuid.uuid4()), Role.CONTROL_PLANE, "cp-1")
    callers = {
        "its own": identity.certificate,
        "another node": other.certificate,
        "a control plane of another cluster": certificate_of(site.cluster.authority, foreign),
    }
    async with daemon_of(identity, MachineCredentials(identity.certificate)) as address:
        for who, certificate in callers.items():
            credentials = MachineCredentials(certificate).channel()
            async with open_channel(address, credentials, identity.machine.server_name) as channel:
                with pytest.raises(grpc.aio.AioRpcError) as refused:
                    await NodeDaemonServiceStub(channel).GetVMStatus(
                        VMIdRequest(vm_id=str(uuid.uuid4())), timeout=DEADLINE_S
                    )
            error = from_rpc_error(refused.value, peer="the host")
            assert (error.code, error.reason) == (Code.PERMISSION_DENIED, Reason.CALLER_UNSUITED), who

        pool = GrpcDaemonPool(CallTimeouts(query_s=DEADLINE_S), site.own.credentials)
        meant = make_node(id=identity.machine.id, agent_endpoint=address)
        assert (await refusal(pool.daemon(meant).vm_status(str(uuid.uuid4())))).code is Code.NOT_FOUND, "it answered"
        elsewhere = make_node(id=other.machine.id, agent_endpoint=address)
        assert (await refusal(pool.daemon(elsewhere).vm_status(str(uuid.uuid4())))).code is Code.UNAVAILABLE
        await pool.close()


# -- renewing


async def test_certificates_are_renewed_while_calls_are_made_and_none_is_lost(
    site: MachineSite, tmp_path: Path
) -> None:
    first = await joined(site)
    machine, file = first.machine, IdentityFile.under(tmp_path)
    worn = NodeIdentity.read(certificate_of(site.cluster.authority, machine, timedelta(days=4)), first.addresses)
    credentials = MachineCredentials(worn.certificate)
    renewer = GrpcRenewer(worn.addresses, credentials)
    renewal = Renewal(worn, file, credentials, renewer)
    answered = 0

    async def beat_on(host: GrpcControlPlane) -> None:
        nonlocal answered
        while True:
            await host.heartbeat(beat(machine.id))
            answered += 1

    async def more(count: int) -> None:
        wanted = answered + count
        async with asyncio.timeout(DEADLINE_S):
            while answered < wanted:
                assert not any(task.done() for task in tasks), [task.exception() for task in tasks if task.done()]
                await asyncio.sleep(0.01)

    async with host_of(site, credentials) as host:
        site.nodes.gate.clear()
        long_call = asyncio.create_task(host.register(registration("host-1")))
        await asyncio.wait_for(site.nodes.is_waiting.wait(), DEADLINE_S)
        tasks = [asyncio.create_task(beat_on(host)) for _ in range(4)]
        await more(8)
        assert site.nodes.serials == {worn.certificate.certificate_pem}

        assert renewal.is_due()
        await renewal.renew()
        assert not renewal.is_due()
        served_before = site.own.credentials.current
        site.own.credentials.replace(certificate_of(site.cluster.authority, site.cluster.control_plane("cp-1")))
        await more(20)
        assert renewal.identity.certificate.certificate_pem in site.nodes.serials

        site.nodes.gate.set()
        assert (await asyncio.wait_for(long_call, DEADLINE_S)).id == machine.id, "begun before, ended after"
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    await renewer.close()
    kept = file.load()
    assert kept == renewal.identity
    assert kept.certificate.key_pem != worn.certificate.key_pem
    assert await _served_by(site.hosts) != served_before.certificate_pem


async def _served_by(address: str) -> bytes:
    """Return the certificate that a new connection is shown."""
    host, _, port = address.rpartition(":")
    return (await asyncio.to_thread(ssl.get_server_certificate, (host, int(port)))).encode()


async def test_pool_goes_on_with_a_new_certificate_of_the_control_plane(site: MachineSite) -> None:
    identity = await joined(site)
    async with daemon_of(identity, MachineCredentials(identity.certificate)) as address:
        pool = GrpcDaemonPool(CallTimeouts(query_s=DEADLINE_S), site.own.credentials)
        node = make_node(id=identity.machine.id, agent_endpoint=address)
        before = pool.daemon(node)
        for _ in range(4):
            assert (await refusal(pool.daemon(node).vm_status(str(uuid.uuid4())))).code is Code.NOT_FOUND
            held = pool.daemon(node)
            site.own.credentials.replace(certificate_of(site.cluster.authority, site.cluster.control_plane("cp-1")))
            assert pool.daemon(node) is not held
            assert (await refusal(held.vm_status(str(uuid.uuid4())))).code is Code.NOT_FOUND, "still good for a while"
        assert pool.daemon(node) is not before
        await pool.close()
