"""What is done about a guest, a QEMU or a storage that dies while its host lives: on real libvirt and real guests.

Takes minutes, so it runs with `LIMIQUANTIX_HA=all` (`make test-ha`) only; a crashed QEMU is brought back always.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest

from controlplane.cli.dev.guest_image import build_guest_image
from hypervisor.processes import VmProcess, find_vm_processes, is_alive, kill_process
from limiquantix.compute.v1 import node_service_pb2 as node_api
from limiquantix.compute.v1 import vm_service_pb2 as api
from limiquantix.compute.v1.alert_service_pb2 import Alert, ListAlertsRequest
from limiquantix.compute.v1.alert_service_pb2_grpc import AlertServiceStub
from limiquantix.compute.v1.operation_pb2 import Operation
from limiquantix.compute.v1.operation_service_pb2 import ListOperationsRequest
from limiquantix.compute.v1.vm_pb2 import (
    BootConfig,
    CpuConfig,
    DirectKernelBoot,
    DiskDevice,
    HaPolicy,
    MemoryConfig,
    VirtualMachine,
    VmSpec,
    VmStatus,
)
from tests.support.libvirt_cluster import DEADLINE_S, LibvirtCluster, libvirt_cluster
from tests.support.libvirt_hosts import migration_hosts
from tests.support.libvirt_nodes import LibvirtNode
from tests.support.private_libvirt_host import TEST_CACHE_DIR, eventually, leave_out

HOST = "host-a"
BY_ITSELF = "system:reconcile"
GUEST_TIMEOUT_S = 5
PATIENCE_S = 90.0
"""A guest's silence is noticed by a look every 10 s, on a machine that is busy."""

takes_minutes = pytest.mark.skipif(
    os.environ.get("LIMIQUANTIX_HA", "") not in ("all", "defaults"), reason="takes minutes; LIMIQUANTIX_HA=all runs it"
)
pytestmark = pytest.mark.timeout(300)


@dataclass
class Site:
    """A control plane and one host."""

    cluster: LibvirtCluster
    channel: grpc.aio.Channel
    storage: Path

    @property
    def node(self) -> LibvirtNode:
        return self.cluster.nodes[HOST]

    async def create(self, name: str, spec: VmSpec) -> VirtualMachine:
        request = api.CreateVMRequest(name=name, spec=spec, node_id=self.cluster.node_ids[HOST], start_on_create=True)
        return await self.cluster.plane.vms.CreateVM(request, timeout=DEADLINE_S)

    async def state(self, vm: VirtualMachine) -> VmStatus.PowerState.ValueType:
        return (await self.cluster.get(vm)).status.state

    def qemu(self, vm: VirtualMachine) -> VmProcess | None:
        return find_vm_processes(str(self.node.host.pid_dir), {vm.id}).get(vm.id)

    def lines(self, vm: VirtualMachine) -> int:
        """How many whole lines its guest has written."""
        return len(self.node.console(vm.id))

    async def counts_on(self, vm: VirtualMachine) -> None:
        before = self.lines(vm)

        async def look() -> bool | None:
            return True if self.lines(vm) > before + 2 else None

        await eventually(look, f"{vm.name} counting on", PATIENCE_S)

    async def operations(self, vm: VirtualMachine, kind: str) -> list[Operation]:
        wanted = ListOperationsRequest(resource_id=vm.id, kinds=[kind])
        return list((await self.cluster.plane.operations.ListOperations(wanted, timeout=DEADLINE_S)).operations)

    async def alert(self, kind: str, resource_id: str, *, is_open: bool = True) -> Alert:
        """Wait until an alert is there, or is over."""
        stub = AlertServiceStub(self.channel)

        async def look() -> Alert | None:
            request = ListAlertsRequest(include_resolved=True, page_size=100)
            found = await stub.ListAlerts(request, timeout=DEADLINE_S)
            for alert in found.alerts:
                if (alert.kind, alert.resource_id) == (kind, resource_id):
                    return alert if alert.HasField("resolved_at") is not is_open else None
            return None

        return await eventually(look, f"{kind} being {'open' if is_open else 'over'}", PATIENCE_S)


@asynccontextmanager
async def site_on(directory: Path, storage: Path) -> AsyncIterator[Site]:
    """Run one on a storage that is there already, or is made."""
    async with migration_hosts(directory / "hosts", 1) as (host,):
        settings = {"drs": {"interval_s": 1.0}}
        async with (
            libvirt_cluster({HOST: host}, {HOST: storage}, directory, **settings) as cluster,
            cluster.plane.entry.channel() as channel,
        ):
            yield Site(cluster, channel, storage)


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    async with site_on(tmp_path, tmp_path / "images") as running:
        yield running


