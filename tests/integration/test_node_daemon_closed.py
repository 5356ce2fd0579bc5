"""The node daemon as a real process: it serves nobody but control planes of the cluster that its host joined."""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
from google.protobuf.empty_pb2 import Empty
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2_grpc

from controlplane.authority.certificates import Authority
from controlplane.authority.cluster import Cluster
from limiquantix.errors import Code, Reason
from limiquantix.node.v1 import node_daemon_pb2 as pb
from limiquantix.node.v1.node_daemon_pb2_grpc import NodeDaemonServiceStub
from limiquantix.rpc.identity import node_server_name
from nodedaemon.identity.files import IdentityFile
from tests.support.fake_control_plane import fake_control_plane
from tests.support.node_daemon_process import DEADLINE_S, client, command, environment, node_daemon, refusal
from tests.support.own_cluster import admit, credentials_of, node_credentials, own_cluster

CALL_S = 60.0
Ask = Callable[[grpc.aio.Channel], Awaitable[Any]]


async def _reflect(channel: grpc.aio.Channel) -> None:
    """Ask for nothing yet: a refusal that crosses a request would be told as an error of sending it."""
    await reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo(timeout=CALL_S).read()


ASKED: dict[str, Ask] = {
    "list": lambda channel: NodeDaemonServiceStub(channel).ListVMs(Empty(), timeout=CALL_S),
    "health check": lambda channel: NodeDaemonServiceStub(channel).HealthCheck(pb.HealthCheckRequest(), timeout=CALL_S),
    "force stop": lambda channel: NodeDaemonServiceStub(channel).ForceStopVM(
        pb.VMIdRequest(vm_id=str(uuid.uuid4())), timeout=CALL_S
    ),
    "health": lambda channel: health_pb2_grpc.HealthStub(channel).Check(
        health_pb2.HealthCheckRequest(), timeout=CALL_S
    ),
    "reflection": _reflect,
}


async def started_in_vain(directory: Path) -> str:
    """Start a daemon that must end by itself; returns what it said."""
    config = {"node": {"data_dir": str(directory / "data")}, "server": {"metrics_port": 0}}
    path = directory / "node.yaml"
    path.write_text(json.dumps(config | {"hypervisor": {"storage_path": str(directory / "images")}}))
    flags = ("--config", str(path), "--dev", "--listen", "127.0.0.1:0")
    process = await asyncio.create_subprocess_exec(*command(*flags), stderr=asyncio.subprocess.PIPE, env=environment())
    try:
        async with asyncio.timeout(DEADLINE_S):
            _, said = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
    assert process.returncode == 1
    assert "Traceback" not in said.decode()
    assert '"event":"listening"' not in said.decode()
    return said.decode()


# -- who the host is


async def test_daemon_of_a_host_that_did_not_join_refuses_to_start_and_says_how_to_join(tmp_path: Path) -> None:
    said = await started_in_vain(tmp_path)
    assert "has joined no cluster" in said
    assert str(IdentityFile.under(tmp_path / "data").path) in said
    assert "`limiquantix node token create`" in said
    assert "`limiquantix-node join TOKEN`" in said
    assert not (tmp_path / "images").exists()


async def test_daemon_whose_identity_others_may_read_refuses_to_start(tmp_path: Path) -> None:
    admit(tmp_path / "data")
    IdentityFile.under(tmp_path / "data").path.chmod(0o644)
    assert "not the daemon's alone" in await started_in_vain(tmp_path)


async def test_daemon_whose_identity_is_damaged_refuses_to_start_and_says_what_to_do(tmp_path: Path) -> None:
    admit(tmp_path / "data")
    IdentityFile.under(tmp_path / "data").path.write_text("{}")
    said = await started_in_vain(tmp_path)
    assert "is damaged" in said
    assert "join again" in said


# -- who commands it


