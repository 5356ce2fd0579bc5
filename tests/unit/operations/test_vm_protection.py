"""Which VMs end with their host's lease: noted by the host before it is on record, off the record before it is not."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from controlplane.domain.event import Event, EventType
from controlplane.domain.fencing import NodeGuard
from controlplane.domain.vm import Vm
from limiquantix.compute.v1 import vm_service_pb2 as api
from limiquantix.compute.v1.vm_pb2 import CpuConfig, HaPolicy, MemoryConfig, VmSpec
from limiquantix.errors import ResourceExhausted
from tests.support.control_plane_world import World
from tests.support.failover_scene import protected_spec
from tests.support.fake_daemons import FakeDaemon, unreachable

PROTECTED, ORDINARY = HaPolicy(auto_restart=True), HaPolicy()


def spec(policy: HaPolicy) -> VmSpec:
    return VmSpec(cpu=CpuConfig(cores=1), memory=MemoryConfig(size_mib=128), ha_policy=policy)


async def made(world: World, policy: HaPolicy, **fields: Any) -> Vm:
    await world.add_node()
    return await world.create(spec=spec(policy), **fields)


async def change(world: World, vm: Vm, policy: HaPolicy) -> None:
    request = api.UpdateVMRequest(id=vm.id, spec=VmSpec(ha_policy=policy))
    request.update_mask.paths.append("spec.ha_policy")
    await world.vms.update(request)


async def stored(world: World, vm: Vm) -> Vm:
    found = await world.stored(vm.id)
    assert found is not None
    return found


async def assert_agreed(world: World, vm: Vm, *, is_protected: bool) -> None:
    assert (await stored(world, vm)).is_protected == is_protected
    assert (vm.id in world.host_of(vm).protected) == is_protected


async def fences_itself(world: World, vm: Vm) -> None:
    """Have it on record that the host can protect VMs."""
    guard = NodeGuard(vm.node_id, 1, True, "", "boot-1", world.clock())
    await world.store.run(lambda tx: tx.note_guards([guard]))


@pytest.mark.parametrize(
    ("policy", "is_protected"),
    [
        (PROTECTED, True),
        (ORDINARY, False),
        (HaPolicy(auto_restart=True, condition=HaPolicy.NEVER), False),
        (HaPolicy(auto_restart=True, condition=HaPolicy.ON_FAILURE), True),
    ],
)
async def test_new_vm_is_protected_as_its_policy_asks(world: World, policy: HaPolicy, is_protected: bool) -> None:
    vm = await made(world, policy, start=True)
    await assert_agreed(world, vm, is_protected=is_protected)


async def test_host_that_takes_no_leases_makes_the_vm_all_the_same_and_it_is_not_protected(world: World) -> None:
    node = await world.add_node()
    world.daemons.of(node.id).takes_leases = False
    vm = await world.create(spec=protected_spec())
    await assert_agreed(world, vm, is_protected=False)


@pytest.mark.parametrize("is_on", [True, False])
async def test_policy_that_changes_is_told_the_host_while_the_vm_runs(world: World, is_on: bool) -> None:
    before, after = (ORDINARY, PROTECTED) if is_on else (PROTECTED, ORDINARY)
    vm = await made(world, before, start=True)
    await change(world, vm, after)
    await assert_agreed(world, vm, is_protected=is_on)
    assert "stop_vm" not in world.host_of(vm).methods(vm.id)


async def test_vm_is_not_on_record_as_protected_before_its_host_noted_it(world: World) -> None:
    vm = await made(world, ORDINARY)
    gate = world.host_of(vm).hold("set_vm_protection")
    changing = asyncio.ensure_future(change(world, vm, PROTECTED))
    await asyncio.wait_for(gate.entered.wait(), 60)
    assert not (await stored(world, vm)).is_protected
    gate.release()
    await changing
    await assert_agreed(world, vm, is_protected=True)


async def test_vm_is_off_the_record_before_its_host_is_told(world: World) -> None:
    vm = await made(world, PROTECTED)
    gate = world.host_of(vm).hold("set_vm_protection")
    changing = asyncio.ensure_future(change(world, vm, ORDINARY))
    await asyncio.wait_for(gate.entered.wait(), 60)
    assert not (await stored(world, vm)).is_protected
    gate.release()
    await changing


async def test_change_of_something_else_tells_the_host_nothing_of_it(world: World) -> None:
    vm = await made(world, PROTECTED)
    request = api.UpdateVMRequest(id=vm.id, description="d")
    request.update_mask.paths.append("description")
    await world.vms.update(request)
    assert "set_vm_protection" not in world.host_of(vm).methods(vm.id)


async def test_host_that_does_not_answer_fails_no_change_and_is_told_when_it_reports(world: World) -> None:
    vm = await made(world, ORDINARY)
    await fences_itself(world, vm)
    world.host_of(vm).fail("set_vm_protection", unreachable())
    await change(world, vm, PROTECTED)
    assert not (await stored(world, vm)).is_protected
    assert (await stored(world, vm)).spec.ha_policy.auto_restart

    world.host_of(vm).heal()
    await world.report_everything(vm.node_id)
    await world.settle()

    await assert_agreed(world, vm, is_protected=True)


async def test_vm_of_before_is_protected_once_its_host_can(world: World) -> None:
    vm = await made(world, PROTECTED)
    await forget(world, vm)
    await world.report_everything(vm.node_id)
    await world.settle()
    assert not (await stored(world, vm)).is_protected  # nothing says that the host can

    await fences_itself(world, vm)
    await world.report_everything(vm.node_id)
    await world.settle()

    await assert_agreed(world, vm, is_protected=True)


async def forget(world: World, vm: Vm) -> None:
    """Make the VM one of a version that protected none."""
    old = replace(await stored(world, vm), is_protected=False)
    await world.store.run(lambda tx: tx.update_vm(old, Event(EventType.VM_UPDATED)))
    world.host_of(vm).protected.clear()


async def test_repair_takes_it_off_the_record_first(world: World) -> None:
    """A revert to a snapshot may bring back a policy of before: then the record says more than is wanted."""
    vm = await made(world, PROTECTED)
    await fences_itself(world, vm)
    other = replace(await stored(world, vm), spec=spec(ORDINARY))
    await world.store.run(lambda tx: tx.update_vm(other, Event(EventType.VM_UPDATED)))
    host: FakeDaemon = world.host_of(vm)
    gate = host.hold("set_vm_protection")

    await world.report_everything(vm.node_id)
    await asyncio.wait_for(gate.entered.wait(), 60)

    assert not (await stored(world, vm)).is_protected
    gate.release()
    await world.settle()
    await assert_agreed(world, vm, is_protected=False)


async def test_refused_change_leaves_it_protected(world: World) -> None:
    vm = await made(world, PROTECTED, start=True)
    request = api.UpdateVMRequest(id=vm.id, spec=spec(PROTECTED))
    request.spec.cpu.cores = 64
    request.update_mask.paths.append("spec.cpu")
    with pytest.raises(ResourceExhausted):
        await world.vms.update(request)
    await assert_agreed(world, vm, is_protected=True)
