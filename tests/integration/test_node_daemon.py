"""The node daemon as a real process, against a control plane that only listens."""

from __future__ import annotations

import asyncio
import json
import urllib.request
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.empty_pb2 import Empty
from grpc_health.v1 import health_pb2, health_pb2_grpc

from limiquantix.compute.v1 import node_service_pb2 as ns
from limiquantix.errors import Code
from limiquantix.node.v1 import node_daemon_pb2 as pb
from tests.support import power_button_guest
from tests.support.fake_control_plane import FakeControlPlane, fake_control_plane
from tests.support.node_daemon_process import DEADLINE_S, client, command, environment, node_daemon, refusal
from tests.support.own_cluster import admit, daemon_channel
from tests.support.private_libvirt_host import private_libvirt, skip_unless_private_libvirt, virsh

HEALTHY = health_pb2.HealthCheckResponse.SERVING


@pytest.fixture
async def control_plane() -> AsyncIterator[FakeControlPlane]:
    async with fake_control_plane() as fake:
        yield fake


def create_request(*, memory_mib: int = 64, disk_count: int = 1) -> pb.CreateVMOnNodeRequest:
    spec = pb.VMSpec(
        cpu_cores=1,
        memory_mib=memory_mib,
        disks=[pb.DiskSpec(id=str(uuid.uuid4()), size_gib=1) for _ in range(disk_count)],
        nics=[pb.NicSpec(id=str(uuid.uuid4()))],
    )
    return pb.CreateVMOnNodeRequest(vm_id=str(uuid.uuid4()), name="web", spec=spec)


def on(vm_id: str) -> pb.VMIdRequest:
    return pb.VMIdRequest(vm_id=vm_id)


async def test_node_daemon_at_start_registers_and_beats_and_syncs(
    control_plane: FakeControlPlane, tmp_path: Path
) -> None:
    async with node_daemon(tmp_path, control_plane.address) as daemon:
        await control_plane.until(lambda: len(control_plane.heartbeats) >= 2 and bool(control_plane.syncs))
        registration = control_plane.registrations[0]
        assert registration.hostname == "test-host"
        assert registration.agent_endpoint == daemon.address
        assert registration.labels == {"rack": "r1"}
        assert registration.role.compute
        assert registration.cpu_info.total_threads == 16
        assert registration.memory_info.total_bytes == 64 * 2**30
        assert registration.system.hypervisor == "mock"
        assert registration.system.kernel_version
        assert registration.network_devices
        beat = control_plane.heartbeats[-1]
        assert beat.node_id == daemon.node_id
        assert beat.memory_total_mib == 64 * 1024
        assert beat.disk_total_bytes > 0
        assert beat.state_hash == control_plane.syncs[0].state_hash
        async with client(daemon) as node:
            assert (await node.GetNodeInfo(Empty())).node_id == beat.node_id


async def test_vm_life_over_grpc_is_reported_with_growing_counts(
    control_plane: FakeControlPlane, tmp_path: Path
) -> None:
    async with node_daemon(tmp_path, control_plane.address) as daemon, client(daemon) as node:
        request = create_request()
        vm_id = request.vm_id
        assert (await node.CreateVM(request)).created
        assert not (await node.CreateVM(request)).created
        image = tmp_path / "images" / vm_id / f"{request.spec.disks[0].id}.qcow2"
        assert image.exists()
        await node.StartVM(on(vm_id))
        await control_plane.until(
            lambda: any(vm.state == ns.VM_POWER_STATE_RUNNING for vm in control_plane.states_of(vm_id))
        )
        status = await node.GetVMStatus(on(vm_id))
        assert status.state == pb.POWER_STATE_RUNNING
        assert status.state_change_count == control_plane.states_of(vm_id)[-1].state_change_count
        await node.PauseVM(on(vm_id))
        await node.ResumeVM(on(vm_id))
        await node.RebootVM(on(vm_id))
        await node.StopVM(pb.StopVMRequest(vm_id=vm_id, timeout_seconds=60))
        stopped = await node.GetVMStatus(on(vm_id))
        assert stopped.state == pb.POWER_STATE_STOPPED
        assert stopped.state_change_count > status.state_change_count
        await control_plane.until(
            lambda: control_plane.states_of(vm_id)[-1].state_change_count >= stopped.state_change_count
        )
        await node.DeleteVM(on(vm_id))
        await node.DeleteVM(on(vm_id))
        await control_plane.until(lambda: control_plane.changes[-1].event_type == ns.VM_CHANGE_DELETED)
        counts = [vm.state_change_count for vm in control_plane.states_of(vm_id)]
        assert counts == sorted(counts)
        assert not image.parent.exists()


