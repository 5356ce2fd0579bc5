"""`limiquantix dev` for real: processes, a private libvirt daemon, a guest that boots, SIGKILL, and nothing left."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import socket
import time
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path

import grpc
import pytest
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from limiquantix.compute.v1 import vm_service_pb2 as api
from limiquantix.compute.v1.vm_pb2 import VmStatus
from limiquantix.compute.v1.vm_service_pb2_grpc import VMServiceStub
from tests.support.dev_cluster import (
    CallRefused,
    DevCluster,
    leftovers_of,
    processes_of,
    run_once,
    wait_for,
    words_of,
)
from tests.support.private_libvirt_host import skip_unless_private_libvirt

NOTICED_WITHIN_S = 3.0
"""What the product promises: a VM destroyed behind its back is seen within this time."""
STEP_COUNT = 20
"""Steps, of the length of the simplest question, by which a busy machine may be later."""

DISKS = [{"sizeGib": 20, "bus": "VIRTIO", "format": "QCOW2"}]
NICS = [{"bridge": "virbr0", "model": "VIRTIO"}]
PAUSED_AND_BACK = [VmStatus.RUNNING, VmStatus.PAUSED, VmStatus.RUNNING]


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DevCluster]:
    """One cluster on libvirt for the tests of this module; each leaves `hello` running."""
    directory = tmp_path_factory.mktemp("real") / "data"
    asyncio.run(skip_unless_private_libvirt(directory))
    with DevCluster(directory, "--hypervisor", "libvirt") as cluster:
        yield cluster
    assert leftovers_of(directory) == []


def running_qemu(cluster: DevCluster, name: str) -> int:
    """Process id of the QEMU of a VM."""
    (pid,) = (
        process.pid
        for process in processes_of(cluster.data_dir)
        if (words := words_of(process)) and "qemu-system" in words[0] and f"guest={name}-" in " ".join(words)
    )
    return pid


def noticed_within_s(cluster: DevCluster) -> float:
    """How long noticing may take on this machine as it is now."""
    began_s = time.monotonic()
    cluster.state("hello")
    cluster.virsh("version")
    return NOTICED_WITHIN_S + STEP_COUNT * (time.monotonic() - began_s)


def ensure_running(cluster: DevCluster) -> str:
    """Bring `hello` back to RUNNING and return its id."""
    vm = cluster.vm("hello")
    assert vm is not None
    if vm["status"]["state"] != "RUNNING":
        cluster.call("VMService/StartVM", id=vm["id"])
    return str(vm["id"])


def test_dev_on_libvirt_shows_what_the_guest_itself_said(real: DevCluster) -> None:
    said = re.search(r"^The guest says: (.*)$", real.output, re.MULTILINE)
    assert said, real.output
    assert "LIMIQUANTIX-GUEST READY hostname=hello" in said[1]
    assert "kernel=mock" not in said[1]
    assert re.search(r"^hello +\S+ +RUNNING +[0-9.]+ s +limiquantix vm console hello$", real.output, re.MULTILINE)


def test_services_are_described_to_who_develops_and_nothing_else_is_open(real: DevCluster) -> None:
    async def asked() -> tuple[list[str], grpc.StatusCode]:
        trust = grpc.ssl_channel_credentials((real.data_dir / "ca.pem").read_bytes())
        async with grpc.aio.secure_channel(real.grpc_address, trust) as channel:
            reflection = reflection_pb2_grpc.ServerReflectionStub(channel)
            request = reflection_pb2.ServerReflectionRequest(list_services="")
            answers = [answer async for answer in reflection.ServerReflectionInfo(iter([request]), timeout=30)]
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await VMServiceStub(channel).ListVMs(api.ListVMsRequest(), timeout=30)
            return [each.name for each in answers[0].list_services_response.service], refused.value.code()

    services, code = asyncio.run(asked())
    assert "limiquantix.compute.v1.VMService" in services
    assert code is grpc.StatusCode.UNAUTHENTICATED


def test_vm_that_runs_is_running_in_virsh_and_in_the_api(real: DevCluster) -> None:
    vm_id = ensure_running(real)
    assert real.virsh("domstate", vm_id) == "running"
    assert real.state("hello") == "RUNNING"


def test_vm_destroyed_behind_our_back_is_seen_as_stopped(real: DevCluster) -> None:
    vm_id = ensure_running(real)
    limit_s = noticed_within_s(real)
    real.virsh("destroy", vm_id)
    wait_for(lambda: real.state("hello") == "STOPPED", "the API noticing", limit_s)
    ensure_running(real)


def test_vm_whose_process_was_killed_is_seen_as_crashed_and_starts_again(real: DevCluster) -> None:
    ensure_running(real)
    limit_s = noticed_within_s(real)
    os.kill(running_qemu(real, "hello"), signal.SIGKILL)
    wait_for(lambda: real.state("hello") == "CRASHED", "the API noticing", limit_s)
    vm_id = ensure_running(real)
    assert real.virsh("domstate", vm_id) == "running"


@pytest.mark.parametrize("memory", [{"sizeMib": 128}, {"size_mib": 128}], ids=["camelCase", "snake_case"])
def test_documented_calls_work_as_written(real: DevCluster, memory: dict[str, int]) -> None:
    name = f"t-{next(iter(memory))}"
    vm = real.call(
        "VMService/CreateVM", name=name, spec={"cpu": {"cores": 1}, "memory": memory, "disks": DISKS, "nics": NICS}
    )
    images = real.data_dir / "node-1" / "images" / vm["id"]
    assert [path.suffix for path in images.iterdir()] == [".qcow2"]
    started = real.call("VMService/StartVM", id=vm["id"])
    assert started["status"]["state"] == "RUNNING"
    assert "virbr0" in real.virsh("domiflist", vm["id"])
    paused = real.call("VMService/PauseVM", id=vm["id"])
    assert paused["status"]["state"] == "PAUSED"
    assert real.virsh("domstate", vm["id"]) == "paused"
    real.call("VMService/ResumeVM", id=vm["id"])
    with pytest.raises(CallRefused) as refused:
        real.call("VMService/DeleteVM", id=vm["id"])
    assert refused.value.document["code"] == "failed_precondition"
    assert "RUNNING" in refused.value.document["message"]
    assert real.call("VMService/DeleteVM", id=vm["id"], force=True) == {}
    assert not images.exists()
    assert vm["id"] not in real.virsh("list", "--all", "--uuid")


def test_devices_of_a_running_vm_change_in_the_api_on_the_host_and_inside_the_guest(real: DevCluster) -> None:
    vm_id = ensure_running(real)

    def inside(script: str) -> str:
        """Run a script in the guest, once its agent is up."""

        def run() -> str | None:
            try:
                words = {"command": "/bin/sh", "args": ["-c", script], "waitForExit": True}
                answer = real.call("VMService/ExecuteScript", vmId=vm_id, **words)
            except CallRefused:
                return None
            return f"{answer.get('stdout', '')}."

        return wait_for(run, "the guest's agent", 100).rstrip(".\n")

    nics_before = inside("ls /sys/class/net").split()
    vm = real.call("VMService/AttachDisk", vmId=vm_id, disk={"sizeGib": 1})
    disk = vm["spec"]["disks"][-1]
    name = f"$(grep -l {disk['id'].replace('-', '')[:20]} /sys/block/vd*/serial | cut -d/ -f4)"
    wait_for(lambda: inside(f"echo {name}").startswith("vd"), "the disk in the guest")
    assert inside(f"cat /sys/block/{name}/size") == str(2**30 // 512)
    real.call("VMService/ResizeDisk", vmId=vm_id, diskId=disk["id"], newSizeGib=2)
    wait_for(lambda: inside(f"cat /sys/block/{name}/size") == str(2**31 // 512), "the larger disk in the guest")
    with pytest.raises(CallRefused) as smaller:
        real.call("VMService/ResizeDisk", vmId=vm_id, diskId=disk["id"], newSizeGib=1)
    assert smaller.value.document["code"] == "invalid_argument"
    vm = real.call("VMService/AttachNIC", vmId=vm_id, nic={})
    nic = vm["spec"]["nics"][-1]
    wait_for(lambda: nic["macAddress"] in inside("cat /sys/class/net/*/address"), "the card in the guest")

    real.call("VMService/DetachNIC", vmId=vm_id, nicId=nic["id"])
    vm = real.call("VMService/DetachDisk", vmId=vm_id, diskId=disk["id"])
    assert disk["id"] not in [each["id"] for each in vm["spec"].get("disks", [])]
    assert disk["id"] not in real.virsh("dumpxml", vm_id)
    assert disk["id"] not in real.virsh("dumpxml", "--inactive", vm_id)
    assert inside(f"echo {name}") == ""
    assert inside("ls /sys/class/net").split() == nics_before


def test_watches_and_events_tell_what_happens_to_a_real_guest(real: DevCluster) -> None:
    vm_id = ensure_running(real)

    def changes(seen: Sequence[int]) -> list[int]:
        return [state for state, _ in groupby(seen)]

    async def watched() -> tuple[list[int], list[int]]:
        async with real.channel() as channel, asyncio.timeout(60):
            vms = VMServiceStub(channel)
            one, all_vms = vms.WatchVM(api.WatchVMRequest(vm_id=vm_id)), vms.WatchVMs(api.WatchVMsRequest())
            states = [(await anext(aiter(one))).status.state]
            updates = [(await anext(aiter(all_vms))).vm.status.state]
            await vms.PauseVM(api.PauseVMRequest(id=vm_id))
            await vms.ResumeVM(api.ResumeVMRequest(id=vm_id))
            # What the guest says of itself may be told in between.
            while changes(states) != PAUSED_AND_BACK:
                states.append((await anext(aiter(one))).status.state)
            while changes(updates) != PAUSED_AND_BACK:
                updates.append((await anext(aiter(all_vms))).vm.status.state)
            return changes(states), changes(updates)

    states, updates = asyncio.run(watched())
    assert states == updates == PAUSED_AND_BACK
    told = real.call("VMService/ListVMEvents", vmId=vm_id)["events"]
    assert {"vm.paused", "vm.resumed"} <= {event["type"] for event in told}
    assert real.virsh("domstate", vm_id) == "running"


def test_list_nodes_answers_an_empty_request(real: DevCluster) -> None:
    (node,) = real.call("NodeService/ListNodes")["nodes"]
    assert node["status"]["phase"] == "READY"
    assert node["status"]["system"]["hypervisor"] == "libvirt"


def test_graceful_stop_is_obeyed_by_the_guest(real: DevCluster) -> None:
    vm = real.vm("hello")
    assert vm is not None
    vm_id = ensure_running(real)
    log_end = int(real.call("VMService/GetConsoleLog", vmId=vm_id, offset=2**40).get("nextOffset", 0))
    real.call("VMService/StopVM", id=vm_id, force=True)
    real.call("VMService/StartVM", id=vm_id)
    wait_for(
        lambda: int(real.call("VMService/GetConsoleLog", vmId=vm_id, offset=2**40)["nextOffset"]) > log_end + 50,
        "the guest booting again",
        90,
    )
    stopped = real.call("VMService/StopVM", id=vm_id, timeoutSec=55)
    assert stopped["status"]["state"] == "STOPPED"
    ensure_running(real)


def test_node_daemon_killed_leaves_vms_alone_and_knows_them_again(real: DevCluster) -> None:
    vm_id = ensure_running(real)
    qemu = running_qemu(real, "hello")
    killed = real.kill_daemon("nodedaemon")
    wait_for(lambda: not words_of(killed), "the daemon's end")
    real.virsh("suspend", vm_id)  # nobody is there to see it
    wait_for(lambda: real.state("hello") == "PAUSED", "the restarted daemon telling the truth", 60)
    assert running_qemu(real, "hello") == qemu
    assert real.call("VMService/ResumeVM", id=vm_id)["status"]["state"] == "RUNNING"
    assert running_qemu(real, "hello") == qemu


def test_control_plane_killed_leaves_vms_alone_and_learns_what_it_missed(real: DevCluster) -> None:
    vm_id = ensure_running(real)
    qemu = running_qemu(real, "hello")
    real.kill_daemon("controlplane")
    real.virsh("suspend", vm_id)
    wait_for(lambda: real.state("hello") == "PAUSED", "the restarted control plane learning the truth", 60)
    assert running_qemu(real, "hello") == qemu
    assert real.call("VMService/ResumeVM", id=vm_id)["status"]["state"] == "RUNNING"


def test_dev_run_again_finds_its_vm_and_leaves_nothing_when_killed(tmp_path: Path) -> None:
    data_dir = tmp_path / "data"
    first = run_once(data_dir, "--hypervisor", "mock", "--nodes", "3")
    assert first.returncode == 0, first.stdout
    assert "creating VM hello" in first.stdout
    assert leftovers_of(data_dir) == []
    with DevCluster(data_dir, "--hypervisor", "mock") as cluster:
        assert "creating VM hello" not in cluster.output
        assert cluster.state("hello") == "RUNNING"
        cluster.process.kill()
        cluster.process.wait()
        wait_for(lambda: not processes_of(data_dir), "the end of everything it started")


def test_dev_on_a_data_directory_in_use_is_refused(tmp_path: Path) -> None:
    with DevCluster(tmp_path / "data", "--hypervisor", "mock", "--no-demo"):
        second = run_once(tmp_path / "data", "--hypervisor", "mock")
    assert second.returncode == 1
    assert "another `limiquantix dev` uses" in second.stdout


def test_dev_on_a_port_in_use_is_refused_naming_the_flag(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        result = run_once(tmp_path / "data", "--hypervisor", "mock", "--http-port", port)
    assert result.returncode == 1
    assert f"port {port} is taken" in result.stdout
    assert "--http-port" in result.stdout
