"""How often a VM is started again where it is, and on other nodes, before a person is told. Pure.

One count does for both: `Vm.restart_count`, of restarts that nobody asked for since somebody last did, or it last ran
well. A VM whose host failed is started as often as its policy says on the node it was moved to, moved on with the next
restart, and so forth.
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
    """Whether the restart of this number, of a VM that was moved and did not run since, is on another node."""
    moves, rest = divmod(number, try_count_of(policy) + 1)
    return rest == 0 and 0 < moves <= relocation_count_of(policy)


def why_not_restarted(vm: Vm) -> str:
    """Say of a VM that shall run and does not, on a node that lives, that only a person can help; "" if not yet."""
    policy, count = vm.spec.ha_policy, vm.restart_count
    if not is_restarted_elsewhere(vm.spec):
        return ""
    if vm.details.failover_unfinished:
        if count < (try_count_of(policy) + 1) * (relocation_count_of(policy) + 1) - 1:
            return ""
        said = f"since its host failed it did not start in {count + 1} attempts, on as many nodes as its policy allows"
    elif _is_restarted_in_place(vm) and policy.max_restarts and count >= policy.max_restarts:
        said = f"it ended again after each of {count} restarts in a row, as many as its policy allows"
    else:
        return ""
    last = f"; the last error: {vm.error_message}" if vm.error_message else ""
    return f"{said}{last}; see why, and start it when that is mended"


def _is_restarted_in_place(vm: Vm) -> bool:
    """Whether its policy has it started again for what became of it: a guest may shut itself down for good."""
    return vm.spec.ha_policy.condition == HaPolicy.ALWAYS or vm.power_state == PowerState.CRASHED
