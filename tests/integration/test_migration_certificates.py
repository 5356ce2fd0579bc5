"""Who may move VMs to a host: real control plane, node daemons, libvirt and guests; certificates come by joining."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta
from functools import partial
from itertools import product
from pathlib import Path

import grpc
import pytest
import pytest_asyncio

from controlplane.authority.migration_authority import MigrationAuthority
from controlplane.domain.machines import Revocation
from hypervisor.libvirt.peer_certificates import write
from hypervisor.migration import PeerCertificate
from limiquantix.compute.v1.join_service_pb2 import RevokeNodeCertificateRequest
from limiquantix.compute.v1.node_service_pb2 import DecommissionNodeRequest
from limiquantix.compute.v1.operation_pb2 import Operation
from limiquantix.compute.v1.vm_pb2 import VmStatus
from limiquantix.rpc.identity import CONTROL_PLANE_SERVER_NAME, node_server_name
from tests.support.hypervisor_peers import (
    StandingConnection,
    joined_peer,
    own_files,
    peer_of,
    refusal,
    standing_connection,
)
from tests.support.libvirt_cluster import DEADLINE_S, LibvirtCluster, Witness, libvirt_cluster
from tests.support.libvirt_hosts import MigrationHost, migration_hosts
from tests.support.libvirt_nodes import LibvirtNode
from tests.support.own_cluster import own_cluster
from tests.support.private_libvirt_host import eventually, virsh

pytestmark = [pytest.mark.timeout(300), pytest.mark.asyncio(loop_scope="module")]

SLOW_MBPS = 8
"""A heavy guest's migration never ends at that speed."""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def cluster(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[LibvirtCluster]:
    """Hosts "a" and "b", which share their storage."""
    directory = tmp_path_factory.mktemp("cluster")
    images = dict.fromkeys("ab", directory / "shared")
    async with (
        migration_hosts(directory / "hosts", 2) as hosts,
        libvirt_cluster(dict(zip("ab", hosts, strict=True)), images, directory) as running,
    ):
        yield running


async def is_answered(address: str, credentials: grpc.ChannelCredentials, name: str) -> bool:
    """Whether TLS comes about; what a call is answered then does not matter."""
    options = [("grpc.ssl_target_name_override", name)]
    async with grpc.aio.secure_channel(address, credentials, options=options) as channel:
        nothing = channel.unary_unary("/nowhere/Nothing", request_serializer=bytes, response_deserializer=bytes)
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await nothing(b"", timeout=DEADLINE_S)
    return failed.value.code() is not grpc.StatusCode.UNAVAILABLE


async def test_hypervisors_let_in_those_of_their_cluster_and_no_other_certificate(
    cluster: LibvirtCluster, tmp_path: Path
) -> None:
    a, b = cluster.nodes["a"].host, cluster.nodes["b"].host
    async with joined_peer(cluster.plane.entry, tmp_path / "c", "c", "10.97.0.77") as c:
        assert await refusal(a, b, own_files(a), tmp_path) == ""
        assert await refusal(a, b, c.held, tmp_path) == ""
        for other in (c.identity.certificate, peer_of(own_cluster(), a.address), None):
            assert "TLS" in await refusal(a, b, other, tmp_path)

        entry, daemon = cluster.plane.entry, cluster.nodes["b"].daemon
        assert daemon is not None
        ca, ours = entry.authority.encode(), c.identity.certificate
        as_daemon = grpc.ssl_channel_credentials(ca, ours.key_pem, ours.certificate_pem)
        as_hypervisor = grpc.ssl_channel_credentials(ca, c.held.key_pem, c.held.certificate_pem)
        for address, name in (
            (entry.hosts_address, CONTROL_PLANE_SERVER_NAME),
            (daemon.address, node_server_name(daemon.node_id)),
        ):
            assert await is_answered(address, as_daemon, name)
            assert not await is_answered(address, as_hypervisor, name)


async def has_ended(connection: StandingConnection) -> bool | None:
    return None if await connection.is_let_in() else True


