"""The rules of `hypervisor.base`, checked on every backend."""

from __future__ import annotations

import asyncio
import dataclasses
import uuid
from collections.abc import Callable

import pytest

from hypervisor.base import Hypervisor
from hypervisor.errors import GuestDidNotStop, Refused, VmExists, VmNotFound, WrongState
from hypervisor.types import EventKind, PowerState, VmEvent
from tests.contract.conftest import BackendHost

DEADLINE_S = 30
ABSENT = str(uuid.uuid4())


class Events:
    """Events of one subscription, to be waited for."""

    def __init__(self, hypervisor: Hypervisor) -> None:
        self._queue: asyncio.Queue[VmEvent] = asyncio.Queue()
        self.unsubscribe: Callable[[], None] = hypervisor.subscribe(self._queue.put_nowait)

    async def next_of(self, vm_id: str) -> VmEvent:
        async with asyncio.timeout(DEADLINE_S):
            while True:
                event = await self._queue.get()
                if event.vm_id == vm_id:
                    return event

    async def until(self, vm_id: str, kind: EventKind) -> VmEvent:
        while (event := await self.next_of(vm_id)).kind is not kind:
            pass
        return event

    def is_empty(self) -> bool:
        return self._queue.empty()


async def started(backend: Hypervisor, host: BackendHost, *, deaf: bool = False) -> str:
    """Create and start a VM, and wait until its guest is up."""
    config = host.config(deaf=deaf)
    await backend.create(config)
    await backend.start(config.vm_id)
    await wait_for_hello(backend, host, config.vm_id)
    return config.vm_id


async def wait_for_hello(backend: Hypervisor, host: BackendHost, vm_id: str, count: int = 1) -> bytes:
    async with asyncio.timeout(DEADLINE_S):
        while True:
            log = await backend.read_console_log(vm_id, 0, 2**20)
            if log.data.count(host.hello) >= count:
                return log.data
            await asyncio.sleep(0.02)


async def state_of(backend: Hypervisor, vm_id: str) -> PowerState:
    return (await backend.status(vm_id)).state


async def test_health_of_open_backend_is_good(backend: Hypervisor) -> None:
    assert (await backend.health()).healthy


async def test_health_after_close_is_bad_without_raising(backend: Hypervisor) -> None:
    await backend.close()
    health = await backend.health()
    assert not health.healthy
    assert health.message


async def test_close_twice_succeeds(backend: Hypervisor) -> None:
    await backend.close()
    await backend.close()
    assert not (await backend.health()).healthy


async def test_capabilities_name_a_host_of_some_size(backend: Hypervisor) -> None:
    capabilities = await backend.capabilities()
    assert capabilities.name in {"mock", "libvirt", "qemu"}
    assert capabilities.version
    assert capabilities.max_vcpus >= 1
    assert capabilities.max_memory_bytes >= 2**20


async def test_create_defines_a_stopped_vm(backend: Hypervisor, host: BackendHost) -> None:
    config = host.config()
    await backend.create(config)
    status = await backend.status(config.vm_id)
    assert (status.vm_id, status.name, status.state) == (config.vm_id, config.name, PowerState.STOPPED)
    assert status.is_managed
    assert (status.vcpu_count, status.memory_mib) == (1, config.memory_mib)
    assert status.cpu_time_ns == 0
    assert status.memory_used_bytes == status.memory_total_bytes == 0
    assert status.started_at_s is None


async def test_create_twice_with_the_same_configuration_does_nothing(backend: Hypervisor, host: BackendHost) -> None:
    config = host.config()
    await backend.create(config)
    await backend.start(config.vm_id)
    await backend.create(config)
    assert await state_of(backend, config.vm_id) is PowerState.RUNNING


async def test_create_of_a_taken_id_with_another_configuration_is_refused(
    backend: Hypervisor, host: BackendHost
) -> None:
    config = host.config()
    await backend.create(config)
    with pytest.raises(VmExists):
        await backend.create(dataclasses.replace(config, memory_mib=config.memory_mib * 2))


async def test_fault_12_create_with_a_name_made_to_break_xml_keeps_it(backend: Hypervisor, host: BackendHost) -> None:
    config = dataclasses.replace(host.config(), name="a'><&\"b ü")
    await backend.create(config)
    assert (await backend.status(config.vm_id)).name == config.name


@pytest.mark.parametrize("method", ["start", "force_stop", "reboot", "pause", "resume", "status", "console_kinds"])
async def test_every_method_on_an_unknown_id_raises_not_found(backend: Hypervisor, method: str) -> None:
    with pytest.raises(VmNotFound):
        await getattr(backend, method)(ABSENT)


