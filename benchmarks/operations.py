"""What the stack adds to each operation on a VM that runs, against the same libvirt calls made directly.

Two VMs run the same guest from the same definition: one is the product's, one is ours to call libvirt on. Each is done
on both, taking turns. What waits for a guest (a detached device is only gone when the guest let go of it) waits on both
sides.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lxml import etree

from benchmarks.cluster import Measured, running_cluster, tell
from benchmarks.libvirt_host import DirectLibvirt, copy_of_definition, direct_libvirt, why_no_libvirt
from benchmarks.measurement import Goal, Pair, Section, compare
from controlplane.cli.dev.demo import BootFiles
from controlplane.cli.dev.guest_image import READY_MARKER
from controlplane.cli.dev.stack import HypervisorChoice
from limiquantix.compute.v1 import vm_service_pb2 as pb
from limiquantix.compute.v1.vm_pb2 import (
    BootConfig,
    CpuConfig,
    DirectKernelBoot,
    DiskDevice,
    MemoryConfig,
    NetworkInterface,
    VmSpec,
)
from limiquantix.compute.v1.vm_service_pb2_grpc import VMServiceStub

if TYPE_CHECKING:
    from limiquantix.compute.v1.vm_service_pb2_grpc import VMServiceAsyncStub

TITLE = "operations on a running VM, ours against the same libvirt calls on the same daemon; lower is better"
GOAL = Goal(limit=1.1)
_MEMORY_MIB = 128
_CALL_TIMEOUT_S = 120.0
_BOOT_TIMEOUT_S = 90.0
_BOOT_POLL_S = 0.1
_POLL_S = 0.002
"""How often the direct side asks whether a device is gone; an ask takes about a millisecond."""

Times = dict[str, float]
"""Milliseconds by operation."""


async def measure_operations(round_count: int) -> Section:
    """Run this part; on a machine without libvirt, say why not."""
    if reason := await why_no_libvirt():
        return Section("operations", TITLE, skipped=reason)
    async with running_cluster(HypervisorChoice.LIBVIRT) as measured:
        uri = measured.cluster.libvirt_uri
        if uri is None or measured.cluster.boot_files is None:
            raise RuntimeError("the cluster runs without libvirt though it was asked for")
        async with measured.open_channel() as channel, direct_libvirt(uri) as libvirt:
            stack = await _Stack.booted(VMServiceStub(channel), measured.cluster.boot_files)
            direct = await _Direct.booted(libvirt, stack.vm_id, measured)
            try:
                tell(f"{round_count} rounds of operations")
                await stack.round()
                await direct.round()
                rounds = [await _take_turns(stack, direct, number) for number in range(round_count)]
            finally:
                await direct.end()
    rows = [
        compare(name, [Pair(ours[name], theirs[name]) for ours, theirs in rounds], "ms", GOAL) for name in rounds[0][0]
    ]
    return Section("operations", TITLE, tuple(rows))


async def _take_turns(stack: _Stack, direct: _Direct, number: int) -> tuple[Times, Times]:
    """One round on each; who comes first alternates."""
    if number % 2 == 0:
        ours = await stack.round()
        return ours, await direct.round()
    theirs = await direct.round()
    return await stack.round(), theirs


class _Clock:
    """Times named steps."""

    def __init__(self) -> None:
        self.times_ms: Times = {}

    async def time(self, name: str, work: Awaitable[Any]) -> Any:
        """Await `work` and note how long that took."""
        began_s = time.perf_counter()
        result = await work
        self.times_ms[name] = 1000 * (time.perf_counter() - began_s)
        return result


@dataclass(frozen=True, slots=True)
class _Stack:
    """The product's side."""

    stub: VMServiceAsyncStub
    vm_id: str

    @classmethod
    async def booted(cls, stub: VMServiceAsyncStub, files: BootFiles) -> _Stack:
        """Make a VM and wait until its guest is up."""
        boot = DirectKernelBoot(kernel_path=files.kernel, initrd_path=files.initrd, cmdline=files.arguments)
        spec = VmSpec(
            cpu=CpuConfig(cores=1),
            memory=MemoryConfig(size_mib=_MEMORY_MIB),
            disks=[DiskDevice(size_gib=1)],
            boot=BootConfig(direct_boot=boot),
        )
        request = pb.CreateVMRequest(name="operations", spec=spec, start_on_create=True)
        vm = await stub.CreateVM(request, timeout=_CALL_TIMEOUT_S)

        async def is_up() -> bool:
            log = await stub.GetConsoleLog(pb.GetConsoleLogRequest(vm_id=vm.id), timeout=_CALL_TIMEOUT_S)
            return READY_MARKER.encode() in log.data

        await _until(is_up)
        return cls(stub, vm.id)

    async def round(self) -> Times:
        """Do every operation once; the VM is afterwards as before."""
        stub, vm_id, clock, patience = self.stub, self.vm_id, _Clock(), _CALL_TIMEOUT_S
        await clock.time("pause", stub.PauseVM(pb.PauseVMRequest(id=vm_id), timeout=patience))
        await clock.time("resume", stub.ResumeVM(pb.ResumeVMRequest(id=vm_id), timeout=patience))
        await clock.time("suspend to disk", stub.SuspendVM(pb.SuspendVMRequest(id=vm_id), timeout=patience))
        await clock.time("start from disk", stub.StartVM(pb.StartVMRequest(id=vm_id), timeout=patience))
        create = pb.CreateSnapshotRequest(vm_id=vm_id, name="benchmark", include_memory=True)
        snapshot = await clock.time("snapshot with memory", stub.CreateSnapshot(create, timeout=patience))
        revert = pb.RevertToSnapshotRequest(vm_id=vm_id, snapshot_id=snapshot.id, start_after_revert=True)
        await clock.time("revert", stub.RevertToSnapshot(revert, timeout=patience))
        delete = pb.DeleteSnapshotRequest(vm_id=vm_id, snapshot_id=snapshot.id)
        await clock.time("delete snapshot", stub.DeleteSnapshot(delete, timeout=patience))
        disk_id, nic_id = str(uuid.uuid4()), str(uuid.uuid4())
        attach = pb.AttachDiskRequest(vm_id=vm_id, disk=DiskDevice(id=disk_id, size_gib=1))
        await clock.time("attach disk", stub.AttachDisk(attach, timeout=patience))
        detach = pb.DetachDiskRequest(vm_id=vm_id, disk_id=disk_id)
        await clock.time("detach disk", stub.DetachDisk(detach, timeout=patience))
        plug = pb.AttachNICRequest(vm_id=vm_id, nic=NetworkInterface(id=nic_id))
        await clock.time("attach NIC", stub.AttachNIC(plug, timeout=patience))
        await clock.time(
            "detach NIC", stub.DetachNIC(pb.DetachNICRequest(vm_id=vm_id, nic_id=nic_id), timeout=patience)
        )
        return clock.times_ms


