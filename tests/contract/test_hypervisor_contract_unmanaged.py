"""VMs that another tool defined on the host, on every backend."""

from __future__ import annotations

import dataclasses

import pytest

from hypervisor.base import Hypervisor
from hypervisor.errors import VmExists, VmNotFound, WrongState
from hypervisor.types import PowerState
from tests.contract.conftest import MEMORY_MIB, BackendHost


async def test_unmanaged_vm_is_listed_as_such(backend: Hypervisor, host: BackendHost) -> None:
    ours = host.config()
    await backend.create(ours)
    foreign_id = await host.define_unmanaged()
    listed = {vm.vm_id: vm.is_managed for vm in await backend.list()}
    assert listed[ours.vm_id] is True
    assert listed[foreign_id] is False
    foreign = await backend.status(foreign_id)
    assert (foreign.is_managed, foreign.vcpu_count, foreign.memory_mib) == (False, 1, MEMORY_MIB)


async def test_unmanaged_vm_is_started_paused_resumed_forced_off_and_deleted(
    backend: Hypervisor, host: BackendHost
) -> None:
    vm_id = await host.define_unmanaged()
    await backend.start(vm_id)
    await backend.pause(vm_id)
    await backend.resume(vm_id)
    assert (await backend.status(vm_id)).state is PowerState.RUNNING
    with pytest.raises(WrongState):
        await backend.delete(vm_id)
    await backend.force_stop(vm_id)
    await backend.stop(vm_id, 1)
    status = await backend.status(vm_id)
    assert (status.state, status.is_managed) == (PowerState.STOPPED, False)
    await backend.delete(vm_id)
    await backend.delete(vm_id)
    with pytest.raises(VmNotFound):
        await backend.status(vm_id)


async def test_create_with_the_id_of_an_unmanaged_vm_is_refused(backend: Hypervisor, host: BackendHost) -> None:
    vm_id = await host.define_unmanaged()
    with pytest.raises(VmExists):
        await backend.create(dataclasses.replace(host.config(), vm_id=vm_id))
    assert not (await backend.status(vm_id)).is_managed