async def test_stop_and_reconfigure_and_console_log_of_an_unknown_id_raise_not_found(
    backend: Hypervisor, host: BackendHost
) -> None:
    with pytest.raises(VmNotFound):
        await backend.stop(ABSENT, 1)
    with pytest.raises(VmNotFound):
        await backend.read_console_log(ABSENT, 0, 100)
    with pytest.raises(VmNotFound):
        await backend.reconfigure(host.config())


async def test_delete_of_an_unknown_id_succeeds(backend: Hypervisor) -> None:
    before = {vm.vm_id for vm in await backend.list()}
    await backend.delete(ABSENT)
    assert {vm.vm_id for vm in await backend.list()} == before


async def test_delete_removes_the_vm_and_may_be_repeated(backend: Hypervisor, host: BackendHost) -> None:
    config = host.config()
    await backend.create(config)
    await backend.delete(config.vm_id)
    await backend.delete(config.vm_id)
    with pytest.raises(VmNotFound):
        await backend.status(config.vm_id)
    assert config.vm_id not in {vm.vm_id for vm in await backend.list()}


async def test_delete_of_a_running_vm_is_a_wrong_state(backend: Hypervisor, host: BackendHost) -> None:
    vm_id = await started(backend, host)
    with pytest.raises(WrongState) as caught:
        await backend.delete(vm_id)
    assert caught.value.state == "running"
    assert await state_of(backend, vm_id) is PowerState.RUNNING


async def test_created_again_after_delete_has_an_empty_console_log(backend: Hypervisor, host: BackendHost) -> None:
    config = host.config()
    await backend.create(config)
    await backend.start(config.vm_id)
    await wait_for_hello(backend, host, config.vm_id)
    await backend.force_stop(config.vm_id)
    await backend.delete(config.vm_id)
    await backend.create(config)
    assert (await backend.read_console_log(config.vm_id, 0, 100)).size_bytes == 0


async def test_reconfigure_of_a_stopped_vm_takes_effect_at_its_next_start(
    backend: Hypervisor, host: BackendHost
) -> None:
    config = host.config()
    await backend.create(config)
    larger = dataclasses.replace(config, name="renamed", memory_mib=config.memory_mib * 2)
    await backend.reconfigure(larger)
    await backend.reconfigure(larger)
    await backend.start(config.vm_id)
    status = await backend.status(config.vm_id)
    assert status.name == "renamed"
    assert status.memory_mib == larger.memory_mib
    assert status.memory_total_bytes == larger.memory_mib * 2**20
    with pytest.raises(VmExists):
        await backend.create(config)


async def test_reconfigure_of_a_running_vm_is_a_wrong_state(backend: Hypervisor, host: BackendHost) -> None:
    config = host.config()
    await backend.create(config)
    await backend.start(config.vm_id)
    with pytest.raises(WrongState):
        await backend.reconfigure(dataclasses.replace(config, memory_mib=config.memory_mib * 2))


async def test_start_boots_the_guest_and_counts_its_resources(backend: Hypervisor, host: BackendHost) -> None:
    vm_id = await started(backend, host)
    status = await backend.status(vm_id)
    assert status.state is PowerState.RUNNING
    assert status.vcpu_count == 1
    assert status.memory_total_bytes > 0
    assert 0 < status.memory_used_bytes <= status.memory_total_bytes * 64  # an emulator's own memory counts too
    assert status.cpu_time_ns > 0


async def test_start_of_a_running_vm_is_a_wrong_state(backend: Hypervisor, host: BackendHost) -> None:
    vm_id = await started(backend, host)
    with pytest.raises(WrongState):
        await backend.start(vm_id)


async def test_start_that_the_host_cannot_do_is_refused_and_leaves_it_off(
    backend: Hypervisor, host: BackendHost
) -> None:
    config = dataclasses.replace(host.config(), memory_mib=16 * 2**20)

    async def create_and_start() -> None:  # a backend may see at either that the host is too small
        await backend.create(config)
        await backend.start(config.vm_id)

    with pytest.raises(Refused):
        await create_and_start()
    assert all(vm.state is PowerState.STOPPED for vm in await backend.list() if vm.vm_id == config.vm_id)


async def test_stop_waits_until_the_guest_is_off(backend: Hypervisor, host: BackendHost) -> None:
    vm_id = await started(backend, host)
    await backend.stop(vm_id, DEADLINE_S)
    assert await state_of(backend, vm_id) is PowerState.STOPPED


