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
    """

    faults: tuple[Fault, ...] = ()
    deaf_vm_ids: frozenset[str] = frozenset()
    all_guests_deaf: bool = False
