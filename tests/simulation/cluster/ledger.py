"""What was acknowledged, and must be there from then on; and what no transaction may undo."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field

from controlplane.domain.fencing import Fence, FenceState
from tests.simulation.cluster.database import Rows, require

_ORDER: dict[int, int] = {FenceState.OPEN: 0, FenceState.PROVEN: 1, FenceState.WITHDRAWN: 2, FenceState.ENDED: 2}


@dataclass(slots=True)
class Ledger:
    """One a history.

    Attributes:
        executing: says on which hosts a VM does anything now.
        off: VMs that a person was told are off, and that nobody wanted to run since.
        gone: those that a person was told are deleted.
        fences: what was acknowledged of fences to people, by id.
        settings_version: of the settings that were acknowledged last.
    """

    executing: Callable[[str], Collection[str]]
    off: set[str] = field(default_factory=set)
    gone: set[str] = field(default_factory=set)
    fences: dict[str, int] = field(default_factory=dict)
    settings_version: int = 0
    count: int = 0
    """Of what was acknowledged."""

    def stopped(self, vm_id: str, *, is_gone: bool) -> None:
        """Note that somebody was told that a VM is off, or deleted."""
        self.count += 1
        where = self.executing(vm_id)
        require(not where, f"{vm_id} is said to be off, but runs on {where}")
        (self.gone if is_gone else self.off).add(vm_id)

    def wanted(self, vm_id: str) -> None:
        """Note that somebody wants a VM to run again."""
        self.off.discard(vm_id)

    def set(self, version: int) -> None:
        """Note that somebody was told that high availability is armed, or is not."""
        self.count += 1
        self.settings_version = max(self.settings_version, version)

    def fenced(self, fence_id: str, state: int) -> None:
        """Note that somebody was told of a fence."""
        self.count += 1
        self.fences[fence_id] = state

    def check_start(self, vm_id: str) -> None:
        """Check that a VM may begin to run."""
        require(vm_id not in self.off, f"{vm_id} begins to run although it was said to be off, and nobody started it")
        require(vm_id not in self.gone, f"{vm_id} begins to run although it was said to be deleted")

    def check(self, before: Rows, after: Rows) -> None:
        """Check that a transaction took nothing back."""
        settings, known = after.settings, before.settings
        require(
            settings.version >= max(known.version, self.settings_version), "settings that were acknowledged are lost"
        )
        require(settings.version > known.version or settings == known, "settings changed without a new version")
        require(before.fences.keys() <= after.fences.keys(), "a fence is lost")
        for fence in after.fences.values():
            was = before.fences.get(fence.id)
            if was is not None and was is not fence:
                self._check_fence(was, fence)
        for node_id, guard in before.guards.items():
            require(after.guards[node_id].ha_version >= guard.ha_version, f"what {node_id} learnt is lost")
        for vm_id in before.vms.keys() - after.vms.keys():
            require(before.vms[vm_id].shall_go, f"{vm_id} is lost")
        for vm_id in before.moves.keys() - after.moves.keys():
            require(vm_id in after.vms, f"{vm_id} is deleted while it is migrated")

    def _check_fence(self, was: Fence, now: Fence) -> None:
        require(_ORDER[now.state] >= _ORDER[was.state], f"{now.id} was {was.state}, and is {now.state}")
        require(now.token == was.token or now.state != was.state, f"{now.id} changed its token")
        if was.state == FenceState.PROVEN and now.state == FenceState.ENDED:
            require(now.proof == was.proof, f"{now.id} changed its proof when it ended")
        if now.id in self.fences:
            require(_ORDER[now.state] >= _ORDER[self.fences[now.id]], f"{now.id} was acknowledged, and is taken back")

    def check_end(self, rows: Rows) -> None:
        """Check at the end that everything is there."""
        require(rows.settings.version >= self.settings_version, "settings that were acknowledged are lost")
        require(self.fences.keys() <= rows.fences.keys(), "a fence that was acknowledged is lost")
        require(not self.gone & rows.vms.keys(), "a VM that was said to be deleted is back")
        for vm_id in self.off & rows.vms.keys():
            require(not rows.vms[vm_id].shall_run, f"{vm_id} was said to be off, and shall run")