def counter(**policy: Any) -> VmSpec:
    """A guest that counts and writes each number to its disk."""
    disk = DiskDevice(source_file="writing.raw", source_format=DiskDevice.SOURCE_FORMAT_RAW)
    spec = VmSpec(cpu=CpuConfig(cores=1), memory=MemoryConfig(size_mib=16), disks=[disk])
    if policy:
        spec.ha_policy.CopyFrom(HaPolicy(**policy))
    return spec


async def linux(storage: Path, **policy: Any) -> VmSpec:
    """A small Linux with a guest agent."""
    image = await asyncio.to_thread(build_guest_image, TEST_CACHE_DIR / "guest", print)
    for file, name in ((image.kernel, "kernel"), (image.initrd, "initrd")):
        await asyncio.to_thread(shutil.copy, file, storage / name)
    boot = DirectKernelBoot(
        kernel_path="kernel", initrd_path="initrd", cmdline=f"{image.kernel_arguments} hostname=linux"
    )
    return VmSpec(
        cpu=CpuConfig(cores=1),
        memory=MemoryConfig(size_mib=128),
        boot=BootConfig(direct_boot=boot),
        ha_policy=HaPolicy(**policy),
    )


# -- a QEMU that dies


async def test_crashed_qemu_is_started_again_where_it_was_if_its_policy_says_so(site: Site) -> None:
    kept = await site.create("kept", counter(auto_restart=True, condition=HaPolicy.ON_FAILURE))
    left = await site.create("left", counter())
    for vm in (kept, left):
        await site.counts_on(vm)
    processes = {vm.id: site.qemu(vm) for vm in (kept, left)}
    for process in processes.values():
        assert process is not None
        assert kill_process(process)

    async def runs_again() -> VmProcess | None:
        found = site.qemu(kept)
        is_running = await site.state(kept) == VmStatus.RUNNING
        return found if found is not None and found != processes[kept.id] and is_running else None

    again = await eventually(runs_again, "the restart", PATIENCE_S)
    await site.counts_on(kept)
    await site.cluster.until(left, VmStatus.CRASHED)
    assert site.qemu(left) is None
    starts = await site.operations(kept, "vm.start")
    assert [each.state for each in starts] == [Operation.SUCCEEDED]
    assert starts[0].principal == BY_ITSELF
    assert await site.operations(left, "vm.start") == []
    assert is_alive(again)


# -- a guest that hangs


async def agent_answers(site: Site, vm: VirtualMachine) -> bool | None:
    try:
        found = await site.cluster.plane.vms.PingAgent(api.PingAgentRequest(vm_id=vm.id), timeout=DEADLINE_S)
    except grpc.aio.AioRpcError:  # whatever it is, it does not answer
        return None
    return True if found.connected else None


async def in_guest(site: Site, vm: VirtualMachine, script: str) -> str:
    request = api.ExecuteScriptRequest(
        vm_id=vm.id, command="/bin/sh", args=["-c", script], wait_for_exit=True, timeout_seconds=20
    )
    answer = await site.cluster.plane.vms.ExecuteScript(request, timeout=DEADLINE_S)
    assert answer.exit_code == 0, answer
    return answer.stdout.strip()


async def until_agent_answers(site: Site, vm: VirtualMachine) -> None:
    await eventually(lambda: agent_answers(site, vm), "the guest's agent", PATIENCE_S)


BOOT_ID = "cat /proc/sys/kernel/random/boot_id"
HANG_AGENT = "(sleep 1; kill -STOP $(pidof qemu-ga)) >/dev/null 2>&1 &"
"""As a guest whose system hangs: the agent's channel stays open, and nothing answers."""


