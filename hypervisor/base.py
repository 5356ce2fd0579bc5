"""The interface every hypervisor backend implements.

The core is small on purpose: what every backend can do for every VM. Powers that only some have (snapshots, hot-plug,
guest agents) are ABCs of their own; a backend without one has None in its place.

The rules that hold for every method, and that the shared contract suite (tests/contract) checks on every backend:

* Nothing blocks the event loop. Nothing is cached that another tool could change behind our back.
* Methods may be called twice. Where the VM is already as asked (`create` with the same configuration, `delete` of a VM
  that is gone, `force_stop` of a stopped one), the call succeeds and does nothing; every other wrong state is
  `WrongState`.
* Calls for different VMs may run at once; the caller serialises calls for the same VM.
* A VM that is not managed takes every operation like one that is; but `create` finds its id taken, and nobody may ask
  for `reconfigure`, which would put our definition in place of one that says more than `VmConfig` can.
* Recovery is part of the contract: after `close` and `open` in a new process, every VM defined before is known, and a
  VM that ran goes on running untouched.
* Every method may raise `Unavailable`; `VmNotFound` is raised for an unknown id except where said otherwise.
"""

from __future__ import annotations

import socket
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

from hypervisor.devices import Devices
from hypervisor.guests import GuestAgents
from hypervisor.host_devices import HostDevices
from hypervisor.migration import Migration
from hypervisor.processes import VmProcesses
from hypervisor.resizing import Resizing
from hypervisor.snapshots import Snapshots
from hypervisor.statistics import Statistics
from hypervisor.types import (
    Capabilities,
    ConsoleKind,
    ConsoleLog,
    Health,
    SimulatedUsage,
    VmConfig,
    VmEvent,
    VmNotes,
    VmStatus,
)

Listener = Callable[[VmEvent], None]


