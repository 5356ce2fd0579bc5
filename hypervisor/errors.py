"""What a hypervisor backend may raise; one class for each way a caller would react differently."""

from __future__ import annotations


class HypervisorError(Exception):
    """Base of all; the message is for an operator and names the VM id, never a backend's identifier."""


class VmNotFound(HypervisorError):
    """This host has no VM with that id."""

    def __init__(self, vm_id: str) -> None:
        super().__init__(f"VM {vm_id} does not exist on this host")
        self.vm_id = vm_id


class VmExists(HypervisorError):
    """A VM with that id is defined here with another configuration."""

    def __init__(self, vm_id: str) -> None:
        super().__init__(f"VM {vm_id} exists on this host with another configuration")
        self.vm_id = vm_id


class WrongState(HypervisorError):
    """The VM's state forbids the operation."""

    def __init__(self, vm_id: str, operation: str, state: str) -> None:
        super().__init__(f"cannot {operation} VM {vm_id} while it is {state}")
        self.vm_id = vm_id
        self.operation = operation
        self.state = state


class GuestDidNotStop(HypervisorError):
    """The guest ignored the shutdown request until the time was up; it still runs."""

    def __init__(self, vm_id: str, timeout_s: float) -> None:
        super().__init__(f"the guest of VM {vm_id} did not shut down within {timeout_s:g} s and still runs")
        self.vm_id = vm_id
        self.timeout_s = timeout_s


class ConsoleAbsent(HypervisorError):
    """The VM has no console of that kind, or is not running."""


class Refused(HypervisorError):
    """The backend refused what was asked; the message holds its own words."""


class Unavailable(HypervisorError):
    """The backend does not answer (libvirt is down, or hangs); whether the operation happened is unknown."""
