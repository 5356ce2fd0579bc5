"""Operations on a VM's CD-ROM drives and what is in them."""

from __future__ import annotations

from controlplane.daemons import node_spec
from controlplane.daemons.interface import NodeDaemon
from controlplane.domain import vm_devices as devices
from controlplane.domain.event import EventType
from controlplane.domain.operation import Json
from controlplane.domain.vm import Vm
from controlplane.operations.steps import Run
from controlplane.operations.vm_devices import DeviceStep, DeviceWorkflow, from_json
from limiquantix.compute.v1.vm_pb2 import CdromDevice, VmSpec
from limiquantix.node.v1 import node_daemon_pb2 as node_v1


class CdromStep(DeviceStep):
    """A step on one CD-ROM drive, whose parameters are `cdrom` or `cdrom_id`."""

    def device_id(self, parameters: Json) -> str:
        """See `DeviceStep`."""
        return str(parameters["cdrom"].get("id") if "cdrom" in parameters else parameters["cdrom_id"])

    def what(self, parameters: Json) -> str:
        """See `DeviceStep`."""
        return f"CD-ROM drive {self.device_id(parameters)}"


class AttachCdromStep(CdromStep):
    """Have the host add a CD-ROM drive."""

    name = "attach_cdrom"
    event = EventType.VM_CDROM_ATTACHED
    is_in_spec = True

    def check(self, vm: Vm, parameters: Json) -> None:
        """See `DeviceStep`."""
        devices.require_cdrom_attachable(vm, from_json(CdromDevice, parameters["cdrom"]))

    def changed(self, spec: VmSpec, parameters: Json) -> VmSpec:
        """See `DeviceStep`."""
        return devices.with_cdrom(spec, from_json(CdromDevice, parameters["cdrom"]))

    async def act(self, run: Run, vm: Vm, daemon: NodeDaemon) -> None:
        """See `DeviceStep`."""
        cdrom = node_spec.to_node_cdrom(from_json(CdromDevice, run.parameters["cdrom"]))
        await daemon.attach_cdrom(
            node_v1.AttachCDROMRequest(vm_id=vm.id, cdrom=cdrom, generation=run.operation.generation)
        )

    async def act_back(self, run: Run, vm: Vm, daemon: NodeDaemon) -> None:
        """See `DeviceStep`."""
        await daemon.detach_cdrom(
            node_v1.DetachCDROMRequest(
                vm_id=vm.id, cdrom_id=self.device_id(run.parameters), generation=run.operation.generation
            )
        )


class DetachCdromStep(CdromStep):
    """Have the host take a CD-ROM drive away."""

    name = "detach_cdrom"
    event = EventType.VM_CDROM_DETACHED

    def check(self, vm: Vm, parameters: Json) -> None:
        """See `DeviceStep`."""
        devices.require_cdrom_detachable(vm, parameters["cdrom_id"])

    def changed(self, spec: VmSpec, parameters: Json) -> VmSpec:
        """See `DeviceStep`."""
        return devices.without_cdrom(spec, parameters["cdrom_id"])

    async def act(self, run: Run, vm: Vm, daemon: NodeDaemon) -> None:
        """See `DeviceStep`."""
        await daemon.detach_cdrom(
            node_v1.DetachCDROMRequest(
                vm_id=vm.id, cdrom_id=run.parameters["cdrom_id"], generation=run.operation.generation
            )
        )

    async def act_back(self, run: Run, vm: Vm, daemon: NodeDaemon) -> None:
        """See `DeviceStep`."""
        cdrom = devices.find_cdrom(vm.spec, run.parameters["cdrom_id"])
        if cdrom is not None:
            drive = node_spec.to_node_cdrom(cdrom)
            drive.boot_index = 0
            await daemon.attach_cdrom(
                node_v1.AttachCDROMRequest(vm_id=vm.id, cdrom=drive, generation=run.operation.generation)
            )


class ChangeMediumStep(CdromStep):
    """Have the host put a medium into a drive, or take it out."""

    name = "change_medium"
    event = EventType.VM_MEDIUM_CHANGED

    def check(self, vm: Vm, parameters: Json) -> None:
        """See `DeviceStep`."""
        devices.require_medium_changeable(vm, parameters["cdrom_id"])

    def changed(self, spec: VmSpec, parameters: Json) -> VmSpec:
        """See `DeviceStep`."""
        cdrom = devices.find_cdrom(spec, parameters["cdrom_id"])
        return spec if cdrom is None else devices.with_cdrom(spec, devices.with_medium(cdrom, parameters["iso_path"]))

    async def act(self, run: Run, vm: Vm, daemon: NodeDaemon) -> None:
        """See `DeviceStep`."""
        await self._change(run, vm, daemon, run.parameters["iso_path"])

    async def act_back(self, run: Run, vm: Vm, daemon: NodeDaemon) -> None:
        """See `DeviceStep`."""
        cdrom = devices.find_cdrom(vm.spec, run.parameters["cdrom_id"])
        if cdrom is not None:
            await self._change(run, vm, daemon, cdrom.iso_path)

    async def _change(self, run: Run, vm: Vm, daemon: NodeDaemon, iso_path: str) -> None:
        await daemon.change_media(
            node_v1.ChangeMediaRequest(
                vm_id=vm.id,
                device=run.parameters["cdrom_id"],
                iso_path=iso_path,
                generation=run.operation.generation,
            )
        )


class AttachCdrom(DeviceWorkflow):
    """`AttachCDROM`."""

    kind = "vm.attach_cdrom"
    step = AttachCdromStep()


class DetachCdrom(DeviceWorkflow):
    """`DetachCDROM`."""

    kind = "vm.detach_cdrom"
    step = DetachCdromStep()


class ChangeMedium(DeviceWorkflow):
    """`MountISO` and `EjectISO`."""

    kind = "vm.change_medium"
    step = ChangeMediumStep()