class Hypervisor(ABC):
    """One hypervisor on one host."""

    @property
    @abstractmethod
    def snapshots(self) -> Snapshots | None:
        """Snapshots of VMs."""

    @property
    @abstractmethod
    def devices(self) -> Devices | None:
        """Attaching and detaching devices."""

    @property
    @abstractmethod
    def resizing(self) -> Resizing | None:
        """Changing CPU and memory of VMs that run."""

    @property
    @abstractmethod
    def host_devices(self) -> HostDevices | None:
        """Devices of the host."""

    @property
    @abstractmethod
    def guests(self) -> GuestAgents | None:
        """Agents inside guests."""

    @property
    @abstractmethod
    def statistics(self) -> Statistics | None:
        """What VMs use."""

    @property
    @abstractmethod
    def migration(self) -> Migration | None:
        """Moving VMs to other hosts."""

    @property
    @abstractmethod
    def processes(self) -> VmProcesses | None:
        """Ending VMs without asking the backend."""

    @property
    def simulated_usage(self) -> SimulatedUsage | None:
        """What a simulated host uses; None where the host is the machine that this process runs on."""
        return None

    @abstractmethod
    async def open(self) -> None:
        """Connect and learn what exists.

        Raises:
            Unavailable: the backend cannot be reached.
        """

    @abstractmethod
    async def close(self) -> None:
        """Let go of the backend. VMs go on running. Safe to call twice."""

    @abstractmethod
    async def capabilities(self) -> Capabilities:
        """Say what this backend on this host can do."""

    @abstractmethod
    async def health(self) -> Health:
        """Ask the backend for a sign of life; never raises."""

    @abstractmethod
    async def create(self, config: VmConfig) -> None:
        """Define a VM; it stays off. Idempotent for the same configuration.

        Raises:
            VmExists: the id is taken by a VM configured otherwise.
            Refused: the backend does not accept the configuration.
        """

    @abstractmethod
    async def reconfigure(self, config: VmConfig) -> None:
        """Replace the definition of a VM that is off; takes effect at its next start. Idempotent.

        Raises:
            WrongState: it is not off.
            Refused: the backend does not accept the configuration; the old one stays.
        """

    @abstractmethod
    async def delete(self, vm_id: str) -> None:
        """Remove the definition and whatever the backend keeps for it (console log, NVRAM); disk images stay.

        Of a VM that is not managed, only what cannot be without its definition. Succeeds if the VM does not exist.

        Raises:
            WrongState: it is neither off nor saved.
        """

    @abstractmethod
    async def set_notes(self, vm_id: str, notes: VmNotes) -> None:
        """Keep these notes, and no others, with the VM's definition, durably and whatever its state is. Idempotent.

        `reconfigure` leaves them as they are, `delete` drops them. Reverting to a snapshot, or an arrival from another
        host, may bring other notes: the caller sets them then.
        """

    @abstractmethod
    async def start(self, vm_id: str, may_run: Callable[[], None] | None = None) -> None:
        """Start from off, or continue from a saved state.

        Args:
            may_run: called, perhaps in another thread, when all is ready and the guest has done nothing yet. What it
                raises ends the VM again and is passed on. Whoever dies meanwhile leaves a VM that is paused, so the
                caller notes it before (`VmNotes.start_order`).

        Raises:
            WrongState: it runs or is paused.
            Refused: the backend could not start it (a missing bridge, no memory); it stays off.
        """

    @abstractmethod
    async def stop(self, vm_id: str, timeout_s: float) -> None:
        """Ask the guest to shut down (ACPI power button) and wait until it is off. Succeeds if it is off.

        May be cancelled at any time: the guest then shuts down or not, and the VM takes any other operation.

        Raises:
            GuestDidNotStop: the guest still runs after `timeout_s` seconds.
            WrongState: it is paused, so the guest cannot react.
        """

    @abstractmethod
    async def force_stop(self, vm_id: str) -> None:
        """Pull the plug. Succeeds if it is off; drops a saved state."""

    @abstractmethod
    async def reboot(self, vm_id: str) -> None:
        """Ask the guest to reboot where it can hear, else reset it.

        Raises:
            WrongState: it is not running.
        """

    @abstractmethod
    async def pause(self, vm_id: str) -> None:
        """Stop the vCPUs; memory stays allocated.

        Raises:
            WrongState: it is not running.
        """

    @abstractmethod
    async def resume(self, vm_id: str) -> None:
        """Let the vCPUs of a paused VM run again.

        Raises:
            WrongState: it is not paused.
        """

    @abstractmethod
    async def suspend(self, vm_id: str) -> None:
        """Save the guest's memory to disk and free it.

        `start` continues where the guest was; `force_stop` drops what is saved.

        Raises:
            WrongState: it is not running.
            Refused: it cannot be saved (a passed-through device, no space); it runs on.
        """

    @abstractmethod
    async def status(self, vm_id: str, *, with_memory: bool = True) -> VmStatus:
        """Say what the VM is now; what its guest uses of its memory takes longer, and is 0 if not asked for."""

    @abstractmethod
    async def list(self) -> Sequence[VmStatus]:
        """Every VM on this host, also those LimiQuantix did not define; no order."""

    @abstractmethod
    async def console_kinds(self, vm_id: str) -> Sequence[ConsoleKind]:
        """List the consoles that `open_console` opens now, displays first.

        Raises:
            ConsoleAbsent: the VM is not running.
        """

    @abstractmethod
    async def open_console(self, vm_id: str, kind: ConsoleKind) -> socket.socket:
        """Connect to a console; the socket is the caller's, and reads as closed once the VM stops.

        A display speaks its own protocol and asks for no password of VNC's: letting nobody else near is the caller's
        part. A serial console is the bare line, for one at a time, and ends for a caller that leaves a mebibyte unread.

        Raises:
            ConsoleAbsent: the VM has none of that kind, or is not running.
            ConsoleInUse: somebody is at the serial console, and does not leave within a few seconds.
            Refused: it cannot be opened.
        """

    @abstractmethod
    async def set_console_password(self, vm_id: str, password: str, valid_s: float) -> None:
        """Have the VM's SPICE display take this password, and no other, for so long, and none afterwards.

        Lasts until the VM stops; what its definition says stays. Sessions that are open go on.

        Raises:
            ConsoleAbsent: the VM has no SPICE display, or is not running.
        """

    @abstractmethod
    async def read_console_log(self, vm_id: str, offset: int, max_bytes: int) -> ConsoleLog:
        """Read what the guest wrote to its serial console.

        Args:
            offset: first byte wanted, from 0; from one that is no longer kept, the answer begins with the oldest byte
                that is. Beyond the end, or from before the log was rotated, the answer is empty and `next_offset` is
                the log's end.
            max_bytes: 1 to 1,048,576.
        """

    @abstractmethod
    def subscribe(self, listener: Listener) -> Callable[[], None]:
        """Call `listener` in the event loop for each event from now on; it must not block.

        Returns:
            A function that ends the subscription.
        """