async def test_node_daemon_killed_and_restarted_knows_its_vms_and_counts_on(
    control_plane: FakeControlPlane, tmp_path: Path
) -> None:
    request, idle = create_request(), create_request()
    async with node_daemon(tmp_path, control_plane.address) as daemon, client(daemon) as node:
        await node.CreateVM(request)
        await node.CreateVM(idle)
        await node.StartVM(on(request.vm_id))
        before = await node.GetVMStatus(on(request.vm_id))
        await daemon.kill()
    syncs_before = len(control_plane.syncs)
    async with node_daemon(tmp_path, control_plane.address) as daemon, client(daemon) as node:
        await control_plane.until(lambda: len(control_plane.syncs) > syncs_before)
        assert len({r.hostname for r in control_plane.registrations}) == 1
        assert len({sync.node_id for sync in control_plane.syncs}) == 1
        reported = {vm.id: vm for vm in control_plane.syncs[-1].vms}
        assert reported[request.vm_id].state == ns.VM_POWER_STATE_RUNNING
        assert reported[idle.vm_id].state == ns.VM_POWER_STATE_STOPPED
        assert reported[request.vm_id].state_change_count > before.state_change_count
        after = await node.GetVMStatus(on(request.vm_id))
        assert after.state == pb.POWER_STATE_RUNNING
        assert after.started_at == before.started_at
        await node.StopVM(pb.StopVMRequest(vm_id=request.vm_id))


async def test_change_while_control_plane_fails_is_reported_when_it_answers_again(
    control_plane: FakeControlPlane, tmp_path: Path
) -> None:
    async with node_daemon(tmp_path, control_plane.address) as daemon, client(daemon) as node:
        await control_plane.until(lambda: bool(control_plane.syncs))
        control_plane.failing["NotifyVMChange"] = grpc.StatusCode.UNAVAILABLE
        request = create_request(disk_count=0)
        await node.CreateVM(request)
        await node.StartVM(on(request.vm_id))
        await control_plane.until(lambda: len(control_plane.changes) >= 2)
        control_plane.failing.clear()
        refused_count = len(control_plane.changes)
        await control_plane.until(lambda: len(control_plane.changes) > refused_count)
        assert control_plane.changes[-1].vm.state == ns.VM_POWER_STATE_RUNNING


async def test_control_plane_that_forgot_the_node_gets_a_new_registration(
    control_plane: FakeControlPlane, tmp_path: Path
) -> None:
    async with node_daemon(tmp_path, control_plane.address):
        await control_plane.until(lambda: bool(control_plane.heartbeats))
        control_plane.failing["UpdateHeartbeat"] = grpc.StatusCode.NOT_FOUND
        await control_plane.until(lambda: len(control_plane.registrations) >= 2)


async def test_three_failed_heartbeats_lead_to_a_new_registration(
    control_plane: FakeControlPlane, tmp_path: Path
) -> None:
    async with node_daemon(tmp_path, control_plane.address):
        await control_plane.until(lambda: bool(control_plane.heartbeats))
        control_plane.failing["UpdateHeartbeat"] = grpc.StatusCode.UNAVAILABLE
        beats = len(control_plane.heartbeats)
        await control_plane.until(lambda: len(control_plane.registrations) >= 2)
        assert len(control_plane.heartbeats) - beats == 3


async def test_heartbeat_answer_asking_for_a_full_sync_gets_one(
    control_plane: FakeControlPlane, tmp_path: Path
) -> None:
    control_plane.heartbeat_answer = ns.UpdateHeartbeatResponse(acknowledged=True, request_full_sync=True)
    async with node_daemon(tmp_path, control_plane.address):
        await control_plane.until(lambda: len(control_plane.syncs) >= 2)


