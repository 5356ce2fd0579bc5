"""A node daemon, as a real process, whose machine goes down or does not; on the mock."""

from __future__ import annotations

import json
import uuid
from pathlib import Path

import pytest

from limiquantix.compute.v1.node_service_pb2 import AnnounceShutdownRequest
from limiquantix.node.v1 import node_daemon_pb2 as pb
from tests.support.fake_control_plane import fake_control_plane
from tests.support.node_daemon_process import client, node_daemon

Kind = AnnounceShutdownRequest.Kind


@pytest.mark.parametrize("goes_down", [True, False], ids=["machine goes down", "daemon is restarted"])
async def test_vms_end_with_the_machine_and_not_with_the_daemon(tmp_path: Path, goes_down: bool) -> None:
    marker = tmp_path / "going-down"
    vm_id = str(uuid.uuid4())
    async with fake_control_plane() as plane:
        async with (
            node_daemon(tmp_path, plane.address, shutdown={"marker_path": str(marker), "vm_stop_secs": 30}) as daemon,
            client(daemon) as stub,
        ):
            await plane.until(lambda: len(plane.heartbeats) > 0)
            spec = pb.VMSpec(cpu_cores=1, memory_mib=64)
            await stub.CreateVM(pb.CreateVMOnNodeRequest(vm_id=vm_id, name="web", spec=spec))
            await stub.StartVM(pb.VMIdRequest(vm_id=vm_id))
            if goes_down:
                marker.write_text("reboot")
            assert await daemon.stop() == 0
        told = [(request.kind, request.all_vms_ended) for request in plane.shutdowns]
        going = [(Kind.REBOOT, False), (Kind.REBOOT, True)] if goes_down else []
        assert told == [(Kind.CANCELLED, False), *going]  # first, since a daemon that runs goes nowhere
    (vm,) = json.loads((tmp_path / "data" / "mock-vms.json").read_text())["vms"]
    assert vm["state"] == ("stopped" if goes_down else "running")
