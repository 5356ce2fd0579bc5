"""Ending VMs without asking, checked on every backend."""

from __future__ import annotations

import asyncio
import uuid

import pytest

from hypervisor.base import Hypervisor
from hypervisor.processes import find_vm_processes, is_alive
from hypervisor.types import EventKind, PowerState
from tests.contract.conftest import BackendHost
from tests.contract.test_hypervisor_contract import Events, started


async def test_killed_vm_has_crashed_and_others_run_on(backend: Hypervisor, host: BackendHost) -> None:
    killed, other = await started(backend, host), await started(backend, host)
    events = Events(backend)
    assert backend.processes is not None
    assert list(await backend.processes.kill({killed, str(uuid.uuid4())})) == [killed]
    assert (await events.until(killed, EventKind.CRASHED)).state is PowerState.CRASHED
    assert (await backend.status(killed)).state is PowerState.CRASHED
    assert (await backend.status(other)).state is PowerState.RUNNING
    assert list(await backend.processes.kill({killed})) == []
    await backend.start(killed)  # nothing is left that would keep it from running again
    assert (await backend.status(killed)).state is PowerState.RUNNING


class Forbidden(Exception):
    """The VM may not run."""


async def test_start_that_is_forbidden_when_all_is_ready_leaves_the_vm_off(
    backend: Hypervisor, host: BackendHost
) -> None:
    vm_id = await started(backend, host)
    await backend.force_stop(vm_id)
    running: list[bool] = []

    def may_run() -> None:
        running.append(True)
        if len(running) == 1:
            raise Forbidden

    with pytest.raises(Forbidden):
        await backend.start(vm_id, may_run)
    assert (await backend.status(vm_id)).state in {PowerState.STOPPED, PowerState.CRASHED}
    assert backend.processes is not None
    assert list(backend.processes.under_way()) == []
    await backend.start(vm_id, may_run)
    assert (await backend.status(vm_id)).state is PowerState.RUNNING


async def test_process_of_a_vm_is_found_by_its_pid_file_as_long_as_it_runs(
    backend: Hypervisor, host: BackendHost
) -> None:
    vm_id = await started(backend, host)
    assert backend.processes is not None
    if backend.processes.pid_dir is None:
        assert list(await backend.processes.kill({vm_id})) == [vm_id]  # found without one
        return
    pid_dir = str(backend.processes.pid_dir)
    process = (await asyncio.to_thread(find_vm_processes, pid_dir, {vm_id}))[vm_id]
    assert is_alive(process)
    await backend.force_stop(vm_id)
    assert await asyncio.to_thread(find_vm_processes, pid_dir, {vm_id}) == {}
    assert not is_alive(process)
