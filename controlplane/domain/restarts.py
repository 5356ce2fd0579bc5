"""How often a VM is started again where it is, and on other nodes, before a person is told. Pure.

One count does for both: `Vm.restart_count`, of restarts that nobody asked for since somebody last did, or it last ran
well. A VM that does not start is tried as often as its policy says on one node, moved to another with the next restart,
and so forth: whether it was moved since its host failed, or never was. One that starts and ends again is not moved:
what is wrong with it goes along.
"""

from __future__ import annotations

from controlplane.domain.admission import is_restarted_elsewhere
from controlplane.domain.vm import PowerState, Vm
from limiquantix.compute.v1.vm_pb2 import HaPolicy

TRIES_BEFORE_RELOCATION = 3
"""Of starting a VM where it was moved to, if its policy has no number of its own."""


def try_count_of(policy: HaPolicy) -> int:
    """Return how many starts are tried on one node that a VM was moved to."""
    return policy.max_restarts or TRIES_BEFORE_RELOCATION


def relocation_count_of(policy: HaPolicy) -> int:
    """Return on how many further nodes a VM is tried, after the one that it was moved to."""
    return policy.max_relocations or 1


def is_relocation(policy: HaPolicy, number: int) -> bool:
    """Whether the restart of this number, of a VM that did not start since it last ran, is on another node."""
    moves, rest = divmod(number, try_count_of(policy) + 1)
    return rest == 0 and 0 < moves <= relocation_count_of(policy)


def is_relocated_next(vm: Vm) -> bool:
    """Whether the next restart of a VM that shall run and does not is on another node."""
    if not is_restarted_elsewhere(vm.spec) or not is_relocation(vm.spec.ha_policy, vm.restart_count + 1):
        return False
    return vm.details.failover_unfinished or did_not_start(vm)


def did_not_start(vm: Vm) -> bool:
    """Whether the last restart failed; an error stays until an operation succeeds."""
    return vm.restart_count > 0 and bool(vm.error_message)


def why_not_restarted(vm: Vm) -> str:
    """Say of a VM that shall run and does not, on a node that lives, that only a person can help; "" if not yet."""
    policy, count = vm.spec.ha_policy, vm.restart_count
    if not is_restarted_elsewhere(vm.spec):
        return ""
    if vm.details.failover_unfinished:
        if count < (try_count_of(policy) + 1) * (relocation_count_of(policy) + 1) - 1:
            return ""
        said = f"it did not start in {count + 1} attempts, on as many nodes as its policy allows"
    elif _is_restarted_in_place(vm) and is_used_up(vm):
        how = "did not start in" if did_not_start(vm) else "ended again after each of"
        said = f"it {how} {count} restarts in a row, as many as its policy allows"
    else:
        return ""
    last = f"; the last error: {vm.error_message}" if vm.error_message else ""
    return f"{said}{last}; see why, and start it when that is mended"


def is_used_up(vm: Vm) -> bool:
    """Whether a VM that was not moved was restarted as often as its policy says, and is not tried elsewhere."""
    limit = vm.spec.ha_policy.max_restarts
    return bool(limit) and vm.restart_count >= limit and not is_relocated_next(vm)


def _is_restarted_in_place(vm: Vm) -> bool:
    """Whether its policy has it started again for what became of it: a guest may shut itself down for good."""
    return vm.spec.ha_policy.condition == HaPolicy.ALWAYS or vm.power_state == PowerState.CRASHED
