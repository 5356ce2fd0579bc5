"""Snapshots of simulated VMs: configuration, disk contents and guest time are kept with the VM and come back."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from hypervisor.errors import CannotQuiesce, SnapshotNameTaken, SnapshotNotFound
from hypervisor.mock import guest as mock_guest
from hypervisor.mock.faults import Operation
from hypervisor.mock.host import OFF, MockHost
from hypervisor.mock.store import MockSnapshot, MockVm
from hypervisor.snapshots import Snapshot, SnapshotRequest, Snapshots, in_tree_order
from hypervisor.types import EventKind, PowerState

_IN_MEMORY = frozenset({PowerState.RUNNING, PowerState.PAUSED})


class MockSnapshots(Snapshots):
    """The snapshots of one simulated host."""

    def __init__(self, host: MockHost) -> None:
        self._host = host

    async def thaw_all(self) -> None:
        """Thaw the guests that an earlier process froze and could not thaw any more."""
        for vm in self._host.vms.values():
            if vm.is_frozen:
                self._thaw(vm)
        await self._host.save()

    async def create(self, vm_id: str, request: SnapshotRequest) -> Snapshot:
        """Save; a fault of `SAVE_SNAPSHOT` strikes while the guest is frozen. See `Snapshots`."""
        lost = await self._host.strike(Operation.CREATE_SNAPSHOT, vm_id)
        vm = self._host.vm(vm_id)
        if (existing := _find(vm, request.snapshot_id)) is None:
            self._check(vm, request)
            existing = await self._save(vm, request)
        await self._host.save()
        self._host.lose_answer(lost)
        return _shown(vm, existing)

    async def revert(self, vm_id: str, snapshot_id: str, *, start: bool = False) -> None:
        """Put everything back; `Refused` when the guest's memory finds no room. See `Snapshots`."""
        lost = await self._host.strike(Operation.REVERT_SNAPSHOT, vm_id)
        vm = self._host.vm(vm_id)
        if (saved := _find(vm, snapshot_id)) is None:
            raise SnapshotNotFound(vm_id, snapshot_id)
        if saved.has_memory or start:
            self._host.check_room(vm_id, saved.config.memory_mib)
        if vm.state not in OFF:
            self._host.power_off(vm)
        vm.config, vm.disk_text, vm.current_snapshot_id = saved.config, saved.disk_text, snapshot_id
        vm.is_frozen = False
        if not saved.has_memory:
            self._host.change(vm, PowerState.STOPPED, EventKind.STOPPED, "reverted to a snapshot")
        if saved.has_memory or start:
            self._power_on(vm, saved, start=start)
        await self._host.save()
        self._host.lose_answer(lost)

    async def delete(self, vm_id: str, snapshot_id: str) -> None:
        """See `Snapshots`."""
        lost = await self._host.strike(Operation.DELETE_SNAPSHOT, vm_id)
        vm = self._host.vm(vm_id)
        if (doomed := _find(vm, snapshot_id)) is not None:
            vm.snapshots = tuple(
                dataclasses.replace(each, parent_id=doomed.parent_id) if each.parent_id == snapshot_id else each
                for each in vm.snapshots
                if each is not doomed
            )
            if vm.current_snapshot_id == snapshot_id:
                vm.current_snapshot_id = doomed.parent_id
            self._host.touch(vm)
        await self._host.save()
        self._host.lose_answer(lost)

    async def list(self, vm_id: str) -> Sequence[Snapshot]:
        """See `Snapshots`."""
        await self._host.strike(Operation.LIST_SNAPSHOTS, vm_id)
        vm = self._host.vm(vm_id)
        return in_tree_order([_shown(vm, saved) for saved in vm.snapshots])

    def _check(self, vm: MockVm, request: SnapshotRequest) -> None:
        vm_id = vm.config.vm_id
        self._host.require(vm, "take a snapshot of", OFF | _IN_MEMORY)
        if request.include_memory:
            self._host.require(vm, "save the memory of", _IN_MEMORY)
        if any(each.name == request.name for each in vm.snapshots):
            raise SnapshotNameTaken(vm_id, request.name)
        if request.quiesce:
            self._host.require(vm, "quiesce", {PowerState.RUNNING})
            if vm_id in self._host.faults.silent_agent_vm_ids or self._host.age_s(vm) < self._host.settings.boot_s:
                raise CannotQuiesce(f"the guest agent of VM {vm_id} does not answer; nothing was saved")

    async def _save(self, vm: MockVm, request: SnapshotRequest) -> MockSnapshot:
        if not request.quiesce:
            await self._host.strike(Operation.SAVE_SNAPSHOT, vm.config.vm_id)
            return self._add(vm, request)
        vm.is_frozen = True
        self._host.touch(vm)
        try:
            await self._host.save()
            await self._host.strike(Operation.SAVE_SNAPSHOT, vm.config.vm_id)
            return self._add(vm, request)
        finally:
            self._thaw(vm)

    def _thaw(self, vm: MockVm) -> None:
        vm.is_frozen = False
        self._host.touch(vm)

    def _add(self, vm: MockVm, request: SnapshotRequest) -> MockSnapshot:
        age_s = self._host.age_s(vm)
        saved = MockSnapshot(
            snapshot_id=request.snapshot_id,
            name=request.name,
            description=request.description,
            parent_id=vm.current_snapshot_id,
            created_at_s=self._host.now_s(),
            state=vm.state,
            config=vm.config,
            disk_text=vm.disk_text,
            has_memory=request.include_memory,
            is_quiesced=request.quiesce,
            frozen_filesystem_count=len(vm.config.disks) if request.quiesce else 0,
            memory_bytes=mock_guest.memory_used_bytes(vm.config, vm.load, age_s) if request.include_memory else 0,
            age_s=age_s,
            load=vm.load,
            load_since_s=vm.load_since_s,
            cpu_before_s=vm.cpu_before_s,
        )
        vm.snapshots = (*vm.snapshots, saved)
        vm.current_snapshot_id = saved.snapshot_id
        self._host.touch(vm)
        return saved

    def _power_on(self, vm: MockVm, saved: MockSnapshot, *, start: bool) -> None:
        now_s = self._host.now_s()
        vm.started_at_s = vm.running_since_s = now_s
        if saved.has_memory:
            vm.run_before_s, vm.load = saved.age_s, saved.load
            vm.load_since_s, vm.cpu_before_s = saved.load_since_s, saved.cpu_before_s
        self._host.change(vm, PowerState.RUNNING, EventKind.STARTED)
        if saved.has_memory and saved.state is PowerState.PAUSED and not start:
            vm.running_since_s = None
            self._host.change(vm, PowerState.PAUSED, EventKind.PAUSED)


def _find(vm: MockVm, snapshot_id: str) -> MockSnapshot | None:
    return next((each for each in vm.snapshots if each.snapshot_id == snapshot_id), None)


def _shown(vm: MockVm, saved: MockSnapshot) -> Snapshot:
    return Snapshot(
        snapshot_id=saved.snapshot_id,
        name=saved.name,
        description=saved.description,
        parent_id=next((each.parent_id for each in vm.snapshots if each.snapshot_id == saved.snapshot_id), ""),
        created_at_s=saved.created_at_s,
        state=saved.state,
        has_memory=saved.has_memory,
        is_quiesced=saved.is_quiesced,
        frozen_filesystem_count=saved.frozen_filesystem_count,
        size_bytes=saved.memory_bytes,
        is_current=vm.current_snapshot_id == saved.snapshot_id,
    )