async def test_hosts_are_revoked_and_forgotten_and_certificates_change_while_a_guest_is_on_its_way(
    cluster: LibvirtCluster, tmp_path: Path
) -> None:
    a, b = cluster.nodes["a"].host, cluster.nodes["b"].host
    vm = await cluster.create("moved", "a", "heavy")
    witness = Witness(list(cluster.nodes.values()), [vm.id])
    entry = cluster.plane.entry
    async with (
        joined_peer(entry, tmp_path / "d", "d", "10.97.0.78") as d,
        joined_peer(entry, tmp_path / "e", "e", "10.97.0.79") as e,
        AsyncExitStack() as stack,
    ):
        with witness.watching():
            await cluster.until(vm, VmStatus.RUNNING)
            await witness.counts_on(vm.id)
            operation = await cluster.begin(vm, "b", SLOW_MBPS)
            before = {host.address: own_files(host) for host in (a, b)}
            open_before = [
                await stack.enter_async_context(standing_connection(*way, peer.held, tmp_path))
                for way, peer in product(((a, b), (b, a)), (d, e))
            ]
            for connection in open_before:
                assert await connection.is_let_in()

            await cluster.plane.nodes.DecommissionNode(DecommissionNodeRequest(id=e.id), timeout=DEADLINE_S)
            await cluster.plane.joining.RevokeNodeCertificate(
                RevokeNodeCertificateRequest(node_id=d.id), timeout=DEADLINE_S
            )

            async def is_kept_out() -> bool | None:
                await asyncio.sleep(
                    0.5
                )  # libvirtd 9.0 was seen to die as it took certificates while many were at its door
                ways = product(((a, b), (b, a)), (d, e))
                calls = (refusal(*way, peer.held, tmp_path) for way, peer in ways)
                return True if all(await asyncio.gather(*calls)) else None

            await eventually(is_kept_out, "the two hosts being refused by both", DEADLINE_S)
            for connection in open_before:
                await eventually(partial(has_ended, connection), "what they had open being ended", DEADLINE_S)

            async def is_let_in(caller: MigrationHost, target: MigrationHost) -> bool | None:
                shown = own_files(target)
                is_new = shown.certificate_pem != before[target.address].certificate_pem
                return True if is_new and not await refusal(caller, target, shown, tmp_path) else None

            for caller, target in ((a, b), (b, a)):  # each changes its own twice, at times of its own
                await eventually(partial(is_let_in, caller, target), "new certificates being taken", DEADLINE_S)
            on_its_way = await cluster.operation(vm)
            assert on_its_way.state == Operation.RUNNING, on_its_way
            await a.hurry_migration(vm.id)
            ended = await cluster.ended(operation)
            assert ended.state == Operation.SUCCEEDED, ended.error
            assert (await cluster.until(vm, VmStatus.RUNNING)).status.node_id == cluster.node_ids["b"]
            await cluster.migrate(vm, "a")
            await witness.counts_on(vm.id)
        assert witness.most_running == 1
        witness.check_count(vm.id)
    await cluster.clear()


async def start_libvirt_with(node: LibvirtNode, held: PeerCertificate) -> None:
    """Start a host's libvirt anew with other certificates, while its daemon is away."""
    await node.stop()
    await asyncio.to_thread(write, node.host.pki, held, None)
    dead = node.host.libvirtd_pid
    node.host.kill_libvirtd()

    async def runs() -> bool | None:
        return True if node.host.libvirtd_pid != dead and await virsh(node.host.uri, "version") else None

    await eventually(partial(or_none, runs), "libvirtd being started again", DEADLINE_S)


async def or_none(look: Callable[[], Awaitable[bool | None]]) -> bool | None:
    try:
        return await look()
    except (RuntimeError, OSError, ValueError):  # it is not up again
        return None


async def test_libvirt_that_calls_refuses_a_revoked_host(cluster: LibvirtCluster, tmp_path: Path) -> None:
    node, other = cluster.nodes["a"], cluster.nodes["b"].host
    doomed, now = str(uuid.uuid4()), datetime.now(UTC)
    await start_libvirt_with(node, peer_of(own_cluster(), node.host.address, node_id=doomed))
    listed = MigrationAuthority(own_cluster()).revocation_list([Revocation(doomed, now)], now)
    shown = peer_of(own_cluster(), other.address)

    assert await refusal(other, node.host, shown, tmp_path) == ""
    assert "revoked" in await refusal(other, node.host, shown, tmp_path, revoked=listed)


async def test_libvirt_starts_with_certificates_that_have_ended_and_gets_new_ones(
    cluster: LibvirtCluster, tmp_path: Path
) -> None:
    node, other = cluster.nodes["a"], cluster.nodes["b"].host
    ended = peer_of(own_cluster(), node.host.address, datetime.now(UTC) - timedelta(hours=2))
    await start_libvirt_with(node, ended)
    assert await refusal(other, node.host, own_files(other), tmp_path)

    await node.start()

    async def is_reached() -> bool | None:
        return True if await refusal(other, node.host, own_files(other), tmp_path) == "" else None

    await eventually(is_reached, "the other host being let in", DEADLINE_S)
