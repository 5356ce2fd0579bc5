"""Ending simulated VMs at once."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from hypervisor.mock.host import MockHost
from hypervisor.processes import VmProcesses
from hypervisor.types import EventKind, PowerState

_IN_MEMORY = frozenset({PowerState.RUNNING, PowerState.PAUSED})


class MockProcesses(VmProcesses):
    """There are no processes: nothing but the program that simulates a host can end its VMs."""

    def __init__(self, host: MockHost) -> None:
        self._host = host

    @property
    def pid_dir(self) -> None:
        """See `VmProcesses`."""
        return None

    def under_way(self) -> Collection[object]:
        """See `VmProcesses`; what nobody waits for any more does not go on here."""
        return ()

    async def kill(self, vm_ids: Collection[str]) -> Sequence[str]:
        """See `VmProcesses`; no fault of the simulation keeps it from that."""
        doomed = [vm for vm_id in vm_ids if (vm := self._host.vms.get(vm_id)) is not None and vm.state in _IN_MEMORY]
        for vm in doomed:
            self._host.power_off(vm)
            self._host.change(vm, PowerState.CRASHED, EventKind.CRASHED, "killed: the host's lease ended")
        if doomed:
            await self._host.save()
        return [vm.config.vm_id for vm in doomed]
