"""What clones take of a source, VMs of a template and reverted VMs of a snapshot, their makers must be allowed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import pytest

from controlplane.access.memory import AccessMemory
from controlplane.access.visibility import CallersVisibility
from controlplane.domain.access import ADMIN, OPERATOR, Place
from controlplane.domain.principal import Principal
from controlplane.domain.query import VmFilter
from controlplane.domain.vm import Vm
from controlplane.services.clones import CloneService
from controlplane.services.vm_calls import VmAccess
from controlplane.services.vm_snapshots import SnapshotService
from limiquantix.compute.v1 import vm_service_pb2 as api
from limiquantix.compute.v1.node_pb2 import HostDevice
from limiquantix.compute.v1.vm_pb2 import (
    PciDevice,
    PlacementPolicy,
    Snapshot,
    UsbDevice,
    VgpuDevice,
    VirtualMachine,
    VmAffinityRule,
    VmSpec,
)
from limiquantix.errors import PermissionDenied, Reason
from tests.support.access_scene import bound, called_by, user, write
from tests.support.builders import make_id, make_node, make_project
from tests.support.control_plane_world import World, create_request

OPAL, ADA = user("opal"), user("ada")
"""An operator of one project, and an administrator of everything."""
DEVICES = {
    "pci": VmSpec(pci_devices=[PciDevice(host_address="0000:3b:00.0", description="the GPU")]),
    "usb": VmSpec(usb_devices=[UsbDevice(vendor_id="0951", product_id="1666")]),
    "vgpu": VmSpec(vgpu_devices=[VgpuDevice(gpu_uuid="0e2ac1f8-5f0a-4f0e-8f7b-3d4d1d8d3c11")]),
}


@dataclass
class Scene:
    world: World
    memory: AccessMemory
    project_id: str
    source: Vm
    """Off, in Opal's project."""
    hidden: Vm
    """In a project that she does not see."""

    async def give(self, spec: VmSpec) -> Vm:
        """Add to the source what somebody with more rights gave it."""
        stored = await self.world.stored(self.source.id)
        assert stored is not None
        given = VmSpec()
        given.CopyFrom(stored.spec)
        given.MergeFrom(spec)
        self.source = await self.world.store.run(lambda tx: tx.update_vm(replace(stored, spec=given)))
        return self.source

    async def take_away(self) -> None:
        """Take all devices of its host from the source."""
        stored = await self.world.stored(self.source.id)
        assert stored is not None
        spec = VmSpec()
        spec.CopyFrom(stored.spec)
        for part in ("pci_devices", "usb_devices", "vgpu_devices"):
            spec.ClearField(part)
        await self.world.store.run(lambda tx: tx.update_vm(replace(stored, spec=spec)))

    async def clone(self, who: Principal) -> VirtualMachine:
        """Make a clone of the source."""
        with called_by(who):
            return await self._clones.clone(api.CloneVMRequest(source_vm_id=self.source.id, name=make_id()))

    async def create(self, who: Principal, spec: VmSpec | None = None, *, validate_only: bool = False) -> None:
        """Make a VM of the source, which is a template."""
        request = api.CreateVMRequest(
            template_id=self.source.id, name=make_id(), spec=spec or VmSpec(), validate_only=validate_only
        )
        with called_by(who):
            await self._clones.create(request)

    async def revert(self, who: Principal, snapshot: Snapshot) -> None:
        """Put the source back."""
        access = VmAccess(self.world.store, self.world.daemons, self.world.desk)
        with called_by(who):
            await SnapshotService(access, CallersVisibility(self.memory)).revert(
                api.RevertToSnapshotRequest(vm_id=self.source.id, snapshot_id=snapshot.id)
            )

    async def vm_count(self) -> int:
        """How many VMs there are."""
        return len((await self.world.store.read(lambda tx: tx.list_vms(VmFilter(), None, 100))).items)

    @property
    def _clones(self) -> CloneService:
        world = self.world
        access = VmAccess(world.store, world.daemons, world.desk)
        visibility = CallersVisibility(self.memory)
        return CloneService(access, world.scheduler, world.clock, world.clones.memory, visibility)


@pytest.fixture
async def scene(world: World) -> Scene:
    mine, other = make_project(), make_project()
    await write(world.store, mine, other, bound("user:ada", ADMIN), bound("user:opal", OPERATOR, Place(mine.id)))
    memory = AccessMemory(world.store)
    await memory.tree()
    node = make_node(vcpus=64)
    node.spec.devices.extend(
        HostDevice(kind=HostDevice.USB, address=f"1:{number}", vendor_id="0951", product_id="1666") for number in (4, 5)
    )
    await world.store.run(lambda tx: tx.insert_node(node))
    source = await world.vms.create(create_request("source", project_id=mine.id))
    hidden = await world.vms.create(create_request("hidden", project_id=other.id))
    return Scene(world, memory, mine.id, source, hidden)