async def test_stop_of_a_stopped_vm_succeeds(backend: Hypervisor, host: BackendHost) -> None:
    config = host.config()
    await backend.create(config)
    await backend.stop(config.vm_id, 1)
    await backend.force_stop(config.vm_id)
    assert await state_of(backend, config.vm_id) is PowerState.STOPPED


async def test_stop_of_a_deaf_guest_gives_up_and_leaves_it_running(backend: Hypervisor, host: BackendHost) -> None:
    vm_id = await started(backend, host, deaf=True)
    with pytest.raises(GuestDidNotStop):
        await backend.stop(vm_id, 0.5)
    assert await state_of(backend, vm_id) is PowerState.RUNNING


async def test_cancelled_stop_leaves_the_vm_free_for_every_other_operation(
    backend: Hypervisor, host: BackendHost
) -> None:
    vm_id = await started(backend, host, deaf=True)
    for wait_s in (0.0, 0.01, 0.3):
        stopping = asyncio.create_task(backend.stop(vm_id, DEADLINE_S))
        await asyncio.wait([stopping], timeout=wait_s)
        stopping.cancel()
        with pytest.raises(asyncio.CancelledError):
            await stopping
        assert await state_of(backend, vm_id) is PowerState.RUNNING
    await backend.pause(vm_id)
    await backend.resume(vm_id)
    stopping = asyncio.create_task(backend.stop(vm_id, DEADLINE_S))
    await asyncio.wait([stopping], timeout=0.05)
    stopping.cancel()
    await asyncio.wait([stopping])
    await backend.force_stop(vm_id)
    assert await state_of(backend, vm_id) is PowerState.STOPPED
    await backend.start(vm_id)
    assert await state_of(backend, vm_id) is PowerState.RUNNING
    await backend.force_stop(vm_id)
    await backend.delete(vm_id)
    with pytest.raises(VmNotFound):
        await backend.status(vm_id)


async def test_stop_of_a_paused_vm_is_a_wrong_state(backend: Hypervisor, host: BackendHost) -> None:
    vm_id = await started(backend, host)
    await backend.pause(vm_id)
    with pytest.raises(WrongState):
        await backend.stop(vm_id, 1)


async def test_force_stop_works_on_running_and_paused_vms(backend: Hypervisor, host: BackendHost) -> None:
    vm_id = await started(backend, host)
    await backend.force_stop(vm_id)
    assert await state_of(backend, vm_id) is PowerState.STOPPED
    await backend.start(vm_id)
    await backend.pause(vm_id)
    await backend.force_stop(vm_id)
    assert await state_of(backend, vm_id) is PowerState.STOPPED


async def test_pause_and_resume_keep_the_guest(backend: Hypervisor, host: BackendHost) -> None:
    vm_id = await started(backend, host)
    await backend.pause(vm_id)
    assert await state_of(backend, vm_id) is PowerState.PAUSED
    with pytest.raises(WrongState):
        await backend.pause(vm_id)
    with pytest.raises(WrongState):
        await backend.reboot(vm_id)
    with pytest.raises(WrongState):
        await backend.start(vm_id)
    await backend.resume(vm_id)
    assert await state_of(backend, vm_id) is PowerState.RUNNING
    with pytest.raises(WrongState):
        await backend.resume(vm_id)
    assert (await backend.read_console_log(vm_id, 0, 2**20)).data.count(host.hello) == 1


async def test_power_operations_on_a_stopped_vm_are_wrong_states(backend: Hypervisor, host: BackendHost) -> None:
    config = host.config()
    await backend.create(config)
    for method in (backend.reboot, backend.pause, backend.resume):
        with pytest.raises(WrongState) as caught:
            await method(config.vm_id)
        assert caught.value.state == "stopped"


async def test_console_log_reads_on_from_an_offset(backend: Hypervisor, host: BackendHost) -> None:
    vm_id = await started(backend, host, deaf=True)
    whole = await backend.read_console_log(vm_id, 0, 2**20)
    assert whole.next_offset == whole.size_bytes == len(whole.data)
    first = await backend.read_console_log(vm_id, 0, 5)
    assert (first.data, first.next_offset, first.size_bytes) == (whole.data[:5], 5, whole.size_bytes)
    rest = await backend.read_console_log(vm_id, first.next_offset, 2**20)
    assert first.data + rest.data == whole.data


@pytest.mark.parametrize("beyond", [0, 1, 10**9, 2**63])
async def test_console_log_at_or_beyond_the_end_is_empty(backend: Hypervisor, host: BackendHost, beyond: int) -> None:
    vm_id = await started(backend, host)
    size_bytes = (await backend.read_console_log(vm_id, 0, 2**20)).size_bytes
    log = await backend.read_console_log(vm_id, size_bytes + beyond, 100)
    assert (log.data, log.next_offset) == (b"", size_bytes)


