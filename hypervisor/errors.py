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


class DeviceNotFound(HypervisorError):
    """The VM has no device of that kind and id."""

    def __init__(self, vm_id: str, device: str) -> None:
        super().__init__(f"VM {vm_id} has no {device}")
        self.vm_id = vm_id
        self.device = device


class DeviceExists(HypervisorError):
    """The VM has another device with that id, or with something else that has to be its own."""

    def __init__(self, vm_id: str, device: str) -> None:
        super().__init__(f"VM {vm_id} has another {device} already")
        self.vm_id = vm_id
        self.device = device


class GuestDidNotRelease(HypervisorError):
    """The guest was asked to let go of a device and did not in time; it still has it."""

    def __init__(self, vm_id: str, device: str, timeout_s: float) -> None:
        super().__init__(
            f"the guest of VM {vm_id} did not let go of its {device} within {timeout_s:g} s and still has it; stop "
            "using it inside the guest and try again, or stop the VM first"
        )
        self.vm_id = vm_id
        self.device = device
        self.timeout_s = timeout_s


class GuestAgentAbsent(HypervisorError):
    """Nothing inside the guest is connected to the agent's channel."""

    def __init__(self, vm_id: str) -> None:
        super().__init__(
            f"no guest agent is connected in VM {vm_id}; install and start qemu-guest-agent in the guest, or wait "
            "until it has booted"
        )
        self.vm_id = vm_id


class GuestAgentSilent(HypervisorError):
    """The agent did not answer in time; whether it did what it was asked is unknown."""

    def __init__(self, vm_id: str, words: str) -> None:
        super().__init__(f"the guest agent of VM {vm_id} did not answer: {words}")
        self.vm_id = vm_id


class GuestAgentRefused(HypervisorError):
    """The agent refused, does not know the command, or answered what is no answer; `words` are clean and short."""

    def __init__(self, vm_id: str, words: str) -> None:
        super().__init__(f"the guest agent of VM {vm_id} refused: {words}")
        self.vm_id = vm_id
        self.words = words


class SnapshotNotFound(HypervisorError):
    """The VM has no snapshot with that id."""

    def __init__(self, vm_id: str, snapshot_id: str) -> None:
        super().__init__(f"VM {vm_id} has no snapshot {snapshot_id}")
        self.vm_id = vm_id
        self.snapshot_id = snapshot_id


class SnapshotNameTaken(HypervisorError):
    """Another snapshot of the VM has that name."""

    def __init__(self, vm_id: str, name: str) -> None:
        super().__init__(f"VM {vm_id} already has a snapshot named {name!r}; choose another name")
        self.vm_id = vm_id
        self.name = name


class SnapshotUnsupported(HypervisorError):
    """The VM is made in a way that cannot be saved or put back; the message says what stands in the way."""


class CannotQuiesce(HypervisorError):
    """The guest's file systems cannot be brought to rest: no agent answers, or it cannot freeze them."""


class MigrationRefused(HypervisorError):
    """The VM cannot be moved so, or not taken in here; nothing was begun. The message says what stands in the way."""


class MigrationFailed(HypervisorError):
    """The VM is not moved and stays where it was, as it was; or what was asked of its migration comes too late."""


class ConsoleAbsent(HypervisorError):
    """The VM has no console of that kind, or is not running."""


class ConsoleInUse(HypervisorError):
    """Somebody else is at a console that is for one at a time."""

    def __init__(self, vm_id: str) -> None:
        super().__init__(
            f"the serial console of VM {vm_id} is in use, and is for one at a time; close the other session first"
        )
        self.vm_id = vm_id


class Refused(HypervisorError):
    """The backend refused what was asked; the message holds its own words."""


class HostCannot(Refused):
    """The host lacks what the configuration asks for; another host may have it."""


class Unavailable(HypervisorError):
    """The backend does not answer (libvirt is down, or hangs); whether the operation happened is unknown."""
