"""Reading VMs so that what is read can be ordered, on the mock."""

from __future__ import annotations

import uuid

import pytest

from hypervisor.mock.backend import MockHypervisor
from hypervisor.mock.faults import Failure, Fault, MockFaults, Operation
from hypervisor.mock.host import MockSettings
from hypervisor.types import CpuTopology, PowerState, VmConfig, VmStatus
from limiquantix.errors import NotFound, Unavailable
from nodedaemon.change_count import StateChanges
from nodedaemon.observer import CpuUsage, GoneVm, ObservedVm, VmObserver


def config() -> VmConfig:
    return VmConfig(str(uuid.uuid4()), "web", CpuTopology(), 64)


async def observed(settings: MockSettings | None = None) -> tuple[MockHypervisor, VmObserver]:
    hypervisor = MockHypervisor(settings)
    await hypervisor.open()
    return hypervisor, VmObserver(hypervisor, StateChanges(1))


async def test_read_of_an_unknown_vm_is_not_found() -> None:
    _, observer = await observed()
    with pytest.raises(NotFound):
        await observer.read(str(uuid.uuid4()))


async def test_read_counts_each_new_state_once() -> None:
    hypervisor, observer = await observed()
    vm = config()
    await hypervisor.create(vm)
    first = await observer.read(vm.vm_id)
    assert (await observer.read(vm.vm_id)).change == first.change
    await hypervisor.start(vm.vm_id)
    second = await observer.read(vm.vm_id)
    assert second.change.count > first.change.count
    assert second.change.previous is PowerState.STOPPED
    assert [other.change for other in await observer.read_all()] == [second.change]


async def test_state_that_changes_while_it_is_read_is_read_again() -> None:
    hypervisor = MockHypervisor()
    changes = StateChanges(1)
    vm = config()
    interrupted = False

    async def start_meanwhile(delay_s: float) -> None:
        # What another reader saw and counted while the first one's answer was on its way.
        nonlocal interrupted
        if not interrupted:
            interrupted = True
            changes.observe(vm.vm_id, PowerState.RUNNING, changes.position)

    hypervisor = MockHypervisor(sleep=start_meanwhile)
    await hypervisor.open()
    await hypervisor.create(vm)
    hypervisor.set_faults(MockFaults((Fault(Operation.STATUS, delay_s=1),)))
    read = await VmObserver(hypervisor, changes).read(vm.vm_id)
    # The mock's VM never ran, so the second reading is the newest truth and counts after the other reader's.
    assert read.status.state is PowerState.STOPPED
    assert read.change.previous is PowerState.RUNNING


async def test_read_or_gone_gives_absence_a_count() -> None:
    hypervisor, observer = await observed()
    vm = config()
    await hypervisor.create(vm)
    before = await observer.read_or_gone(vm.vm_id)
    await hypervisor.delete(vm.vm_id)
    after = await observer.read_or_gone(vm.vm_id)
    assert isinstance(before, ObservedVm)
    assert isinstance(after, GoneVm)
    assert after.change.count > before.change.count


async def test_unavailable_hypervisor_is_not_taken_for_a_missing_vm() -> None:
    hypervisor, observer = await observed()
    hypervisor.set_faults(MockFaults((Fault(Operation.STATUS, Failure.UNAVAILABLE),)))
    with pytest.raises(Unavailable):
        await observer.read_or_gone(str(uuid.uuid4()))


async def test_vm_missing_from_the_list_counts_anew_when_it_is_there_again() -> None:
    # The events of its removal and its return may be taken together, while an inventory without it was sent between.
    hypervisor, observer = await observed()
    vm = config()
    await hypervisor.create(vm)
    before = await observer.read(vm.vm_id)
    await hypervisor.delete(vm.vm_id)
    assert await observer.read_all() == []
    missing_as_of = observer.position
    await hypervisor.create(vm)
    after = await observer.read(vm.vm_id)
    assert before.change.count < missing_as_of < after.change.count


async def test_read_tells_the_generation_that_was_taken_before_it_began() -> None:
    hypervisor = MockHypervisor()
    await hypervisor.open()
    vm, generations = config(), {}
    await hypervisor.create(vm)
    generations[vm.vm_id] = 3
    observer = VmObserver(hypervisor, StateChanges(1), generations)

    async def take_meanwhile(delay_s: float) -> None:
        generations[vm.vm_id] += 1

    slow = MockHypervisor(sleep=take_meanwhile)
    await slow.open()
    await slow.create(vm)
    slow.set_faults(MockFaults((Fault(Operation.STATUS, delay_s=1), Fault(Operation.LIST, delay_s=1))))
    assert (await observer.read(vm.vm_id)).generation == 3
    slow_observer = VmObserver(slow, StateChanges(1), generations)
    assert (await slow_observer.read(vm.vm_id)).generation == 3
    assert [seen.generation for seen in await slow_observer.read_all()] == [4]
    await slow.delete(vm.vm_id)
    assert (await slow_observer.read_or_gone(vm.vm_id)).generation == 5


def running(cpu_time_s: float, vcpu_count: int = 2) -> VmStatus:
    return VmStatus("v", "v", PowerState.RUNNING, vcpu_count=vcpu_count, cpu_time_ns=int(cpu_time_s * 1e9))


def test_cpu_usage_is_of_all_vcpus_since_the_reading_before() -> None:
    now_s = [100.0]
    usage = CpuUsage(lambda: now_s[0])
    assert usage.percent(running(10)) == 0
    now_s[0] += 10
    assert usage.percent(running(15)) == pytest.approx(25)
    now_s[0] += 0.1
    assert usage.percent(running(15.2)) == pytest.approx(25)  # too short an interval to say anything new
    now_s[0] += 9.9
    assert usage.percent(running(100)) == 100


def test_cpu_usage_of_a_vm_that_was_restarted_or_stopped_is_never_negative() -> None:
    now_s = [100.0]
    usage = CpuUsage(lambda: now_s[0])
    usage.percent(running(10))
    now_s[0] += 10
    assert usage.percent(running(1)) == 0
    assert usage.percent(VmStatus("v", "v", PowerState.STOPPED)) == 0
    now_s[0] += 10
    assert usage.percent(running(5)) == 0
