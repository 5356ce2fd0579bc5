"""Operations on a VM's network cards."""

from __future__ import annotations

from controlplane.daemons import node_spec
from controlplane.daemons.interface import NodeDaemon
from controlplane.domain import vm_devices as devices
from controlplane.domain.event import EventType
from controlplane.domain.operation import Json
from controlplane.domain.vm import Vm
from controlplane.operations.steps import Run
from controlplane.operations.vm_devices import DeviceStep, DeviceWorkflow, from_json
from limiquantix.compute.v1.vm_pb2 import NetworkInterface, VmSpec
from limiquantix.compute.v1.vm_service_pb2 import UpdateNICRequest
from limiquantix.node.v1 import node_daemon_pb2 as node_v1


class NicStep(DeviceStep):
    """A step on one network card, whose parameters are `nic` or `nic_id`."""

    def device_id(self, parameters: Json) -> str:
        """See `DeviceStep`."""
        return str(parameters["nic"].get("id") if "nic" in parameters else parameters["nic_id"])

    def what(self, parameters: Json) -> str:
        """See `DeviceStep`."""
        return f"network card {self.device_id(parameters)}"


class AttachNicStep(NicStep):
    """Have the host attach a network card."""

    name = "attach_nic"
    event = EventType.VM_NIC_ATTACHED
    is_in_spec = True

    def check(self, vm: Vm, parameters: Json) -> None:
        """See `DeviceStep`."""
        devices.require_nic_attachable(vm, from_json(NetworkInterface, parameters["nic"]))

    def changed(self, spec: VmSpec, parameters: Json) -> VmSpec:
        """See `DeviceStep`."""
        return devices.with_nic(spec, from_json(NetworkInterface, parameters["nic"]))

    async def act(self, run: Run, vm: Vm, daemon: NodeDaemon) -> None:
        """See `DeviceStep`."""
        nic = node_spec.to_node_nic(from_json(NetworkInterface, run.parameters["nic"]))
        await daemon.attach_nic(node_v1.AttachNICRequest(vm_id=vm.id, nic=nic, generation=run.operation.generation))

    async def act_back(self, run: Run, vm: Vm, daemon: NodeDaemon) -> None:
        """See `DeviceStep`."""
        await daemon.detach_nic(
            node_v1.DetachNICRequest(
                vm_id=vm.id, nic_id=self.device_id(run.parameters), generation=run.operation.generation
            )
        )


class DetachNicStep(NicStep):
    """Have the host detach a network card."""

    name = "detach_nic"
    event = EventType.VM_NIC_DETACHED

    def check(self, vm: Vm, parameters: Json) -> None:
        """See `DeviceStep`."""
        devices.require_nic_detachable(vm, parameters["nic_id"])

    def changed(self, spec: VmSpec, parameters: Json) -> VmSpec:
        """See `DeviceStep`."""
        return devices.without_nic(spec, parameters["nic_id"])

    async def act(self, run: Run, vm: Vm, daemon: NodeDaemon) -> None:
        """See `DeviceStep`."""
        await daemon.detach_nic(
            node_v1.DetachNICRequest(vm_id=vm.id, nic_id=run.parameters["nic_id"], generation=run.operation.generation)
        )

    async def act_back(self, run: Run, vm: Vm, daemon: NodeDaemon) -> None:
        """Attach it again; finds it attached if the guest never let go."""
        nic = devices.find_nic(vm.spec, run.parameters["nic_id"])
        if nic is not None:
            card = node_spec.to_node_nic(nic)
            card.boot_index = 0
            await daemon.attach_nic(
                node_v1.AttachNICRequest(vm_id=vm.id, nic=card, generation=run.operation.generation)
            )


class UpdateNicStep(NicStep):
    """Have the host plug a card's cable in or out, and replace its ceilings."""

    name = "update_nic"
    event = EventType.VM_NIC_CHANGED

    def check(self, vm: Vm, parameters: Json) -> None:
        """See `DeviceStep`."""
        devices.require_nic_changeable(vm, from_json(UpdateNICRequest, parameters["request"]))

    def changed(self, spec: VmSpec, parameters: Json) -> VmSpec:
        """See `DeviceStep`."""
        nic, request = devices.find_nic(spec, parameters["nic_id"]), from_json(UpdateNICRequest, parameters["request"])
        return spec if nic is None else devices.with_nic(spec, devices.with_nic_changes(nic, request))

    async def act(self, run: Run, vm: Vm, daemon: NodeDaemon) -> None:
        """See `DeviceStep`."""
        request = from_json(UpdateNICRequest, run.parameters["request"])
        nic = devices.with_nic_changes(devices.required_nic(vm, run.parameters["nic_id"]), request)
        await self._update(run, vm, daemon, nic)

    async def act_back(self, run: Run, vm: Vm, daemon: NodeDaemon) -> None:
        """See `DeviceStep`."""
        nic = devices.find_nic(vm.spec, run.parameters["nic_id"])
        if nic is not None:
            await self._update(run, vm, daemon, nic)

    async def _update(self, run: Run, vm: Vm, daemon: NodeDaemon, nic: NetworkInterface) -> None:
        card = node_spec.to_node_nic(nic)
        card.boot_index = 0
        await daemon.update_nic(node_v1.UpdateNICRequest(vm_id=vm.id, nic=card, generation=run.operation.generation))


class AttachNic(DeviceWorkflow):
    """`AttachNIC`."""

    kind = "vm.attach_nic"
    step = AttachNicStep()


class DetachNic(DeviceWorkflow):
    """`DetachNIC`."""

    kind = "vm.detach_nic"
    step = DetachNicStep()


class UpdateNic(DeviceWorkflow):
    """`UpdateNIC`."""

    kind = "vm.update_nic"
    step = UpdateNicStep()