async def test_create_the_hypervisor_refuses_leaves_no_file_and_no_vm(tmp_path: Path) -> None:
    async with node_daemon(tmp_path, "") as daemon, client(daemon) as node:
        request = create_request(memory_mib=2**20, disk_count=2)
        error = await refusal(node.CreateVM(request))
        assert (error.code, error.reason) == (Code.FAILED_PRECONDITION, "HYPERVISOR_REFUSED")
        assert error.metadata["vm_id"] == request.vm_id
        assert list((tmp_path / "images").iterdir()) == []
        assert list((await node.ListVMs(Empty())).vms) == []


async def test_fault_19_bad_paths_are_all_named_at_once_without_telling_of_the_host(tmp_path: Path) -> None:
    async with node_daemon(tmp_path, "") as daemon, client(daemon) as node:
        request = create_request()
        request.spec.disks[0].path = "/etc/passwd"
        request.spec.cdroms.add(id=str(uuid.uuid4()), iso_path="/root/none.iso")
        request.spec.direct_boot.kernel_path = "/proc/self/environ"
        error = await refusal(node.CreateVM(request))
        assert error.code is Code.INVALID_ARGUMENT
        assert {v.field for v in error.violations} == {
            "spec.disks[0].path",
            "spec.cdroms[0].iso_path",
            "spec.direct_boot.kernel_path",
        }
        assert len({v.description for v in error.violations}) == 1
        assert "/" not in error.violations[0].description


async def test_unknown_vm_and_wrong_state_and_unfilled_method_are_told_apart(tmp_path: Path) -> None:
    async with node_daemon(tmp_path, "") as daemon, client(daemon) as node:
        assert (await refusal(node.StartVM(on(str(uuid.uuid4()))))).reason == "VM_NOT_FOUND"
        request = create_request(disk_count=0)
        await node.CreateVM(request)
        wrong = await refusal(node.PauseVM(on(request.vm_id)))
        assert (wrong.code, wrong.reason, wrong.metadata["state"]) == (
            Code.FAILED_PRECONDITION,
            "VM_STATE_FORBIDS",
            "stopped",
        )
        assert (await refusal(node.GetOVSStatus(Empty()))).code is Code.UNIMPLEMENTED
        await node.StartVM(on(request.vm_id))
        assert (await refusal(node.DeleteVM(on(request.vm_id)))).reason == "VM_STATE_FORBIDS"
        console = await refusal(node.GetConsole(on(request.vm_id)))
        assert console.reason == "CONSOLE_ABSENT"


async def test_reconfigure_grows_disks_and_adds_new_ones(tmp_path: Path) -> None:
    async with node_daemon(tmp_path, "") as daemon, client(daemon) as node:
        request = create_request()
        await node.CreateVM(request)
        request.spec.disks[0].size_gib = 2
        request.spec.disks.add(id=str(uuid.uuid4()), size_gib=1)
        change = pb.ReconfigureVMRequest(vm_id=request.vm_id, name="renamed", spec=request.spec)
        await node.ReconfigureVM(change)
        await node.ReconfigureVM(change)
        assert (await node.GetVMStatus(on(request.vm_id))).name == "renamed"
        assert len(list((tmp_path / "images" / request.vm_id).iterdir())) == 2
        request.name = "renamed"
        assert not (await node.CreateVM(request)).created


async def test_health_reflection_and_metrics_answer(tmp_path: Path) -> None:
    async with node_daemon(tmp_path, "") as daemon, client(daemon) as node:
        health = await node.HealthCheck(pb.HealthCheckRequest())
        assert (health.healthy, health.hypervisor) == (True, "mock")
        async with daemon_channel(daemon.address, daemon.node_id) as channel:
            answer = await health_pb2_grpc.HealthStub(channel).Check(
                health_pb2.HealthCheckRequest(service="limiquantix.node.v1.NodeDaemonService")
            )
        assert answer.status == HEALTHY
        url = f"http://{daemon.listening['metrics_address']}/metrics"
        text = await asyncio.to_thread(lambda: urllib.request.urlopen(url, timeout=60).read().decode())
        method = "/limiquantix.node.v1.NodeDaemonService/HealthCheck"
        assert f'limiquantix_rpc_calls_total{{code="OK",method="{method}"}} 1.0' in text