async def test_console_log_of_a_vm_that_never_ran_is_empty(backend: Hypervisor, host: BackendHost) -> None:
    config = host.config()
    await backend.create(config)
    log = await backend.read_console_log(config.vm_id, 0, 100)
    assert (log.data, log.next_offset, log.size_bytes) == (b"", 0, 0)


async def test_console_log_stays_readable_after_the_vm_stopped(backend: Hypervisor, host: BackendHost) -> None:
    vm_id = await started(backend, host)
    await backend.force_stop(vm_id)
    assert host.hello in (await backend.read_console_log(vm_id, 0, 2**20)).data


async def test_events_of_one_vm_come_in_order_with_the_state_after_each(backend: Hypervisor, host: BackendHost) -> None:
    events = Events(backend)
    config = host.config()
    vm_id = config.vm_id
    await backend.create(config)
    await backend.start(vm_id)
    await wait_for_hello(backend, host, vm_id)
    await backend.pause(vm_id)
    await backend.resume(vm_id)
    await backend.stop(vm_id, DEADLINE_S)
    await backend.delete(vm_id)
    expected = [
        (EventKind.DEFINED, PowerState.STOPPED),
        (EventKind.STARTED, PowerState.RUNNING),
        (EventKind.PAUSED, PowerState.PAUSED),
        (EventKind.RESUMED, PowerState.RUNNING),
        (EventKind.STOPPED, PowerState.STOPPED),
    ]
    for kind, state in expected:
        event = await events.next_of(vm_id)
        assert (event.kind, event.state) == (kind, state)
    assert (await events.next_of(vm_id)).kind is EventKind.REMOVED


async def test_events_after_unsubscribe_do_not_come(backend: Hypervisor, host: BackendHost) -> None:
    gone, witness = Events(backend), Events(backend)
    gone.unsubscribe()
    gone.unsubscribe()
    config = host.config()
    await backend.create(config)
    await witness.until(config.vm_id, EventKind.DEFINED)
    assert gone.is_empty()


async def test_destroyed_by_another_tool_is_an_event_and_a_stopped_vm(backend: Hypervisor, host: BackendHost) -> None:
    vm_id = await started(backend, host)
    events = Events(backend)
    await host.destroy(vm_id)
    event = await events.until(vm_id, EventKind.STOPPED)
    assert event.state is PowerState.STOPPED
    assert await state_of(backend, vm_id) is PowerState.STOPPED


async def test_crash_is_an_event_and_a_state_and_it_can_be_started_again(
    backend: Hypervisor, host: BackendHost
) -> None:
    vm_id = await started(backend, host)
    events = Events(backend)
    await host.crash(vm_id)
    event = await events.until(vm_id, EventKind.CRASHED)
    assert event.state is PowerState.CRASHED
    assert await state_of(backend, vm_id) is PowerState.CRASHED
    await backend.start(vm_id)
    assert await state_of(backend, vm_id) is PowerState.RUNNING


async def test_reboot_boots_the_guest_again(backend: Hypervisor, host: BackendHost) -> None:
    vm_id = await started(backend, host)
    events = Events(backend)
    await backend.reboot(vm_id)
    await events.until(vm_id, EventKind.REBOOTED)
    assert await state_of(backend, vm_id) is PowerState.RUNNING
    await wait_for_hello(backend, host, vm_id, count=2)


async def test_vms_survive_a_new_hypervisor_object_untouched(backend: Hypervisor, host: BackendHost) -> None:
    running, config = await started(backend, host), host.config()
    await backend.create(config)
    before = await backend.status(running)
    await backend.close()
    later = host.connect()
    await later.open()
    try:
        after = await later.status(running)
        assert after.state is PowerState.RUNNING
        assert after.started_at_s == pytest.approx(before.started_at_s, abs=1.0)
        assert after.cpu_time_ns >= before.cpu_time_ns
        assert await state_of(later, config.vm_id) is PowerState.STOPPED
        await later.create(config)
        assert (await later.read_console_log(running, 0, 2**20)).data.count(host.hello) == 1
        await later.stop(running, DEADLINE_S)
    finally:
        await later.close()


async def test_calls_for_different_vms_run_at_once(backend: Hypervisor, host: BackendHost) -> None:
    configs = [host.config() for _ in range(4)]
    await asyncio.gather(*(backend.create(config) for config in configs))
    await asyncio.gather(*(backend.start(config.vm_id) for config in configs))
    states = {vm.vm_id: vm.state for vm in await backend.list()}
    assert all(states[config.vm_id] is PowerState.RUNNING for config in configs)