@takes_minutes
async def test_guest_whose_agent_hangs_is_reset_under_its_policy_and_no_other_is(site: Site) -> None:
    reset = {"guest_action": HaPolicy.GUEST_ACTION_RESET, "guest_timeout_sec": GUEST_TIMEOUT_S}
    alert_only = {"guest_action": HaPolicy.GUEST_ACTION_ALERT, "guest_timeout_sec": GUEST_TIMEOUT_S}
    guests = {
        "reset": await site.create("reset", await linux(site.storage, **reset)),
        "told": await site.create("told", await linux(site.storage, **alert_only)),
        "mute": await site.create("mute", counter(**reset)),  # which has no agent, and none can fall silent
    }
    boots = {}
    for name in ("reset", "told"):
        await until_agent_answers(site, guests[name])
        boots[name] = await in_guest(site, guests[name], BOOT_ID)
    processes = {name: site.qemu(vm) for name, vm in guests.items()}

    async def is_known() -> bool | None:
        found = [await site.cluster.get(guests[name]) for name in boots]
        return True if all(vm.status.guest_info.agent_version for vm in found) else None

    await eventually(is_known, "the agents being heard", PATIENCE_S)
    for name in boots:
        await in_guest(site, guests[name], HANG_AGENT)

    alert = await site.alert("ha.guest_silent", guests["told"].id)
    assert "told only" in alert.message

    async def was_reset() -> str | None:
        if not await agent_answers(site, guests["reset"]):
            return None
        boot = await in_guest(site, guests["reset"], BOOT_ID)
        return boot if boot != boots["reset"] else None

    await eventually(was_reset, "the reset", PATIENCE_S)
    (operation,) = await site.operations(guests["reset"], "vm.reboot")
    assert (operation.state, operation.principal) == (Operation.SUCCEEDED, BY_ITSELF)
    for name in ("told", "mute"):
        assert await site.operations(guests[name], "vm.reboot") == []
        assert site.qemu(guests[name]) == processes[name]
    await site.alert("ha.guest_silent", guests["reset"].id, is_open=False)


# -- a storage that is gone


@dataclass
class FailingStorage:
    """A file system that a process of ours serves, and which hangs or dies with that."""

    mount_point: Path
    process: subprocess.Popen[bytes]

    def hang(self) -> None:
        self.process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        self.process.send_signal(signal.SIGCONT)

    def die(self) -> None:
        self.process.kill()
        self.process.wait()

    def let_go(self) -> None:
        """End it, also for those who wait for it."""
        self.go_on()
        self.die()
        subprocess.run([_tool("umount"), "--lazy", str(self.mount_point)], check=False)


def _tool(name: str) -> str:
    path = shutil.which(name, path="/usr/sbin:/sbin:/usr/bin:/bin")
    if path is None:
        leave_out(f"{name}, for a file system that fails, is not installed")
    return str(path)


def _mount(directory: Path) -> FailingStorage:
    """Make a file system in a file and have it served. Blocks."""
    image, mount_point = directory / "ext4.img", directory / "mounted"
    mount_point.mkdir()
    with image.open("wb") as file:
        file.truncate(256 * 2**20)
    subprocess.run([_tool("mke2fs"), "-q", "-t", "ext4", str(image)], check=True)
    words = [_tool("fuse2fs"), str(image), str(mount_point), "-f", "-o", "fakeroot,allow_other"]
    with (directory / "fuse.log").open("wb") as log:
        return FailingStorage(mount_point, subprocess.Popen(words, stdout=log, stderr=log))


@asynccontextmanager
async def failing_storage(directory: Path) -> AsyncIterator[FailingStorage]:
    """Mount one; it is there for hosts that are made afterwards."""
    storage = await asyncio.to_thread(_mount, directory)

    async def is_mounted() -> bool | None:
        assert storage.process.poll() is None, (directory / "fuse.log").read_text()
        return True if await asyncio.to_thread(storage.mount_point.is_mount) else None

    try:
        await eventually(is_mounted, "the file system being mounted")
        yield storage
    finally:
        await asyncio.to_thread(storage.let_go)


async def lost_storage(site: Site) -> list[str]:
    node = await site.cluster.plane.nodes.GetNode(
        node_api.GetNodeRequest(id=site.cluster.node_ids[HOST]), timeout=DEADLINE_S
    )
    return [each.message for each in node.status.conditions if each.type == "StorageLost"]


@takes_minutes
@pytest.mark.parametrize("failure", ["hangs", "dies"])
async def test_storage_that_is_gone_is_told_with_its_vms_and_the_host_lives_on(tmp_path: Path, failure: str) -> None:
    async with failing_storage(tmp_path) as storage, site_on(tmp_path, storage.mount_point) as site:
        vm = await site.create("on-it", counter(auto_restart=True, condition=HaPolicy.ON_FAILURE))
        await site.counts_on(vm)
        assert await lost_storage(site) == []
        node_id, process = site.cluster.node_ids[HOST], site.qemu(vm)
        if failure == "hangs":
            storage.hang()
        else:
            storage.die()
        try:
            alert = await site.alert("ha.storage_lost", node_id)
            assert "on-it" in alert.message
            assert len(await lost_storage(site)) == 1
            # the host is not taken for dead, and its VM not for ended
            assert site.qemu(vm) == process
            assert await site.operations(vm, "vm.start") == []
        finally:
            storage.go_on()
        if failure == "hangs":
            await site.alert("ha.storage_lost", node_id, is_open=False)
            assert await lost_storage(site) == []
            await site.counts_on(vm)
            assert site.qemu(vm) == process