async def test_daemon_lets_nobody_in_but_a_control_plane_of_its_cluster(tmp_path: Path) -> None:
    ours = own_cluster()
    forged, _ = Authority.make(ours.id, datetime.now(UTC))
    trusted = ours.authority.certificate_pem
    false = credentials_of(Cluster(ours.id, forged).control_plane("cp-1"), forged).current
    old = credentials_of(ours.control_plane("cp-1"), at=datetime.now(UTC) - timedelta(days=8)).current
    elsewhere = credentials_of(Cluster(str(uuid.uuid4()), ours.authority).control_plane("cp-1")).current
    strangers = {
        "without a certificate": grpc.ssl_channel_credentials(trusted),
        "of another authority": grpc.ssl_channel_credentials(trusted, false.key_pem, false.certificate_pem),
        "whose certificate has ended": grpc.ssl_channel_credentials(trusted, old.key_pem, old.certificate_pem),
        "another node": node_credentials().channel(),
        "of another cluster": grpc.ssl_channel_credentials(trusted, elsewhere.key_pem, elsewhere.certificate_pem),
    }
    async with node_daemon(tmp_path, "") as daemon:
        options = [("grpc.ssl_target_name_override", node_server_name(daemon.node_id))]
        channels = {
            who: grpc.aio.secure_channel(daemon.address, credentials, options=options)
            for who, credentials in strangers.items()
        }
        channels["in the clear"] = grpc.aio.insecure_channel(daemon.address)
        for who, channel in channels.items():
            async with channel:
                refused = {what: (error := await refusal(ask(channel))).code for what, ask in ASKED.items()}
            is_of_the_authority = who in ("another node", "of another cluster")
            expected = Code.PERMISSION_DENIED if is_of_the_authority else Code.UNAVAILABLE
            assert refused == dict.fromkeys(ASKED, expected), who
            assert not is_of_the_authority or error.reason == Reason.CALLER_UNSUITED


async def test_control_plane_takes_no_other_node_for_the_one_it_means(tmp_path: Path) -> None:
    async with node_daemon(tmp_path, "") as daemon, client(daemon) as node:
        assert (await node.GetNodeInfo(Empty())).node_id == daemon.node_id
        daemon.node_id = str(uuid.uuid4())
        async with client(daemon) as other:
            assert (await refusal(other.GetNodeInfo(Empty(), timeout=CALL_S))).code is Code.UNAVAILABLE


# -- whom it calls


async def test_daemon_registers_as_who_it_joined_where_it_was_told_then(tmp_path: Path) -> None:
    async with fake_control_plane() as plane:
        node_id = admit(tmp_path / "data", (plane.address,))
        async with node_daemon(tmp_path, "", "--register"):
            await plane.until(lambda: bool(plane.registrations) and bool(plane.heartbeats))
    assert {beat.node_id for beat in plane.heartbeats} == {node_id}


async def test_daemon_that_shall_not_register_tells_nobody_anything_but_serves_and_renews(tmp_path: Path) -> None:
    data_dir, vm_id = tmp_path / "data", str(uuid.uuid4())
    async with fake_control_plane() as plane:
        admit(data_dir, (plane.address,), at=datetime.now(UTC) - timedelta(days=6))
        after = before = IdentityFile.under(data_dir).load()
        async with node_daemon(tmp_path, plane.address, "--no-register") as daemon, client(daemon) as node:
            spec = pb.VMSpec(cpu_cores=1, memory_mib=64)
            await node.CreateVM(pb.CreateVMOnNodeRequest(vm_id=vm_id, name="web", spec=spec))
            await node.StartVM(pb.VMIdRequest(vm_id=vm_id))
            async with asyncio.timeout(DEADLINE_S):
                while after == before:
                    await asyncio.sleep(0.05)
                    after = IdentityFile.under(data_dir).load()
            assert await daemon.stop() == 0
        told = [*plane.registrations, *plane.heartbeats, *plane.syncs, *plane.changes, *plane.shutdowns]
    assert told == []
    assert before is not None
    assert after is not None
    assert (after.machine, after.addresses) == (before.machine, before.addresses)
    assert after.ends_at > before.ends_at
