"""What can go wrong in the mock, as data: a test or a configuration states it, nothing is patched."""

from __future__ import annotations

import enum
from dataclasses import dataclass


class Operation(enum.Enum):
    """What a fault can hit; `Hypervisor`'s methods by name."""

    OPEN = "open"
    CREATE = "create"
    RECONFIGURE = "reconfigure"
    DELETE = "delete"
    START = "start"
    RELEASE_START = "release_start"
    """The middle of a start that is looked at once more: the VM is there and paused."""
    SET_NOTES = "set_notes"
    STOP = "stop"
    FORCE_STOP = "force_stop"
    REBOOT = "reboot"
    PAUSE = "pause"
    RESUME = "resume"
    SUSPEND = "suspend"
    STATUS = "status"
    LIST = "list"
    CONSOLE = "console"
    READ_CONSOLE_LOG = "read_console_log"
    READ_STATISTICS = "read_statistics"
    RESIZE = "resize"
    LIST_HOST_DEVICES = "list_host_devices"
    LIST_DEVICES = "list_devices"
    ATTACH_DISK = "attach_disk"
    DETACH_DISK = "detach_disk"
    RESIZE_DISK = "resize_disk"
    LIMIT_DISK = "limit_disk"
    ATTACH_CDROM = "attach_cdrom"
    DETACH_CDROM = "detach_cdrom"
    CHANGE_MEDIUM = "change_medium"
    ATTACH_NIC = "attach_nic"
    DETACH_NIC = "detach_nic"
    UPDATE_NIC = "update_nic"
    CREATE_SNAPSHOT = "create_snapshot"
    SAVE_SNAPSHOT = "save_snapshot"
    """The middle of a creation: the guest is frozen, if that was asked for."""
    REVERT_SNAPSHOT = "revert_snapshot"
    DELETE_SNAPSHOT = "delete_snapshot"
    LIST_SNAPSHOTS = "list_snapshots"
    PREPARE_MIGRATION = "prepare_migration"
    ADMIT_MIGRATION = "admit_migration"
    ABANDON_MIGRATION = "abandon_migration"
    CHECK_MIGRATION = "check_migration"
    SEND_VM = "send_vm"
    SWITCH_VM = "switch_vm"
    """The middle of a migration: all passes are done, and the guest is about to be stopped."""
    WATCH_MIGRATION = "watch_migration"
    CANCEL_MIGRATION = "cancel_migration"
    FORECAST_MIGRATION = "forecast_migration"
    ASK_GUEST = "ask_guest"
    """Any method of `GuestAgents`."""


class Failure(enum.Enum):
    """How an operation fails."""

    REFUSED = "refused"
    UNAVAILABLE = "unavailable"
    """Nothing happens and the caller gets `Unavailable`."""
    ANSWER_LOST = "answer_lost"
    """The operation happens, and the caller gets `Unavailable` all the same."""


@dataclass(frozen=True, slots=True)
class Fault:
    """One misbehaviour: wait `delay_s`, then fail if `failure` is set.

    `vm_id` "" hits every VM. `times` is how often it strikes before it is used up; 0 is for ever.
    """

    operation: Operation
    failure: Failure | None = None
    delay_s: float = 0.0
    vm_id: str = ""
    times: int = 0
    message: str = "simulated fault"


@dataclass(frozen=True, slots=True)
class MockFaults:
    """Everything that goes wrong; the first fault that fits an operation is the one that strikes.

    Guests in `deaf_vm_ids` ignore the ACPI power button; `all_guests_deaf` makes every guest do so.
    Agents of guests in `silent_agent_vm_ids` do not answer, those in `absent_agent_vm_ids` are not there, and those in
    `garbage_agent_vm_ids` answer nonsense.
    """

    faults: tuple[Fault, ...] = ()
    deaf_vm_ids: frozenset[str] = frozenset()
    all_guests_deaf: bool = False
    silent_agent_vm_ids: frozenset[str] = frozenset()
    absent_agent_vm_ids: frozenset[str] = frozenset()
    garbage_agent_vm_ids: frozenset[str] = frozenset()