async def test_sigterm_ends_the_daemon_with_status_0_and_vms_stay(tmp_path: Path) -> None:
    request = create_request(disk_count=0)
    async with node_daemon(tmp_path, "") as daemon, client(daemon) as node:
        await node.CreateVM(request)
        await node.StartVM(on(request.vm_id))
        assert await daemon.stop() == 0
    async with node_daemon(tmp_path, "") as daemon, client(daemon) as node:
        assert (await node.GetVMStatus(on(request.vm_id))).state == pb.POWER_STATE_RUNNING


async def run_to_end(*flags: str) -> tuple[int | None, str]:
    process = await asyncio.create_subprocess_exec(*command(*flags), stderr=asyncio.subprocess.PIPE, env=environment())
    async with asyncio.timeout(DEADLINE_S):
        _, complaint = await process.communicate()
    return process.returncode, complaint.decode()


async def test_missing_named_config_file_is_an_error_without_traceback(tmp_path: Path) -> None:
    status, complaint = await run_to_end("--config", str(tmp_path / "none.yaml"), "--dev")
    assert status == 1
    assert "does not exist" in complaint
    assert "Traceback" not in complaint


async def test_port_in_use_is_an_error_that_names_it(tmp_path: Path) -> None:
    async with node_daemon(tmp_path, "") as daemon:
        second = tmp_path / "second"
        admit(second)
        config = {"node": {"data_dir": str(second)}, "hypervisor": {"storage_path": str(second)}}
        path = second / "node.yaml"
        path.write_text(json.dumps(config | {"server": {"metrics_port": 0}}))
        status, complaint = await run_to_end("--config", str(path), "--dev", "--listen", daemon.address)
        assert status == 1
        assert daemon.address in complaint
        assert "Traceback" not in complaint


async def console_log_with(node: Any, vm_id: str, text: bytes) -> bytes:
    """Read the console log until the guest has printed `text`."""
    async with asyncio.timeout(DEADLINE_S):
        while True:
            log = (await node.GetConsoleLog(pb.GetConsoleLogRequest(vm_id=vm_id))).data
            if text in log:
                return bytes(log)
            await asyncio.sleep(0.05)


async def test_guest_on_libvirt_boots_survives_kill_9_and_is_reported_when_destroyed_by_another_tool(
    control_plane: FakeControlPlane, tmp_path: Path
) -> None:
    await skip_unless_private_libvirt(tmp_path)
    pytest.importorskip("libvirt")
    (tmp_path / "images").mkdir()
    power_button_guest.write_disk(tmp_path / "images" / "guest.raw")
    request = create_request()
    vm_id = request.vm_id
    request.spec.disks.add(id=str(uuid.uuid4()), path="guest.raw", format=pb.DISK_FORMAT_RAW, boot_index=1)
    async with private_libvirt(tmp_path / "libvirt") as libvirt:
        backend = {"backend": "libvirt", "libvirt_uri": libvirt.uri, "accelerator": "tcg"}
        async with (
            node_daemon(tmp_path, control_plane.address, hypervisor=backend) as daemon,
            client(daemon) as node,
        ):
            await control_plane.until(lambda: bool(control_plane.syncs))
            assert control_plane.registrations[0].system.hypervisor_version
            assert (await node.CreateVM(request)).created
            assert not (await node.CreateVM(request)).created
            await node.StartVM(on(vm_id))
            await console_log_with(node, vm_id, power_button_guest.HELLO)
            before = await node.GetVMStatus(on(vm_id))
            assert before.state == pb.POWER_STATE_RUNNING
            await daemon.kill()
        async with (
            node_daemon(tmp_path, control_plane.address, hypervisor=backend) as daemon,
            client(daemon) as node,
        ):
            after = await node.GetVMStatus(on(vm_id))
            assert after.state == pb.POWER_STATE_RUNNING
            assert after.state_change_count > before.state_change_count
            assert after.resource_usage.cpu_time_ns >= before.resource_usage.cpu_time_ns
            await control_plane.until(lambda: len(control_plane.syncs) >= 2)
            await virsh(libvirt.uri, "destroy", vm_id)
            await control_plane.until(
                lambda: any(vm.state == ns.VM_POWER_STATE_STOPPED for vm in control_plane.states_of(vm_id)[-1:])
            )
            await node.StartVM(on(vm_id))
            await console_log_with(node, vm_id, power_button_guest.HELLO)
            await node.StopVM(pb.StopVMRequest(vm_id=vm_id, timeout_seconds=60))
            await node.DeleteVM(on(vm_id))
            assert await virsh(libvirt.uri, "list", "--all", "--name") == ""
            assert not (tmp_path / "images" / vm_id).exists()
            assert (tmp_path / "images" / "guest.raw").exists()


