"""Notes that are kept with a VM, and a start that ends with its daemon, checked on every backend."""

from __future__ import annotations

import asyncio
import threading
from dataclasses import replace

import pytest

from hypervisor.base import Hypervisor
from hypervisor.errors import VmNotFound, WrongState
from hypervisor.types import NO_NOTES, PowerState, VmNotes
from tests.contract.conftest import BackendHost
from tests.contract.test_hypervisor_contract import started, wait_for_hello

NOTES = VmNotes(is_protected=True, start_order='{"epoch": 3, "text": "<&>"}')


async def notes_of(backend: Hypervisor, vm_id: str) -> VmNotes:
    (listed,) = [vm for vm in await backend.list() if vm.vm_id == vm_id]
    assert listed.notes == (await backend.status(vm_id)).notes
    return listed.notes


async def test_notes_outlive_the_daemon_a_run_and_a_new_definition_and_end_with_the_vm(
    backend: Hypervisor, host: BackendHost
) -> None:
    config = host.config()
    await backend.create(config)
    assert await notes_of(backend, config.vm_id) == NO_NOTES
    for _ in range(2):
        await backend.set_notes(config.vm_id, NOTES)
        assert await notes_of(backend, config.vm_id) == NOTES
    await backend.reconfigure(replace(config, memory_mib=config.memory_mib + 4))
    assert await notes_of(backend, config.vm_id) == NOTES
    await backend.start(config.vm_id)
    await backend.close()

    again = host.connect()
    await again.open()
    try:
        assert await notes_of(again, config.vm_id) == NOTES
        await again.set_notes(config.vm_id, VmNotes(is_protected=True))  # while it runs
        assert await notes_of(again, config.vm_id) == VmNotes(is_protected=True)
        await again.force_stop(config.vm_id)
        assert await notes_of(again, config.vm_id) == VmNotes(is_protected=True)
        for _ in range(2):
            await again.set_notes(config.vm_id, NO_NOTES)
        assert await notes_of(again, config.vm_id) == NO_NOTES
        await again.set_notes(config.vm_id, NOTES)
        await again.delete(config.vm_id)
        with pytest.raises(VmNotFound):
            await again.set_notes(config.vm_id, NOTES)
        await again.create(config)
        assert await notes_of(again, config.vm_id) == NO_NOTES
    finally:
        await again.close()


async def test_notes_taken_while_it_runs_are_kept_with_what_runs_and_leave_the_guest_alone(
    backend: Hypervisor, host: BackendHost
) -> None:
    vm_id = await started(backend, host)
    await backend.set_notes(vm_id, NOTES)
    assert (await backend.status(vm_id)).state is PowerState.RUNNING
    assert await notes_of(backend, vm_id) == NOTES
    await backend.force_stop(vm_id)
    assert await notes_of(backend, vm_id) == NOTES


async def test_vm_of_another_tool_can_be_noted_too(backend: Hypervisor, host: BackendHost) -> None:
    vm_id = await host.define_unmanaged()
    await backend.set_notes(vm_id, VmNotes(is_protected=True))
    status = await backend.status(vm_id)
    assert (status.notes.is_protected, status.is_managed) == (True, False)


async def test_start_that_is_looked_at_once_more_is_seen_as_paused_and_refuses_another(
    backend: Hypervisor, host: BackendHost
) -> None:
    config = host.config()
    await backend.create(config)
    is_there, goes_on = threading.Event(), threading.Event()

    def may_run() -> None:
        """On libvirt it is asked in a thread, where others can look meanwhile."""
        is_there.set()
        if threading.current_thread() is not threading.main_thread():
            assert goes_on.wait(30)

    starting = asyncio.create_task(backend.start(config.vm_id, may_run))
    if backend.processes is not None and backend.processes.pid_dir is not None:
        assert await asyncio.to_thread(is_there.wait, 30)
        assert (await backend.status(config.vm_id)).state is PowerState.PAUSED
    goes_on.set()
    await starting
    await wait_for_hello(backend, host, config.vm_id)
    with pytest.raises(WrongState):
        await backend.start(config.vm_id, may_run)
    assert (await backend.status(config.vm_id)).state is PowerState.RUNNING
