"""Moments between two answers of libvirt that real ones show too rarely to be tested with."""

from __future__ import annotations

import uuid
from types import SimpleNamespace
from typing import Any

import pytest

from hypervisor.errors import WrongState
from hypervisor.libvirt.domain_inventory import Inventory
from hypervisor.libvirt.domain_operations import DomainOperations
from hypervisor.libvirt.domain_state import DomainState
from hypervisor.libvirt.error_map import ErrorCode
from tests.unit.hypervisor.test_domain_xml import TCG

VM_ID = str(uuid.uuid4())


class OperationInvalid(Exception):
    """What libvirt raises for an operation that the domain's state forbids."""

    def get_error_code(self) -> int:
        return ErrorCode.OPERATION_INVALID


LIBRARY: Any = SimpleNamespace(
    VIR_DOMAIN_SHUTDOWN_ACPI_POWER_BTN=1, VIR_CONNECT_GET_ALL_DOMAINS_STATS_NOWAIT=1, libvirtError=OperationInvalid
)


class RefusingDomain:
    """A domain whose power button cannot be pressed, and that is in these states, one for each time it is asked."""

    def __init__(self, *states: DomainState) -> None:
        self._states = list(states)

    def state(self) -> tuple[int, int]:
        return self._states.pop(0), 0

    def hasManagedSaveImage(self) -> bool:
        return False

    def shutdownFlags(self, flags: int) -> None:
        raise OperationInvalid("domain is not running")


def press(domain: RefusingDomain) -> bool:
    connection = SimpleNamespace(lookupByUUIDString=lambda vm_id: domain)
    return DomainOperations(LIBRARY, Inventory(LIBRARY), TCG).press_power_button(VM_ID, connection)


@pytest.mark.parametrize(("then", "is_off"), [(DomainState.SHUTOFF, True), (DomainState.RUNNING, False)])
def test_button_of_a_guest_that_is_going_down_just_now_is_no_error(then: DomainState, is_off: bool) -> None:
    assert press(RefusingDomain(DomainState.RUNNING, then)) is is_off


def test_button_of_a_guest_that_was_paused_just_now_is_a_wrong_state() -> None:
    with pytest.raises(WrongState, match="while it is paused"):
        press(RefusingDomain(DomainState.RUNNING, DomainState.PAUSED))