class _Direct:
    """libvirt's side, on a domain of its own with the product's definition."""

    def __init__(self, domain: Any, directory: Path) -> None:
        self._domain = domain
        self._directory = directory

    @classmethod
    async def booted(cls, libvirt: DirectLibvirt, vm_id: str, measured: Measured) -> _Direct:
        """Define the copy, with a disk of its own, and wait until its guest is up."""
        directory = measured.data_dir / "direct"
        await asyncio.to_thread(directory.mkdir)
        log, disk = directory / "console.log", directory / "disk.qcow2"
        await _make_image(disk)
        tree = etree.fromstring(copy_of_definition(await libvirt.read_definition(vm_id), "direct", log).encode())
        for source in tree.findall("devices/disk/source"):
            source.set("file", str(disk))
        domain = await asyncio.to_thread(libvirt.define, etree.tostring(tree, encoding="unicode"))
        await asyncio.to_thread(domain.create)

        async def is_up() -> bool:
            return READY_MARKER.encode() in await asyncio.to_thread(log.read_bytes)

        await _until(is_up)
        return cls(domain, directory)

    async def end(self) -> None:
        """Remove the domain."""
        await asyncio.to_thread(self._domain.destroy)
        await asyncio.to_thread(self._domain.undefineFlags, _UNDEFINE_EVERYTHING)

    async def round(self) -> Times:
        """Do every operation once."""
        domain, clock = self._domain, _Clock()
        await clock.time("pause", asyncio.to_thread(domain.suspend))
        await clock.time("resume", asyncio.to_thread(domain.resume))
        await clock.time("suspend to disk", asyncio.to_thread(domain.managedSave))
        await clock.time("start from disk", asyncio.to_thread(domain.create))
        name = f"<domainsnapshot><name>{uuid.uuid4()}</name></domainsnapshot>"
        snapshot = await clock.time("snapshot with memory", asyncio.to_thread(domain.snapshotCreateXML, name, 0))
        await clock.time("revert", asyncio.to_thread(domain.revertToSnapshot, snapshot, _REVERT_RUNNING))
        await clock.time("delete snapshot", asyncio.to_thread(snapshot.delete, 0))
        image = self._directory / f"{uuid.uuid4()}.qcow2"
        disk = _DISK.format(path=image)
        await clock.time("attach disk", self._make_and_attach(image, disk))
        await clock.time("detach disk", self._detach(disk, f"disk/source[@file='{image}']"))
        await asyncio.to_thread(image.unlink)
        nic = _NIC.format(mac="52:54:00:be:ac:01")
        await clock.time("attach NIC", asyncio.to_thread(domain.attachDeviceFlags, nic, _LIVE_AND_CONFIG))
        await clock.time("detach NIC", self._detach(nic, "interface/mac[@address='52:54:00:be:ac:01']"))
        return clock.times_ms

    async def _make_and_attach(self, image: Path, disk: str) -> None:
        await _make_image(image)
        await asyncio.to_thread(self._domain.attachDeviceFlags, disk, _LIVE_AND_CONFIG)

    async def _detach(self, device: str, path: str) -> None:
        """Ask the guest for the device and wait until it is gone."""
        await asyncio.to_thread(self._domain.detachDeviceFlags, device, _LIVE_AND_CONFIG)

        def is_there() -> bool:
            tree = etree.fromstring(self._domain.XMLDesc(0).encode())
            return tree.find(f"devices/{path}") is not None

        def wait() -> None:
            while is_there():
                time.sleep(_POLL_S)

        await asyncio.to_thread(wait)


_LIVE_AND_CONFIG = 3
"""libvirt's VIR_DOMAIN_AFFECT_LIVE and VIR_DOMAIN_AFFECT_CONFIG."""
_REVERT_RUNNING = 1
"""libvirt's VIR_DOMAIN_SNAPSHOT_REVERT_RUNNING."""
_UNDEFINE_EVERYTHING = 1 | 2 | 4 | 16
"""libvirt's flags for saved memory, records of snapshots, NVRAM and records of checkpoints."""
_DISK = (
    "<disk type='file' device='disk'><driver name='qemu' type='qcow2' cache='none' io='native'/>"
    "<source file='{path}'/><target dev='vdz' bus='virtio'/></disk>"
)
_NIC = "<interface type='user'><mac address='{mac}'/><model type='virtio'/></interface>"


async def _make_image(path: Path) -> None:
    words = ("qemu-img", "create", "-q", "-f", "qcow2", str(path), "1G")
    process = await asyncio.create_subprocess_exec(*words)
    if await process.wait() != 0:
        raise RuntimeError(f"qemu-img could not make {path}")


async def _until(is_true: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(_BOOT_TIMEOUT_S):
        while True:
            if await is_true():
                return
            await asyncio.sleep(_BOOT_POLL_S)
