"""Operations on a VM's disks."""

from __future__ import annotations

from controlplane.daemons import node_spec
from controlplane.daemons.interface import NodeDaemon
from controlplane.domain import vm_devices as devices
from controlplane.domain.event import EventType
from controlplane.domain.operation import Json
from controlplane.domain.vm import Vm
from controlplane.operations.steps import Run
from controlplane.operations.vm_devices import DeviceStep, DeviceWorkflow, from_json
from limiquantix.compute.v1.vm_pb2 import DiskDevice, IoLimits, VmSpec
from limiquantix.node.v1 import node_daemon_pb2 as node_v1


class DiskStep(DeviceStep):
    """A step on one disk, whose parameters are `disk` or `disk_id`."""

    def device_id(self, parameters: Json) -> str:
        """See `DeviceStep`."""
        return str(parameters["disk"].get("id") if "disk" in parameters else parameters["disk_id"])

    def what(self, parameters: Json) -> str:
        """See `DeviceStep`."""
        return f"disk {self.device_id(parameters)}"


class AttachDiskStep(DiskStep):
    """Have the host attach a disk, whose image it makes if it is not there."""

    name = "attach_disk"
    event = EventType.VM_DISK_ATTACHED
    is_in_spec = True

    def check(self, vm: Vm, parameters: Json) -> None:
        """See `DeviceStep`."""
        devices.require_disk_attachable(vm, from_json(DiskDevice, parameters["disk"]))

    def changed(self, spec: VmSpec, parameters: Json) -> VmSpec:
        """See `DeviceStep`."""
        return devices.with_disk(spec, from_json(DiskDevice, parameters["disk"]))

    async def act(self, run: Run, vm: Vm, daemon: NodeDaemon) -> None:
        """See `DeviceStep`."""
        disk = node_spec.to_node_disk(from_json(DiskDevice, run.parameters["disk"]))
        await daemon.attach_disk(node_v1.AttachDiskRequest(vm_id=vm.id, disk=disk, generation=run.operation.generation))

    def is_unwanted_disk(self, parameters: Json) -> bool:
        """See `DeviceStep`."""
        return bool(parameters["is_new"])

    async def act_back(self, run: Run, vm: Vm, daemon: NodeDaemon) -> None:
        """Detach it, with the image if that was made just now: an id of the caller's may be that of an older one."""
        await daemon.detach_disk(
            node_v1.DetachDiskRequest(
                vm_id=vm.id,
                disk_id=self.device_id(run.parameters),
                force=True,
                delete_image=bool(run.parameters["is_new"]),
                generation=run.operation.generation,
            )
        )


class DetachDiskStep(DiskStep):
    """Have the host detach a disk, whose image stays."""

    name = "detach_disk"
    event = EventType.VM_DISK_DETACHED

    def check(self, vm: Vm, parameters: Json) -> None:
        """See `DeviceStep`."""
        devices.require_disk_detachable(vm, parameters["disk_id"])

    def changed(self, spec: VmSpec, parameters: Json) -> VmSpec:
        """See `DeviceStep`."""
        return devices.without_disk(spec, parameters["disk_id"])

    async def act(self, run: Run, vm: Vm, daemon: NodeDaemon) -> None:
        """See `DeviceStep`."""
        await daemon.detach_disk(
            node_v1.DetachDiskRequest(
                vm_id=vm.id,
                disk_id=run.parameters["disk_id"],
                force=run.parameters["force"],
                generation=run.operation.generation,
            )
        )

    async def act_back(self, run: Run, vm: Vm, daemon: NodeDaemon) -> None:
        """Attach it again; finds it attached if the guest never let go."""
        disk = devices.find_disk(vm.spec, run.parameters["disk_id"])
        if disk is not None:
            await daemon.attach_disk(
                node_v1.AttachDiskRequest(
                    vm_id=vm.id,
                    disk=node_spec.as_existing(node_spec.to_node_disk(disk)),
                    existing_image=True,
                    generation=run.operation.generation,
                )
            )


class ResizeDiskStep(DiskStep):
    """Have the host grow a disk. Nothing makes it smaller again."""

    name = "resize_disk"
    event = EventType.VM_DISK_RESIZED
    is_in_spec = True

    def check(self, vm: Vm, parameters: Json) -> None:
        """See `DeviceStep`."""
        devices.require_disk_resizable(vm, parameters["disk_id"], int(parameters["size_gib"]))

    def changed(self, spec: VmSpec, parameters: Json) -> VmSpec:
        """See `DeviceStep`."""
        disk = devices.find_disk(spec, parameters["disk_id"])
        return spec if disk is None else devices.with_disk(spec, devices.with_size(disk, int(parameters["size_gib"])))

    async def act(self, run: Run, vm: Vm, daemon: NodeDaemon) -> None:
        """See `DeviceStep`."""
        await daemon.resize_disk(
            node_v1.ResizeDiskRequest(
                vm_id=vm.id,
                disk_id=run.parameters["disk_id"],
                size_gib=int(run.parameters["size_gib"]),
                generation=run.operation.generation,
            )
        )

    async def act_back(self, run: Run, vm: Vm, daemon: NodeDaemon) -> None:
        """Nothing: a larger image holds the same data, and asking for the same size again finds it grown."""


class UpdateDiskStep(DiskStep):
    """Have the host replace a disk's ceilings."""

    name = "update_disk"
    event = EventType.VM_DISK_CHANGED

    def check(self, vm: Vm, parameters: Json) -> None:
        """See `DeviceStep`."""
        devices.require_disk_changeable(vm, parameters["disk_id"])

    def changed(self, spec: VmSpec, parameters: Json) -> VmSpec:
        """See `DeviceStep`."""
        disk = devices.find_disk(spec, parameters["disk_id"])
        limits = from_json(IoLimits, parameters["io_limits"])
        return spec if disk is None else devices.with_disk(spec, devices.with_limits(disk, limits))

    async def act(self, run: Run, vm: Vm, daemon: NodeDaemon) -> None:
        """See `DeviceStep`."""
        await self._limit(run, vm, daemon, from_json(IoLimits, run.parameters["io_limits"]))

    async def act_back(self, run: Run, vm: Vm, daemon: NodeDaemon) -> None:
        """See `DeviceStep`."""
        disk = devices.find_disk(vm.spec, run.parameters["disk_id"])
        if disk is not None:
            await self._limit(run, vm, daemon, disk.io_limits)

    async def _limit(self, run: Run, vm: Vm, daemon: NodeDaemon, limits: IoLimits) -> None:
        await daemon.update_disk(
            node_v1.UpdateDiskRequest(
                vm_id=vm.id,
                disk_id=run.parameters["disk_id"],
                io_limits=node_spec.to_node_limits(limits),
                generation=run.operation.generation,
            )
        )


class AttachDisk(DeviceWorkflow):
    """`AttachDisk`."""

    kind = "vm.attach_disk"
    step = AttachDiskStep()


class DetachDisk(DeviceWorkflow):
    """`DetachDisk`."""

    kind = "vm.detach_disk"
    step = DetachDiskStep()


class ResizeDisk(DeviceWorkflow):
    """`ResizeDisk`."""

    kind = "vm.resize_disk"
    step = ResizeDiskStep()


class UpdateDisk(DeviceWorkflow):
    """`UpdateDisk`."""

    kind = "vm.update_disk"
    step = UpdateDiskStep()