FOREIGN = """
<domain type='qemu'>
  <name>legacy</name>
  <uuid>{vm_id}</uuid>
  <memory unit='MiB'>24</memory>
  <vcpu>2</vcpu>
  <os><type arch='x86_64' machine='q35'>hvm</type></os>
  <features><acpi/></features>
  <devices>
    <disk type='file' device='disk'>
      <driver name='qemu' type='raw'/><source file='{disk}'/><target dev='vda' bus='virtio'/>
    </disk>
  </devices>
</domain>
"""


async def test_domain_of_another_tool_is_reported_and_obeys_and_is_deleted_without_its_disk(
    control_plane: FakeControlPlane, tmp_path: Path
) -> None:
    await skip_unless_private_libvirt(tmp_path)
    pytest.importorskip("libvirt")
    vm_id = str(uuid.uuid4())
    disk = power_button_guest.write_disk(tmp_path / "theirs.raw", deaf=True)
    document = tmp_path / "theirs.xml"
    document.write_text(FOREIGN.format(vm_id=vm_id, disk=disk))
    async with private_libvirt(tmp_path / "libvirt") as libvirt:
        backend = {"backend": "libvirt", "libvirt_uri": libvirt.uri, "accelerator": "tcg"}
        async with (
            node_daemon(tmp_path, control_plane.address, hypervisor=backend) as daemon,
            client(daemon) as node,
        ):
            await control_plane.until(lambda: bool(control_plane.syncs))
            await virsh(libvirt.uri, "define", str(document))
            await control_plane.until(lambda: bool(control_plane.states_of(vm_id)))
            told = control_plane.states_of(vm_id)[-1]
            assert (told.name, told.state, told.is_managed) == ("legacy", ns.VM_POWER_STATE_STOPPED, False)
            assert (told.vcpu_count, told.memory_mib, told.generation) == (2, 24, 0)

            await node.StartVM(pb.VMIdRequest(vm_id=vm_id, generation=1))
            stopping = asyncio.ensure_future(
                node.StopVM(pb.StopVMRequest(vm_id=vm_id, timeout_seconds=600, generation=2))
            )
            await asyncio.wait([stopping], timeout=0.5)
            await node.ForceStopVM(pb.VMIdRequest(vm_id=vm_id, generation=3))
            assert (await refusal(stopping)).reason == "STALE_GENERATION"
            assert (await refusal(node.StartVM(pb.VMIdRequest(vm_id=vm_id, generation=2)))).code is Code.ABORTED
            await node.StartVM(pb.VMIdRequest(vm_id=vm_id, generation=4))
            running = pb.VMIdRequest(vm_id=vm_id, generation=5)
            assert (await refusal(node.DeleteVM(running))).reason == "VM_STATE_FORBIDS"
            await node.ForceStopVM(running)
            spec = pb.VMSpec(cpu_cores=1, memory_mib=16)
            change = pb.ReconfigureVMRequest(vm_id=vm_id, name="ours", spec=spec, generation=5)
            assert (await refusal(node.ReconfigureVM(change))).reason == "VM_NOT_MANAGED"
            await node.DeleteVM(running)
            await control_plane.until(lambda: control_plane.changes[-1].event_type == ns.VM_CHANGE_DELETED)
            assert control_plane.changes[-1].vm.generation == 5
            assert await virsh(libvirt.uri, "list", "--all", "--uuid") == ""
            assert disk.exists()

            await virsh(libvirt.uri, "create", str(document))  # as one that has no definition
            await control_plane.until(lambda: control_plane.states_of(vm_id)[-1].state == ns.VM_POWER_STATE_RUNNING)
            await virsh(libvirt.uri, "destroy", vm_id)
            await control_plane.until(lambda: control_plane.changes[-1].event_type == ns.VM_CHANGE_DELETED)
            counts = [vm.state_change_count for vm in control_plane.states_of(vm_id)]
            assert counts == sorted(counts)