async def refused(scene: Scene, work: object) -> PermissionDenied:
    """Await what must be refused, and see that nothing came of it."""
    before = await scene.vm_count()
    with pytest.raises(PermissionDenied) as caught:
        await work  # type: ignore[misc]
    assert await scene.vm_count() == before
    assert caught.value.reason == Reason.PERMISSION_MISSING
    return caught.value


async def test_vm_without_anything_of_others_is_cloned_by_an_operator(scene: Scene) -> None:
    made = await scene.clone(OPAL)
    assert made.project_id == scene.project_id


@pytest.mark.parametrize("devices", DEVICES.values(), ids=DEVICES)
async def test_devices_of_the_host_are_not_had_by_cloning(scene: Scene, devices: VmSpec) -> None:
    await scene.give(devices)
    error = await refused(scene, scene.clone(OPAL))
    assert error.metadata["permission"] == "node.operate"
    assert "devices of its host" in error.message


@pytest.mark.parametrize("devices", DEVICES.values(), ids=DEVICES)
async def test_devices_of_the_host_are_not_had_from_a_template(scene: Scene, devices: VmSpec) -> None:
    await scene.give(devices)
    await scene.world.clones.convert(api.ConvertToTemplateRequest(vm_id=scene.source.id))
    await refused(scene, scene.create(OPAL))
    await refused(scene, scene.create(OPAL, validate_only=True))


async def test_devices_of_the_host_are_cloned_by_who_may_give_them(scene: Scene) -> None:
    await scene.give(DEVICES["usb"])
    made = await scene.clone(ADA)
    assert made.spec.usb_devices == DEVICES["usb"].usb_devices


def rules_about(vm_ids: Sequence[str]) -> dict[str, PlacementPolicy]:
    return {
        "affinity": PlacementPolicy(affinity_vms=vm_ids),
        "anti-affinity": PlacementPolicy(anti_affinity_vms=vm_ids),
        "rule": PlacementPolicy(vm_rules=[VmAffinityRule(kind=VmAffinityRule.APART, vm_ids=vm_ids)]),
    }


@pytest.mark.parametrize("kind", rules_about([]))
async def test_rules_about_vms_of_others_are_not_had_by_cloning(scene: Scene, kind: str) -> None:
    await scene.give(VmSpec(placement=rules_about([scene.hidden.id])[kind]))
    error = await refused(scene, scene.clone(OPAL))
    assert error.metadata["permission"] == "vm.update"
    await scene.world.clones.convert(api.ConvertToTemplateRequest(vm_id=scene.source.id))
    await refused(scene, scene.create(OPAL))


async def test_rules_about_vms_that_are_hidden_gone_or_invented_are_refused_in_the_same_words(scene: Scene) -> None:
    invented = make_id()
    said = []
    for vm_id in (scene.hidden.id, invented):
        await scene.give(VmSpec(placement=PlacementPolicy(anti_affinity_vms=[vm_id])))
        error = await refused(scene, scene.clone(OPAL))
        said.append(error.message.replace(error.metadata["vm_id"], "..."))
    assert said[0] == said[1]


async def test_rules_about_ones_own_vms_are_cloned_also_when_those_are_gone(scene: Scene) -> None:
    own = await scene.world.vms.create(create_request("own", project_id=scene.project_id))
    await scene.give(VmSpec(placement=PlacementPolicy(anti_affinity_vms=[own.id])))
    await scene.world.vms.delete(api.DeleteVMRequest(id=own.id))
    assert list((await scene.clone(OPAL)).spec.placement.anti_affinity_vms) == [own.id]


async def test_what_a_request_gives_in_place_of_the_templates_rules_is_what_counts(scene: Scene) -> None:
    await scene.give(VmSpec(placement=PlacementPolicy(affinity_vms=[scene.hidden.id])))
    await scene.world.clones.convert(api.ConvertToTemplateRequest(vm_id=scene.source.id))
    before = await scene.vm_count()
    await scene.create(OPAL, VmSpec(placement=PlacementPolicy(affinity_vms=[scene.source.id])))
    assert await scene.vm_count() == before + 1


async def test_devices_that_were_taken_away_do_not_come_back_by_a_snapshot(scene: Scene) -> None:
    await scene.give(DEVICES["usb"])
    snapshot = await scene.world.snapshots.create(api.CreateSnapshotRequest(vm_id=scene.source.id, name="with"))
    await scene.revert(OPAL, snapshot)  # it has them now
    await scene.take_away()
    error = await refused(scene, scene.revert(OPAL, snapshot))
    assert f"snapshot {snapshot.id} has devices of its host" in error.message
    await scene.revert(ADA, snapshot)
    stored = await scene.world.stored(scene.source.id)
    assert stored is not None
    assert stored.spec.usb_devices == DEVICES["usb"].usb_devices
